"""What generation is asked for and what it returns.

Shape suffixes: B batch, T generated positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from conf.errors import ConfigError

GenerateMode = Literal["greedy", "sample", "beam"]
MODES = ("greedy", "sample", "beam")
EOS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """How to decode. Raises `ConfigError` for values out of range."""

    mode: GenerateMode = "greedy"
    max_length: int = 64  # tokens at most, EOS included
    min_length: int = 0  # tokens before EOS at least
    known_ids: int | None = None  # ids from here on mean nothing to the tokenizer and are never chosen; None: all do
    temperature: float = 1.0  # sample: logits are divided by this
    top_k: int | None = None  # sample: only the k most probable tokens
    top_p: float = 1.0  # sample: only the smallest set of most probable tokens that holds this much probability
    seed: int = 0  # sample: of the generator; the same on every rank
    beams: int = 4  # beam: hypotheses kept per prompt
    length_penalty: float = 0.6  # beam: alpha of ((5 + length) / 6) ** alpha, which divides a sum of log-probabilities

    def __post_init__(self) -> None:
        checks = (
            ("mode", self.mode in MODES, f"one of {', '.join(MODES)}"),
            ("max_length", self.max_length >= 1, "at least 1"),
            ("min_length", 0 <= self.min_length < self.max_length, f"0 to max_length - 1 = {self.max_length - 1}"),
            ("known_ids", self.known_ids is None or self.known_ids > EOS, "more ids than EOS, or nothing"),
            ("temperature", self.temperature > 0, "a positive number"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or nothing"),
            ("top_p", 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("beams", self.beams >= 1, "at least 1"),
            ("length_penalty", self.length_penalty >= 0, "0 or a positive number"),
        )
        for field, holds, needs in checks:
            if not holds:
                hint = "mode=greedy" if field == "temperature" else ""
                raise ConfigError(f"generate.{field}", got=getattr(self, field), needs=needs, hint=hint)


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateResult:
    """One generated sequence per prompt."""

    tokens_BT: Tensor  # int64, EOS included where it was generated, 0 after the end
    lengths_B: Tensor  # int64 tokens, EOS included
    log_probs_BT: Tensor  # of each token under the model itself (no temperature, no filter); 0 after the end
    scores_B: Tensor  # sum of log_probs; of a beam divided by its length penalty
