"""What generation is asked for and what it returns.

Shape suffixes: B batch, T generated positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from conf.errors import ConfigError
from model.moe.types import RouteMode

GenerateMode = Literal["greedy", "sample", "beam"]
# What a sum of log-probabilities of n tokens is divided by: gnmt, ((5 + n) / 6) ** alpha (T5's, Wu et al.,
# arXiv 1609.08144), or power, n ** alpha, which is transformers'.
LengthRule = Literal["gnmt", "power"]
# When a beam search ends, in transformers' words. never: nothing open can still win; true: `beams` hypotheses are
# finished; false: they are, and at its present length nothing open is better than the worst of them.
EarlyStopping = Literal["never", "true", "false"]
EOS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """How to decode. Raises `ConfigError` for values out of range."""

    mode: GenerateMode = "greedy"
    max_length: int = 64  # tokens at most, EOS included
    min_length: int = 0  # tokens before EOS at least
    no_repeat_ngram: int = 0  # no sequence of so many tokens occurs twice in a row; 0: any may
    repetition_penalty: float = 1.0  # scores of tokens a row has: divided by this if above 0, else multiplied
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of ids that are never completed
    known_ids: int | None = None  # ids from here on mean nothing to the tokenizer and are never chosen; None: all do
    temperature: float = 1.0  # sample: logits are divided by this
    top_k: int | None = None  # sample: only the k most probable tokens
    top_p: float = 1.0  # sample: only the smallest set of most probable tokens that holds this much probability
    seed: int = 0  # sample: of the generator; the same on every rank
    beams: int = 4  # beam: hypotheses kept per prompt
    length_penalty: float = 0.6  # beam: alpha of `length_rule`
    length_rule: LengthRule = "gnmt"  # beam
    early_stopping: EarlyStopping = "never"  # beam
    routing: RouteMode = "no_drop"  # eval: experts drop tokens as in evaluation

    def __post_init__(self) -> None:
        checks = (
            ("mode", *_one_of(self.mode, GenerateMode)),
            ("max_length", self.max_length >= 1, "at least 1"),
            ("min_length", 0 <= self.min_length < self.max_length, f"0 to max_length - 1 = {self.max_length - 1}"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "a number of tokens, or 0 for none"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number; 1 is none"),
            ("bad_words", all(words and min(words) >= 0 for words in self.bad_words), "sequences of ids"),
            ("known_ids", self.known_ids is None or self.known_ids > EOS, "more ids than EOS, or nothing"),
            ("temperature", self.temperature > 0, "a positive number"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or nothing"),
            ("top_p", 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("beams", self.beams >= 1, "at least 1"),
            ("length_rule", *_one_of(self.length_rule, LengthRule)),
            ("early_stopping", *_one_of(self.early_stopping, EarlyStopping)),
            ("length_penalty", self._is_penalty(), "0 or a positive number; with length_rule=power any number"),
        )
        for field, holds, needs in checks:
            if not holds:
                hint = "mode=greedy" if field == "temperature" else ""
                raise ConfigError(f"generate.{field}", got=getattr(self, field), needs=needs, hint=hint)

    def _is_penalty(self) -> bool:
        return math.isfinite(self.length_penalty) and (self.length_penalty >= 0 or self.length_rule == "power")

    def divisor(self, length: int) -> float:
        """What a sum of log-probabilities of `length` tokens is divided by."""
        return (length if self.length_rule == "power" else (5 + length) / 6) ** self.length_penalty


def _one_of(value: str, kind: object) -> tuple[bool, str]:
    return value in get_args(kind), f"one of {', '.join(get_args(kind))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateResult:
    """One generated sequence per prompt."""

    tokens_BT: Tensor  # int64, EOS included where it was generated, 0 after the end
    lengths_B: Tensor  # int64 tokens, EOS included
    log_probs_BT: Tensor  # of each token under the model itself (no temperature, no filter); 0 after the end
    scores_B: Tensor  # sum of log_probs; of a beam divided by its length penalty
