from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from model.generate import GenerateOptions, generate
from model.generate.options import EOS
from model.t5.model import SwitchTransformer
from tests.model.generate.test_sample import KINDS, eager_to_stop, logits_after
from tests.model.t5.build import make_batch, make_model

VOCAB, LENGTH = 4, 3


def every_sequence() -> list[tuple[int, ...]]:
    """All sequences that end in EOS within `LENGTH` tokens, and all that fill `LENGTH` without one."""
    ended = [
        (*body, EOS)
        for n in range(LENGTH)
        for body in product([t for t in range(VOCAB) if t != EOS], repeat=n)
    ]  # fmt: skip
    return ended + list(product([t for t in range(VOCAB) if t != EOS], repeat=LENGTH))


def log_probs_after(module: SwitchTransformer, prompt_L: Tensor, tokens: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return logits_after(module, prompt_L[None], torch.tensor([[0, *tokens]]))[0].log_softmax(0)


def exhaustive_best(
    module: SwitchTransformer, prompt_L: Tensor, options: GenerateOptions
) -> tuple[tuple[int, ...], float]:
    scored = []
    for sequence in every_sequence():
        steps = enumerate(sequence)
        total = sum(log_probs_after(module, prompt_L, sequence[:n])[token].item() for n, token in steps)
        scored.append((total / options.divisor(len(sequence)), sequence))
    score, best = max(scored)
    return best, score


@pytest.mark.parametrize(
    ("rule", "alpha"),
    [
        ("gnmt", 0.6),
        ("power", -1.0),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("gnmt", 0.0), ("gnmt", 3.0), ("power", 1.0))),
    ],
)
def test_wide_beam_equals_exhaustive_search(rule: Any, alpha: float) -> None:
    module = make_model(vocab_size=VOCAB, seed=5, tie_embeddings=False)
    prompt_BL = make_batch(rows=3, vocab=VOCAB).encoder_BL
    # As many beams as open prefixes: nothing is ever cut.
    options = GenerateOptions(
        mode="beam", max_length=LENGTH, beams=VOCAB**LENGTH, length_penalty=alpha, length_rule=rule
    )
    result = generate(module, prompt_BL, options=options)
    for row, prompt_L in enumerate(prompt_BL):
        best, score = exhaustive_best(module, prompt_L, options)
        n = int(result.lengths_B[row])
        assert tuple(result.tokens_BT[row, :n].tolist()) == best
        assert result.scores_B[row].item() == pytest.approx(score, rel=1e-9)
        total = result.log_probs_BT[row].sum().item()
        assert total / options.divisor(n) == pytest.approx(score, rel=1e-9)


def naive_beam(module: SwitchTransformer, prompt_L: Tensor, options: GenerateOptions) -> tuple[tuple[int, ...], float]:
    """Beam search of one prompt as transformers 5 describes it, with lists; `false` and `true` may stop too early."""
    K, live, finished = options.beams, [(0.0, ())], []
    for length in range(1, options.max_length + 1):
        found = []
        for score, tokens in live:
            log_probs = log_probs_after(module, prompt_L, tokens).tolist()
            found += [(score + each, (*tokens, token)) for token, each in enumerate(log_probs)]
        found = sorted(found, reverse=True)[: 2 * K]
        is_last = length == options.max_length
        ended = [(score / options.divisor(length), t) for score, t in found[:K] if t[-1] == EOS or is_last]
        finished = sorted(finished + ended, reverse=True)[:K]
        live = [(score, t) for score, t in found if t[-1] != EOS][:K]
        if len(finished) == K and not is_last:
            worst = finished[-1][0]
            reach = options.max_length if options.early_stopping == "never" and options.length_penalty > 0 else length
            if options.early_stopping == "true" or live[0][0] / options.divisor(reach) <= worst:
                break
    return finished[0][1], finished[0][0]


