"""Tokens of a sequence in each stack."""

from __future__ import annotations

from conf.schema import DataConfig, Stack


def stack_length(data: DataConfig, stack: Stack) -> int:
    """Tokens of one sequence in a stack, padding included."""
    return data.encoder_length if stack == "encoder" else data.decoder_length
