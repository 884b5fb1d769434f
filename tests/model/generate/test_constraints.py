"""What a next token may be, against loops that a reader can check by eye."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.generate import GenerateOptions, generate
from model.generate.constraints import NEVER, constrain
from model.generate.options import EOS
from tests.model.generate.test_sample import eager_to_stop, logits_after
from tests.model.t5.build import make_batch, make_model

ROWS = torch.tensor([[5, 6, 5, 6, 5], [2, 2, 2, 2, 2], [3, 4, 5, 3, 4], [7, 0, 7, 3, 0]])


def scores(rows: int = len(ROWS), vocab: int = 9) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def completes_a_repetition(tokens: list[int], token: int, size: int) -> bool:
    row = [0, *tokens, token]  # the start token belongs to the row
    ngrams = [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]
    return len(row) >= size and ngrams[-1] in ngrams[:-1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_no_ngram_occurs_twice(size: int, length: int) -> None:
    got = constrain(scores(), ROWS[:, :length], GenerateOptions(no_repeat_ngram=size))
    for row, tokens in enumerate(ROWS[:, :length].tolist()):
        for token in range(9):
            wanted = NEVER if completes_a_repetition(tokens, token, size) else scores()[row, token]
            assert got[row, token] == wanted


def test_tokens_of_the_row_are_made_less_likely_whatever_the_sign_of_their_score() -> None:
    got = constrain(scores(), ROWS, GenerateOptions(repetition_penalty=1.5))
    for row, tokens in enumerate(ROWS.tolist()):
        for token in range(9):
            score = float(scores()[row, token])
            said = score * 1.5 if score < 0 else score / 1.5
            assert float(got[row, token]) == (said if token in {0, *tokens} else score)


def test_bad_words_are_never_completed() -> None:
    got = constrain(scores(), ROWS, GenerateOptions(bad_words=((8,), (6, 5, 2), (4, 3), (1, 1, 1, 1, 1, 1, 1, 4))))
    forbidden = {(row, 8) for row in range(4)} | {(0, 2), (2, 3)}
    assert {tuple(place) for place in (got == NEVER).nonzero().tolist()} == forbidden


def test_ids_the_tokenizer_does_not_know_and_an_early_end_are_never_chosen() -> None:
    got = constrain(scores(), ROWS, GenerateOptions(known_ids=3, min_length=6))
    assert (got[:, 3:] == NEVER).all()
    assert (got[:, EOS] == NEVER).all()
    assert torch.equal(got[:, [0, 2]], scores()[:, [0, 2]])
    assert torch.equal(constrain(scores(), ROWS, GenerateOptions(known_ids=9, min_length=5)), scores())


@pytest.mark.parametrize("mode", ["greedy", "sample", "beam"])
def test_generated_rows_keep_to_it(mode: str) -> None:
    module = make_model(vocab_size=20, seed=2, tie_embeddings=False)
    prompt_BL = make_batch(rows=5, vocab=20).encoder_BL
    options = GenerateOptions(mode=mode, max_length=15, min_length=14, no_repeat_ngram=2, bad_words=((4,),))  # type: ignore[arg-type]
    for row in generate(module, prompt_BL, options=options).tokens_BT.tolist():
        pairs = list(zip([0, *row], row, strict=False))
        assert len(set(pairs)) == len(pairs)
        assert 4 not in row


def test_a_repetition_penalty_acts_on_logits_and_not_on_their_logarithms() -> None:
    """As in transformers: of a token whose logit is above 0 it is divided, though its log-probability is below 0."""
    module = eager_to_stop()
    prompt_BL = make_batch(rows=6, vocab=6).encoder_BL
    options = GenerateOptions(max_length=6, min_length=5, repetition_penalty=1.7)
    result = generate(module, prompt_BL, options=options)
    above = 0
    for row, prompt_L in enumerate(prompt_BL):
        tokens: list[int] = []
        while len(tokens) < 6:
            with torch.no_grad():
                logits = logits_after(module, prompt_L[None], torch.tensor([[0, *tokens]]))[0].tolist()
            above += sum(logits[token] > 0 for token in {0, *tokens})
            for token in {0, *tokens}:
                logits[token] *= 1.7 if logits[token] < 0 else 1 / 1.7
            if len(tokens) < 5:
                logits[EOS] = NEVER
            tokens.append(logits.index(max(logits)))
        assert result.tokens_BT[row].tolist() == tokens
    assert above, "otherwise the sign is not tested"
