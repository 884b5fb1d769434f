"""Greedy decoding and sampling: one token per row and step.

Shape suffixes: B batch, L input length, T generated positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.contract import PAD, Generative
from model.generate.constraints import constrain
from model.generate.options import EOS, GenerateOptions, GenerateResult


def choose_tokens(
    module: Generative,
    inputs_BL: Tensor,
    options: GenerateOptions,
    all_finished: Callable[[bool], bool],
) -> GenerateResult:
    """Decode by the most probable token (`greedy`) or by drawing (`sample`). See `model.generate.generate`."""
    decoding = module.start_decoding(inputs_BL, copies=1, max_length=options.max_length, mode=options.routing)
    generator = torch.Generator("cpu").manual_seed(options.seed)
    last_B = torch.full_like(inputs_BL[:, 0], PAD)
    finished_B = torch.zeros_like(last_B, dtype=torch.bool)
    tokens_BT = inputs_BL.new_full((len(inputs_BL), options.max_length), PAD)
    log_probs = []
    for step in range(options.max_length):
        logits_BV = decoding.next_logits(last_B)
        model_BV = logits_BV.log_softmax(-1)
        allowed_BV = constrain(logits_BV, tokens_BT[:, :step], options)
        if options.mode == "greedy":
            chosen_B = allowed_BV.argmax(-1)
        else:
            # Drawn for all rows, finished or not, so that the number of draws per step is fixed.
            uniform_B = torch.rand(len(last_B), generator=generator, dtype=torch.float64).to(last_B.device)
            chosen_B = draw(allowed_BV, uniform_B, options)
        last_B = chosen_B.masked_fill(finished_B, PAD)
        tokens_BT[:, step] = last_B
        log_probs.append(model_BV.gather(1, chosen_B[:, None])[:, 0].masked_fill(finished_B, 0.0))
        finished_B = finished_B | (last_B == EOS)
        if all_finished(bool(finished_B.all())):
            break
    log_probs_BT = torch.stack(log_probs, 1)
    tokens_BT = tokens_BT[:, : len(log_probs)]
    return GenerateResult(
        tokens_BT=tokens_BT,
        lengths_B=lengths(tokens_BT),
        log_probs_BT=log_probs_BT,
        scores_B=log_probs_BT.sum(1),
    )


def draw(logits_BV: Tensor, uniform_B: Tensor, options: GenerateOptions) -> Tensor:
    """Token ids [B]: temperature, then top-k, then top-p, then the inverse of the cumulative distribution."""
    heated_BV = (logits_BV.double() / options.temperature).softmax(-1)
    sorted_BV, ids_BV = heated_BV.sort(dim=-1, descending=True, stable=True)
    if options.top_k is not None:
        sorted_BV[:, options.top_k :] = 0.0
        sorted_BV /= sorted_BV.sum(-1, keepdim=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    sorted_BV = sorted_BV.masked_fill(before_BV >= options.top_p, 0.0)
    cumulative_BV = sorted_BV.cumsum(-1)
    # Below the total, because a uniform is at most 1 - 2**-53: the place is always that of a kept token.
    threshold_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
    place_B1 = (cumulative_BV <= threshold_B1).sum(-1, keepdim=True)
    return ids_BV.gather(1, place_B1)[:, 0]


def lengths(tokens_BT: Tensor) -> Tensor:
    """Tokens up to and including the first EOS; all positions where there is none."""
    ended_BT = (tokens_BT == EOS).cumsum(-1) > 0
    return tokens_BT.shape[-1] - ended_BT.sum(-1) + ended_BT.any(-1)
