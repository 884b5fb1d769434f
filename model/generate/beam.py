"""Beam search: of all hypotheses the best sum of log-probabilities divided by a power of the length.

Shape suffixes: B prompts, K beams per prompt, R = B * K rows, C candidates, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.contract import PAD, Generative
from model.generate.constraints import NEVER, constrain
from model.generate.options import EOS, GenerateOptions, GenerateResult
from model.generate.sample import lengths


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

    A hypothesis ends when EOS is among the best `beams` candidates; at `max_length` those candidates all end. How long
    a prompt is searched is said by `options.early_stopping`; nothing that ends later is then looked at.
    """
    B, K, device = len(inputs_BL), options.beams, inputs_BL.device
    decoding = module.start_decoding(inputs_BL, copies=K, max_length=options.max_length, mode=options.routing)
    last_R = torch.full((B * K,), PAD, device=device)
    first_row_B1 = torch.arange(B, device=device)[:, None] * K
    live = _empty(B, K, options.max_length, decoding.dtype, device)
    live.scores_BK[:, 0] = 0.0  # all beams start equal; one of them is enough
    finished = _empty(B, K, options.max_length, decoding.dtype, device)
    searched_B = torch.ones(B, dtype=torch.bool, device=device)
    step = 0
    for step in range(options.max_length):
        model_RV = decoding.next_logits(last_R).log_softmax(-1)
        allowed_RV = constrain(model_RV, live.tokens_BKT[..., :step].flatten(0, 1), options)
        candidates, parent_BC = _expand(live, model_RV.unflatten(0, (B, K)), allowed_RV.unflatten(0, (B, K)), step)
        ends_BC = (candidates.tokens_BKT[..., step] == EOS) | (step + 1 == options.max_length)
        finished = _keep_finished(finished, candidates, ends_BC & searched_B[:, None], options.divisor(step + 1))
        live, choice_BK = _keep_live(candidates, ends_BC, K)
        searched_B = searched_B & _can_improve(live, finished, step + 1, options)
        if all_finished(not bool(searched_B.any())):
            break
        beam_BK = parent_BC.gather(1, choice_BK)
        decoding.reorder((first_row_B1 + beam_BK).flatten())
        last_R = live.tokens_BKT[..., step].flatten()
    return _result(finished, step + 1)


def _empty(B: int, K: int, T: int, dtype: torch.dtype, device: torch.device) -> Hypotheses:
    return Hypotheses(
        tokens_BKT=torch.full((B, K, T), PAD, dtype=torch.int64, device=device),
        log_probs_BKT=torch.zeros(B, K, T, dtype=dtype, device=device),
        scores_BK=torch.full((B, K), NEVER, dtype=dtype, device=device),
    )


def _expand(live: Hypotheses, model_BKV: Tensor, allowed_BKV: Tensor, step: int) -> tuple[Hypotheses, Tensor]:
    """The best 2K continuations, best first, and the beam each came from. At most K of them are EOS: K can go on."""
    K, V = model_BKV.shape[1:]
    total_BN = (live.scores_BK[..., None] + allowed_BKV).flatten(1)
    scores_BC, flat_BC = total_BN.topk(min(2 * K, K * V))
    parent_BC, token_BC = flat_BC // V, flat_BC % V
    candidates = live.take(parent_BC, scores_BC)
    candidates.tokens_BKT[..., step] = token_BC
    candidates.log_probs_BKT[..., step] = model_BKV.flatten(1).gather(1, flat_BC)
    return candidates, parent_BC


def _keep_finished(finished: Hypotheses, candidates: Hypotheses, ends_BC: Tensor, divisor: float) -> Hypotheses:
    K = finished.scores_BK.shape[1]
    counts_BC = ends_BC.clone()
    counts_BC[:, K:] = False  # an end that is not among the best K would not have been kept as a beam either
    scores_BC = (candidates.scores_BK / divisor).masked_fill(~counts_BC, NEVER)
    return _best(finished, replace(candidates, scores_BK=scores_BC), K)


def _keep_live(candidates: Hypotheses, ends_BC: Tensor, K: int) -> tuple[Hypotheses, Tensor]:
    scores_BK, choice_BK = candidates.scores_BK.masked_fill(ends_BC, NEVER).topk(K)
    return candidates.take(choice_BK, scores_BK), choice_BK


def _can_improve(live: Hypotheses, finished: Hypotheses, length: int, options: GenerateOptions) -> Tensor:
    """Of each prompt whether the search goes on after `length` tokens."""
    is_exact = options.early_stopping == "never"
    # Sums only fall and with a positive alpha the divisor only grows: what an open hypothesis can reach at most.
    reach = options.max_length if is_exact and options.length_penalty > 0 else length
    best_B = live.scores_BK.amax(1) / options.divisor(reach)
    # -inf while fewer than K are finished. The best is enough where nothing open can win: it is all that is returned.
    beaten_B = finished.scores_BK.amax(1) if is_exact else finished.scores_BK.amin(1)
    goes_on_B = best_B > beaten_B
    return goes_on_B & ~finished.scores_BK.isfinite().all(1) if options.early_stopping == "true" else goes_on_B


def _best(one: Hypotheses, other: Hypotheses, K: int) -> Hypotheses:
    """The best K of both."""
    both = Hypotheses(
        tokens_BKT=torch.cat([one.tokens_BKT, other.tokens_BKT], 1),
        log_probs_BKT=torch.cat([one.log_probs_BKT, other.log_probs_BKT], 1),
        scores_BK=torch.cat([one.scores_BK, other.scores_BK], 1),
    )
    scores_BK, index_BK = both.scores_BK.topk(K)
    return both.take(index_BK, scores_BK)


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
