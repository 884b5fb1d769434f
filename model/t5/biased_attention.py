"""softmax(q k^T + position + mask) v with a trained position bias, forward and backward written out.

Where a bias wants a gradient, torch's fused attention falls back to plain operations on most devices: it adds the bias
expanded over the batch and keeps its gradient at that size in every layer. Here the bias stays `[1, H, Q, M]`, the mask
`[B, 1, 1, M]`, both are added in place, and the bias's gradient is the sum over the batch of what softmax's backward
leaves. Long inputs are worked through in blocks of queries: only one block's scores exist at a time, and backward
computes them again.

Shape suffixes: B batch, H heads, Q queries, M keys, K d_kv; P queries of one block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Products that a processor without bf16 arithmetic makes in bf16 are slower than in fp32 by far (docs/log.md).
NATIVE_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
BLOCK_ELEMENTS = 2**25  # scores held at once, beyond which queries are cut into blocks (64 MiB in bf16)


def biased_attention(
    q_BHQK: Tensor, k_BHMK: Tensor, v_BHMK: Tensor, bias_1HQM: Tensor, mask_B11M: Tensor | None
) -> Tensor:
    """`[B, H, Q, K]`. Differentiable in all but the additive mask, which broadcasts over heads and queries."""
    narrow = q_BHQK.dtype
    if narrow == torch.bfloat16 and not NATIVE_BF16:
        q_BHQK, k_BHMK, v_BHMK, bias_1HQM = q_BHQK.float(), k_BHMK.float(), v_BHMK.float(), bias_1HQM.float()
    return _BiasedAttention.apply(q_BHQK, k_BHMK, v_BHMK, bias_1HQM, mask_B11M).to(narrow)  # type: ignore[union-attr]


def _weights(q_BHPK: Tensor, k_BHMK: Tensor, bias_1HPM: Tensor, mask_B11M: Tensor | None) -> Tensor:
    """Attention weights of a block of queries, in the dtype of the products."""
    scores_BHPM = q_BHPK @ k_BHMK.transpose(-1, -2)
    scores_BHPM += bias_1HPM
    if mask_B11M is not None:
        scores_BHPM += mask_B11M
    return torch.softmax(scores_BHPM, -1)


def _blocks(q_BHQK: Tensor, keys: int) -> list[slice]:
    B, H, Q, _ = q_BHQK.shape
    rows = max(1, min(Q, BLOCK_ELEMENTS // max(1, B * H * keys)))
    return [slice(first, min(first + rows, Q)) for first in range(0, Q, rows)]


class _BiasedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BHQK: Tensor, k_BHMK: Tensor, v_BHMK: Tensor, bias_1HQM: Tensor, mask_B11M: Tensor | None
    ) -> Tensor:
        blocks = _blocks(q_BHQK, k_BHMK.shape[2])
        outs, kept_BHQM = [], None
        for block in blocks:
            weights_BHPM = _weights(q_BHQK[:, :, block], k_BHMK, bias_1HQM[:, :, block], mask_B11M)
            outs.append(weights_BHPM @ v_BHMK)
            kept_BHQM = weights_BHPM if len(blocks) == 1 else None
        ctx.save_for_backward(q_BHQK, k_BHMK, v_BHMK, bias_1HQM, mask_B11M, kept_BHQM)
        return outs[0] if len(outs) == 1 else torch.cat(outs, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BHQK, k_BHMK, v_BHMK, bias_1HQM, mask_B11M, kept_BHQM = ctx.saved_tensors
        grad_k_BHMK = grad_v_BHMK = None
        grad_q, grad_bias = [], []
        for block in _blocks(q_BHQK, k_BHMK.shape[2]):
            q_BHPK, grad_BHPK = q_BHQK[:, :, block], grads[0][:, :, block]
            weights_BHPM = kept_BHQM
            if weights_BHPM is None:
                weights_BHPM = _weights(q_BHPK, k_BHMK, bias_1HQM[:, :, block], mask_B11M)
            grad_BHPM = torch.ops.aten._softmax_backward_data(
                grad_BHPK @ v_BHMK.transpose(-1, -2), weights_BHPM, -1, weights_BHPM.dtype
            )
            grad_bias.append(grad_BHPM.sum(0, keepdim=True))
            grad_q.append(grad_BHPM @ k_BHMK)
            part_k, part_v = grad_BHPM.transpose(-1, -2) @ q_BHPK, weights_BHPM.transpose(-1, -2) @ grad_BHPK
            grad_k_BHMK = part_k if grad_k_BHMK is None else grad_k_BHMK + part_k
            grad_v_BHMK = part_v if grad_v_BHMK is None else grad_v_BHMK + part_v
        return torch.cat(grad_q, 2), grad_k_BHMK, grad_v_BHMK, torch.cat(grad_bias, 2), None
