"""Small sentencepiece models of kinds that are not trained here, made on the spot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tests.data.helpers import sentences

PROTO: Any = sentencepiece_model_pb2
TEXT = [
    *(f"The cute dog number {n} walks in the park, and the cat is unable to stop {n % 7}." for n in range(200)),
    *sentences(300, seed=7).splitlines(),
]


def t5_like(text: Sequence[str] = TEXT, **changes: Any) -> bytes:
    """As T5's: NFKC, a blank put before a text, blanks at the ends dropped, several made one."""
    model = io.BytesIO()
    settings = {"vocab_size": 120, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2, **changes}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=model, **settings)
    return model.getvalue()


def with_pieces(model: bytes, pieces: Sequence[tuple[str, int]]) -> bytes:
    """The model with (piece, kind) behind the others."""
    proto = PROTO.ModelProto.FromString(model)
    for piece, kind in pieces:
        proto.pieces.add(piece=piece, type=kind, score=0.0)
    return proto.SerializeToString()
