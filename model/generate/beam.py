"""Beam search with the length penalty of T5 (Wu et al., arXiv 1609.08144): sum of log p / ((5 + n) / 6) ** alpha.

Shape suffixes: B prompts, K beams per prompt, R = B * K rows, C candidates, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.contract import PAD, Generative
from model.generate.options import EOS, GenerateOptions, GenerateResult
from model.generate.sample import forbid, lengths

NEVER = float("-inf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypotheses:
    """Partial or finished sequences, best first is not promised. Impossible ones have score -inf."""

    tokens_BKT: Tensor
    log_probs_BKT: Tensor
    scores_BK: Tensor  # live: sum of log-probabilities; finished: divided by the penalty

    def take(self, index_BK: Tensor, scores_BK: Tensor) -> Hypotheses:
        """The hypotheses at `index_BK` along the beam dim, with new scores."""
        rows_BKT = index_BK[..., None].expand(-1, -1, self.tokens_BKT.shape[-1])
        return Hypotheses(
            tokens_BKT=self.tokens_BKT.gather(1, rows_BKT),
            log_probs_BKT=self.log_probs_BKT.gather(1, rows_BKT),
            scores_BK=scores_BK,
        )


def beam_search(
    module: Generative,
    inputs_BL: Tensor,
    options: GenerateOptions,
    all_finished: Callable[[bool], bool],
) -> GenerateResult:
    """The best hypothesis of each prompt. See `model.generate.generate`.

    A hypothesis ends when EOS is among the best `beams` candidates; those still open at `max_length` compete as they
    are. A prompt is done when no open hypothesis can still beat its best finished one.
    """
    B, K, device = len(inputs_BL), options.beams, inputs_BL.device
    decoding = module.start_decoding(inputs_BL, copies=K, max_length=options.max_length, mode="no_drop")
    last_R = torch.full((B * K,), PAD, device=device)
    first_row_B1 = torch.arange(B, device=device)[:, None] * K
    live = _empty(B, K, options.max_length, decoding.dtype, device)
    live.scores_BK[:, 0] = 0.0  # all beams start equal; one of them is enough
    finished = _empty(B, K, options.max_length, decoding.dtype, device)
    step = 0
    for step in range(options.max_length):
        model_RV = decoding.next_logits(last_R).log_softmax(-1)
        candidates, parent_BC = _expand(live, model_RV.unflatten(0, (B, K)), step, options)
        finished = _keep_finished(finished, candidates, step, options)
        live, choice_BK = _keep_live(candidates, step, K)
        if all_finished(_all_done(live, finished, options)):
            break
        beam_BK = parent_BC.gather(1, choice_BK)
        decoding.reorder((first_row_B1 + beam_BK).flatten())
        last_R = live.tokens_BKT[..., step].flatten()
    else:
        finished = _best(finished, _scored(live, options.max_length, options), K)
    return _result(finished, step + 1)


def penalty(length: int, alpha: float) -> float:
    """What a sum of log-probabilities of `length` tokens is divided by."""
    return ((5 + length) / 6) ** alpha


def _empty(B: int, K: int, T: int, dtype: torch.dtype, device: torch.device) -> Hypotheses:
    return Hypotheses(
        tokens_BKT=torch.full((B, K, T), PAD, dtype=torch.int64, device=device),
        log_probs_BKT=torch.zeros(B, K, T, dtype=dtype, device=device),
        scores_BK=torch.full((B, K), NEVER, dtype=dtype, device=device),
    )


def _expand(live: Hypotheses, model_BKV: Tensor, step: int, options: GenerateOptions) -> tuple[Hypotheses, Tensor]:
    """The best 2K continuations, best first, and the beam each came from. At most K of them end: K go on."""
    K, V = model_BKV.shape[1:]
    allowed_BKV = forbid(model_BKV, step, options)
    total_BN = (live.scores_BK[..., None] + allowed_BKV).flatten(1)
    scores_BC, flat_BC = total_BN.topk(min(2 * K, K * V))
    parent_BC, token_BC = flat_BC // V, flat_BC % V
    candidates = live.take(parent_BC, scores_BC)
    candidates.tokens_BKT[..., step] = token_BC
    candidates.log_probs_BKT[..., step] = model_BKV.flatten(1).gather(1, flat_BC)
    return candidates, parent_BC


def _keep_finished(finished: Hypotheses, candidates: Hypotheses, step: int, options: GenerateOptions) -> Hypotheses:
    K = finished.scores_BK.shape[1]
    ends_BC = candidates.tokens_BKT[..., step] == EOS
    ends_BC[:, K:] = False  # an end that is not among the best K would not have been kept as a beam either
    scored = _scored(candidates, step + 1, options)
    scores_BC = scored.scores_BK.masked_fill(~ends_BC, NEVER)
    return _best(finished, Hypotheses(
        tokens_BKT=scored.tokens_BKT, log_probs_BKT=scored.log_probs_BKT, scores_BK=scores_BC,
    ), K)  # fmt: skip


def _keep_live(candidates: Hypotheses, step: int, K: int) -> tuple[Hypotheses, Tensor]:
    ends_BC = candidates.tokens_BKT[..., step] == EOS
    scores_BK, choice_BK = candidates.scores_BK.masked_fill(ends_BC, NEVER).topk(K)
    return candidates.take(choice_BK, scores_BK), choice_BK


def _scored(open_ones: Hypotheses, length: int, options: GenerateOptions) -> Hypotheses:
    """Hypotheses of `length` tokens with their sums divided by the penalty."""
    return Hypotheses(
        tokens_BKT=open_ones.tokens_BKT,
        log_probs_BKT=open_ones.log_probs_BKT,
        scores_BK=open_ones.scores_BK / penalty(length, options.length_penalty),
    )


def _best(one: Hypotheses, other: Hypotheses, K: int) -> Hypotheses:
    """The best K of both."""
    both = Hypotheses(
        tokens_BKT=torch.cat([one.tokens_BKT, other.tokens_BKT], 1),
        log_probs_BKT=torch.cat([one.log_probs_BKT, other.log_probs_BKT], 1),
        scores_BK=torch.cat([one.scores_BK, other.scores_BK], 1),
    )
    scores_BK, index_BK = both.scores_BK.topk(K)
    return both.take(index_BK, scores_BK)


def _all_done(live: Hypotheses, finished: Hypotheses, options: GenerateOptions) -> bool:
    # Sums only fall and the penalty only grows, so this is the best an open hypothesis can still reach.
    bound_B = live.scores_BK.amax(1) / penalty(options.max_length, options.length_penalty)
    return bool((finished.scores_BK.amax(1) >= bound_B).all())


def _result(finished: Hypotheses, steps: int) -> GenerateResult:
    best_B1 = finished.scores_BK.argmax(1, keepdim=True)
    best = finished.take(best_B1, finished.scores_BK.gather(1, best_B1))
    tokens_BT = best.tokens_BKT[:, 0, :steps]
    return GenerateResult(
        tokens_BT=tokens_BT,
        lengths_B=lengths(tokens_BT),
        log_probs_BT=best.log_probs_BKT[:, 0, :steps],
        scores_B=best.scores_BK[:, 0],
    )
