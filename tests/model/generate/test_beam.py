from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from model.generate import GenerateOptions, generate
from model.generate.beam import penalty
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


def exhaustive_best(module: SwitchTransformer, prompt_L: Tensor, alpha: float) -> tuple[tuple[int, ...], float]:
    scored = []
    for sequence in every_sequence():
        total = 0.0
        for n, token in enumerate(sequence):
            inputs_BT = torch.tensor([[0, *sequence[:n]]])
            with torch.no_grad():
                total += logits_after(module, prompt_L[None], inputs_BT)[0].log_softmax(0)[token].item()
        scored.append((total / penalty(len(sequence), alpha), sequence))
    score, best = max(scored)
    return best, score


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_wide_beam_equals_exhaustive_search(alpha: float) -> None:
    module = make_model(vocab_size=VOCAB, seed=5, tie_embeddings=False)
    prompt_BL = make_batch(rows=3, vocab=VOCAB).encoder_BL
    # As many beams as open prefixes: nothing is ever cut.
    options = GenerateOptions(mode="beam", max_length=LENGTH, beams=VOCAB**LENGTH, length_penalty=alpha)
    result = generate(module, prompt_BL, options=options)
    for row, prompt_L in enumerate(prompt_BL):
        best, score = exhaustive_best(module, prompt_L, alpha)
        n = int(result.lengths_B[row])
        assert tuple(result.tokens_BT[row, :n].tolist()) == best
        assert result.scores_B[row].item() == pytest.approx(score, rel=1e-9)
        total = result.log_probs_BT[row].sum().item()
        assert total / penalty(n, alpha) == pytest.approx(score, rel=1e-9)


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
