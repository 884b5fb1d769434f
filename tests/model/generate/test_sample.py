from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conf.errors import ConfigError
from model.generate import GenerateOptions, generate
from model.generate.options import EOS
from model.generate.sample import draw, lengths
from model.t5.model import SwitchTransformer
from tests.model.t5.build import MOE, make_batch, make_model

KINDS = ["dense", "switch"]


def logits_after(module: SwitchTransformer, prompt_BL: Tensor, inputs_BT: Tensor) -> Tensor:
    """Next-token logits [B, V] by running the whole decoder again, without a cache."""
    encoded = module.encode(prompt_BL, mode="no_drop", noise=None)
    memory = module.memory(encoded.hidden_BLD, prompt_BL)
    real_BT = torch.ones_like(inputs_BT, dtype=torch.bool)
    out = module.decoder(module.shared(inputs_BT), real_BT, memory, mode="no_drop", noise=None)
    return module.logits(out.hidden_BLD)[:, -1, : module.config.vocab_size]


def eager_to_stop(**changes) -> SwitchTransformer:
    """A random model of few tokens, so that EOS turns up early."""
    return make_model(vocab_size=6, seed=9, tie_embeddings=False, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_argmax_loop(kind: str) -> None:
    module = eager_to_stop(moe=kind)
    prompt_BL = make_batch(rows=6, vocab=6).encoder_BL
    result = generate(module, prompt_BL, options=GenerateOptions(max_length=12))
    ends = []
    for row, prompt_L in enumerate(prompt_BL):
        inputs, log_probs = [0], []
        while len(inputs) <= 12 and EOS not in inputs:
            with torch.no_grad():
                logits_V = logits_after(module, prompt_L[None], torch.tensor([inputs]))[0]
            inputs.append(int(logits_V.argmax()))
            log_probs.append(logits_V.log_softmax(0).max().item())
        n = len(log_probs)
        ends.append(n)
        assert result.tokens_BT[row].tolist() == inputs[1:] + [0] * (result.tokens_BT.shape[1] - n)
        assert result.lengths_B[row] == n
        assert result.log_probs_BT[row, :n].tolist() == pytest.approx(log_probs, rel=1e-9)
        assert result.scores_B[row].item() == pytest.approx(sum(log_probs), rel=1e-9)
    assert min(ends) < max(ends)  # otherwise stopping is not tested


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_a_row_does_not_depend_on_its_batch(mode: str, kind: str) -> None:
    module = eager_to_stop(moe=kind, experts=replace(MOE, group_sequences=3))
    prompt_BL = make_batch(rows=6, vocab=6).encoder_BL
    options = GenerateOptions(mode=mode, max_length=8, beams=3)  # type: ignore[arg-type]
    together = generate(module, prompt_BL, options=options)
    for row in range(6):
        alone = generate(module, prompt_BL[row : row + 1], options=options)
        n = int(alone.lengths_B[0])
        assert together.tokens_BT[row, :n].tolist() == alone.tokens_BT[0, :n].tolist()
        assert together.scores_B[row].item() == pytest.approx(alone.scores_B[0].item(), rel=1e-9)


def test_min_length() -> None:
    module = eager_to_stop()
    prompt_BL = make_batch(rows=6, vocab=6).encoder_BL
    for mode in ("greedy", "sample", "beam"):
        options = GenerateOptions(mode=mode, max_length=9, min_length=6)  # type: ignore[arg-type]
        assert generate(module, prompt_BL, options=options).lengths_B.min() > 6


def test_stops_when_all_ranks_have_finished() -> None:
    module, asked = eager_to_stop(), []
    prompt_BL = make_batch(rows=6, vocab=6).encoder_BL

    def others_need_nine_steps(done: bool) -> bool:
        asked.append(done)
        return len(asked) >= 9

    options = GenerateOptions(max_length=20)
    result = generate(module, prompt_BL, options=options, all_finished=others_need_nine_steps)
    alone = generate(module, prompt_BL, options=replace(options, max_length=9))
    assert result.tokens_BT.shape[1] == len(asked) == 9
    assert result.tokens_BT[:, : alone.tokens_BT.shape[1]].tolist() == alone.tokens_BT.tolist()


def test_sampling_follows_its_seed() -> None:
    module = make_model()
    prompt_BL = make_batch().encoder_BL
    options = GenerateOptions(mode="sample", max_length=10, seed=1)
    one, again = (generate(module, prompt_BL, options=options) for _ in range(2))
    other = generate(module, prompt_BL, options=replace(options, seed=2))
    assert torch.equal(one.tokens_BT, again.tokens_BT)
    assert not torch.equal(one.tokens_BT, other.tokens_BT)
    cold = generate(module, prompt_BL, options=replace(options, temperature=1e-6))
    greedy = generate(module, prompt_BL, options=replace(options, mode="greedy"))
    assert torch.equal(cold.tokens_BT, greedy.tokens_BT)


PROBABILITIES = [0.1, 0.4, 0.05, 0.3, 0.15]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 3, 4]),
        ({"top_k": 3, "top_p": 0.5}, [1, 3]),  # of the best three 0.4 is 0.47: the second is still needed
        ({"top_k": 3, "top_p": 0.45}, [1]),
        ({"top_p": 1e-9}, [1]),
        ({"temperature": 2.0}, [0, 1, 2, 3, 4]),
    ],
)
def test_draw_has_the_right_distribution(options: dict, kept: list[int]) -> None:
    chosen = GenerateOptions(mode="sample", **options)
    weights = [p ** (1 / chosen.temperature) if i in kept else 0.0 for i, p in enumerate(PROBABILITIES)]
    n = 1000
    uniform_B = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # evenly spread instead of random: exact counts
    log_probs_BV = torch.tensor([[math.log(p) for p in PROBABILITIES]] * n, dtype=torch.float64)
    counts = draw(log_probs_BV, uniform_B, chosen).bincount(minlength=5)
    for count, weight in zip(counts.tolist(), weights, strict=True):
        assert abs(count - n * weight / sum(weights)) <= 1


def test_draw_at_the_end_of_the_unit_interval_gives_a_kept_token() -> None:
    log_probs_BV = torch.tensor([[math.log(p) for p in PROBABILITIES]])
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert draw(log_probs_BV, almost_one, GenerateOptions(mode="sample", top_k=2)).item() == 3


def test_lengths() -> None:
    assert lengths(torch.tensor([[5, 1, 0, 0], [5, 6, 7, 8], [1, 0, 0, 0], [5, 6, 7, 1]])).tolist() == [2, 4, 1, 4]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "magic"), ("max_length", 0), ("min_length", 64), ("temperature", 0.0), ("top_k", 0), ("top_p", 0.0),
        ("top_p", 1.5), ("beams", 0), ("length_penalty", -1.0), ("no_repeat_ngram", -1), ("repetition_penalty", 0.0),
        ("bad_words", ((),)), ("length_rule", "log"), ("early_stopping", "yes"),
    ],
)  # fmt: skip
def test_options_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"generate.{field}: got {value!r}")):
        GenerateOptions(**{field: value})  # type: ignore[arg-type]
