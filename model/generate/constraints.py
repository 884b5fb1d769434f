"""What a next token may be: scores after everything that forbids or discourages tokens, in transformers' order.

Shape suffixes: R rows, n tokens of a row so far, V vocabulary, W windows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.contract import PAD
from model.generate.options import EOS, GenerateOptions

NEVER = float("-inf")


def constrain(scores_RV: Tensor, tokens_Rn: Tensor, options: GenerateOptions) -> Tensor:
    """Scores (logits or log-probabilities) of what follows `tokens_Rn`; -inf for what must not.

    The start token counts as one of the row, as it does in transformers.
    """
    ids_Rn = F.pad(tokens_Rn, (1, 0), value=PAD)
    if options.repetition_penalty != 1.0:
        said_RV = _marked(scores_RV, ids_Rn, torch.ones_like(ids_Rn, dtype=torch.bool))
        penalty = options.repetition_penalty
        less_RV = torch.where(scores_RV < 0, scores_RV * penalty, scores_RV / penalty)
        scores_RV = torch.where(said_RV, less_RV, scores_RV)
    forbidden_RV = _repeated(scores_RV, ids_Rn, options.no_repeat_ngram)
    for words in options.bad_words:
        _add_bad_words(forbidden_RV, ids_Rn, words)
    if options.known_ids is not None:
        forbidden_RV[:, options.known_ids :] = True
    if tokens_Rn.shape[1] < options.min_length:
        forbidden_RV[:, EOS] = True
    return scores_RV.masked_fill(forbidden_RV, NEVER)


def _repeated(scores_RV: Tensor, ids_Rn: Tensor, size: int) -> Tensor:
    """Whether a token would complete an n-gram of `size` tokens that its row has already; 0: nothing is."""
    n = ids_Rn.shape[1]
    if size == 0 or n < size:
        return torch.zeros_like(scores_RV, dtype=torch.bool)
    windows_RWn = ids_Rn.unfold(1, size, 1)
    last_Rn = ids_Rn[:, n - size + 1 :]
    same_RW = (windows_RWn[..., :-1] == last_Rn[:, None]).all(-1)
    return _marked(scores_RV, windows_RWn[..., -1], same_RW)


def _marked(scores_RV: Tensor, ids_RW: Tensor, counts_RW: Tensor) -> Tensor:
    """Of each row the vocabulary with the ids that count marked."""
    R, V = scores_RV.shape
    marked_RV = torch.zeros(R, V + 1, dtype=torch.bool, device=scores_RV.device)
    return marked_RV.scatter_(1, torch.where(counts_RW, ids_RW, V), True)[:, :V]


def _add_bad_words(forbidden_RV: Tensor, ids_Rn: Tensor, words: tuple[int, ...]) -> None:
    *first, last = words
    if len(first) <= ids_Rn.shape[1]:
        end_Rn = ids_Rn[:, ids_Rn.shape[1] - len(first) :]
        forbidden_RV[:, last] |= (end_Rn == torch.tensor(first, dtype=torch.int64, device=ids_Rn.device)).all(-1)