@pytest.mark.parametrize("early", ["never", "true", "false"])
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 1.0, 2.0])
def test_when_the_search_stops(early: Any, alpha: float) -> None:
    module = eager_to_stop()
    prompt_BL = make_batch(rows=6, vocab=6).encoder_BL
    options = GenerateOptions(
        mode="beam", max_length=9, beams=3, length_penalty=alpha, length_rule="power", early_stopping=early
    )
    result = generate(module, prompt_BL, options=options)
    for row, prompt_L in enumerate(prompt_BL):
        best, score = naive_beam(module, prompt_L, options)
        assert tuple(result.tokens_BT[row, : int(result.lengths_B[row])].tolist()) == best
        assert result.scores_B[row].item() == pytest.approx(score, rel=1e-9)


def test_stopping_early_can_cost_the_better_hypothesis() -> None:
    prompt_BL = make_batch(rows=6, vocab=6).encoder_BL
    settings: Any = {"mode": "beam", "max_length": 9, "beams": 3, "length_penalty": 2.0, "length_rule": "power"}
    scores = {}
    for early in ("never", "true"):
        options = GenerateOptions(**settings, early_stopping=early)
        scores[early] = generate(eager_to_stop(), prompt_BL, options=options).scores_B
    assert (scores["never"] >= scores["true"]).all()
    assert (scores["never"] > scores["true"]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_one_beam_is_greedy(kind: str) -> None:
    module = eager_to_stop(moe=kind)
    prompt_BL = make_batch(rows=6, vocab=6).encoder_BL
    greedy = generate(module, prompt_BL, options=GenerateOptions(max_length=12))
    options = GenerateOptions(mode="beam", max_length=12, beams=1, length_penalty=0.0)
    beam = generate(module, prompt_BL, options=options)
    assert greedy.tokens_BT.tolist() == beam.tokens_BT[:, : greedy.tokens_BT.shape[1]].tolist()
    assert torch.allclose(greedy.scores_B, beam.scores_B)
    assert torch.equal(greedy.lengths_B, beam.lengths_B)


def test_more_beams_find_better_sequences() -> None:
    module = make_model(vocab_size=20, seed=2, tie_embeddings=False)
    prompt_BL = make_batch(rows=8, vocab=20).encoder_BL
    scores = []
    for beams in (1, 8):
        options = GenerateOptions(mode="beam", max_length=10, beams=beams, length_penalty=0.0)
        scores.append(generate(module, prompt_BL, options=options).scores_B)
    assert (scores[1] > scores[0] + 1e-6).any()
    assert scores[1].sum() > scores[0].sum()


def test_length_penalty_prefers_longer_sequences() -> None:
    module = eager_to_stop()
    prompt_BL = make_batch(rows=8, vocab=6).encoder_BL
    means = []
    for alpha in (0.0, 5.0):
        options = GenerateOptions(mode="beam", max_length=10, beams=4, length_penalty=alpha)
        means.append(generate(module, prompt_BL, options=options).lengths_B.double().mean().item())
    assert means[0] < means[1]


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_the_returned_tokens(kind: str) -> None:
    """Fails if a beam goes on with the cache of another one."""
    module = make_model(vocab_size=20, seed=2, tie_embeddings=False, moe=kind)
    prompt_BL = make_batch(rows=4, vocab=20).encoder_BL
    options = GenerateOptions(mode="beam", max_length=8, min_length=6, beams=4)
    result = generate(module, prompt_BL, options=options)
    for row, prompt_L in enumerate(prompt_BL):
        tokens = result.tokens_BT[row, : int(result.lengths_B[row])].tolist()
        assert len(tokens) > 6
        for n, token in enumerate(tokens):
            with torch.no_grad():
                logits_V = logits_after(module, prompt_L[None], torch.tensor([[0, *tokens[:n]]]))[0]
            expected = logits_V.log_softmax(0)[token].item()
            assert result.log_probs_BT[row, n].item() == pytest.approx(expected, rel=1e-9)
