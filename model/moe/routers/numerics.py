"""Where a router rounds: everything that differs between the references in their last bits, and nothing else.

Shape suffixes: G groups, S tokens per group, D d_model, E experts, W width of the jitter (D or E).
"""

from __future__ import annotations

import torch
from torch import Tensor

from conf.routing.settings import JitterRule, MoeRules, Rounding
from model.moe.routers.tokens import Noise, Tokens

JITTER = "router_jitter"  # the site of the input's noise


class Numerics:
    """The arithmetic of one router in a layer of a given dtype.

    Decisions, gates and losses are fp32 whatever the activations are (fp64 stays fp64), unless a rule names another
    dtype.
    """

    def __init__(self, rules: MoeRules, activation: torch.dtype) -> None:
        self.rules: Rounding = rules.rounding
        self.jitter: JitterRule = rules.jitter
        self.routed, self.drops_zero_gates = rules.routed, rules.zero_gate == "dropped"
        self.activation = activation
        self.wide_dtype = torch.float64 if activation == torch.float64 else torch.float32

    def wide(self, values: Tensor) -> Tensor:
        """At least fp32."""
        return values.to(self.wide_dtype)

    def logits(self, tokens: Tokens, weight_DE: Tensor) -> Tensor:
        """x W with the jitter of training, `[G, S, E]`; noise touches this copy of the input only."""
        x_GSD = tokens.x_GSD if self.rules.product == "activation" else self.wide(tokens.x_GSD)
        if self.rules.kernel == "activation":
            weight_DE = weight_DE.to(self.activation)
        weight_DE = weight_DE.to(x_GSD.dtype)
        noise = None if tokens.jittered else tokens.noise
        if noise is None or not jitters(self.jitter):
            logits_GSE = x_GSD @ weight_DE
        elif self.jitter.place == "times_input":
            logits_GSE = (x_GSD * jitter_factor(self.jitter, noise, like=x_GSD)) @ weight_DE
        else:
            logits_GSE = x_GSD @ weight_DE
            logits_GSE = logits_GSE + jitter_factor(self.jitter, noise, like=logits_GSE)
        return self.wide(logits_GSE) if self.rules.softmax == "fp32" else logits_GSE

    def probabilities(self, logits_GSE: Tensor, tokens: Tokens) -> Tensor:
        """p to choose by: softmax over the experts, rounded before the choice where the reference does."""
        p_GSE = self.softmax(logits_GSE)
        if self.rules.decision == "activation":
            p_GSE = p_GSE.to(self.activation)
        if self.routed == "zeroed":
            p_GSE = torch.where(tokens.real_GS.unsqueeze(-1), p_GSE, 0.0)
        return p_GSE

    def softmax(self, logits_GSE: Tensor, *, dim: int = -1) -> Tensor:
        """Probabilities in the dtype of the logits; in a narrow dtype the forms round differently at every step."""
        if self.rules.form == "fused":
            return logits_GSE.softmax(dim)
        top = logits_GSE.detach().amax(dim, keepdim=True)
        exp_GSE = (logits_GSE - top).exp()
        total = exp_GSE.sum(dim, keepdim=True)
        if self.rules.form == "over_sum":
            return exp_GSE / total
        # Not torch.logsumexp, whose gradient is exp(l - logsumexp): far from 0 the logsumexp has lost digits of the
        # sum. In a group of padding alone, all at -1e9, it has lost the sum: every p is 1, and the gradient still that
        # of a mean.
        return (logits_GSE - (total.log() + top)).exp()

    def vanished(self, gate_GSK: Tensor) -> Tensor | None:
        """Gates that are 0 in the dtype of the activations, where that costs a choice its slot; None: it never does."""
        return gate_GSK.detach().to(self.activation) == 0 if self.drops_zero_gates else None

    def combine_weights(self, gate_GSK: Tensor) -> Tensor:
        """Gates as they multiply the experts' outputs."""
        return gate_GSK.to(self.activation) if self.rules.combine == "activation" else gate_GSK


def jitters(jitter: JitterRule) -> bool:
    """Whether there is any jitter to draw."""
    return jitter.place != "none" and jitter.width > 0


def jitter_factor(jitter: JitterRule, noise: Noise, *, like: Tensor) -> Tensor:
    """U(1 - j, 1 + j) of the shape and dtype of `like`: at least fp32 unless the router itself computes in less, since
    bf16 has five values near 1."""
    uniform_GSW = noise.uniform(JITTER, like.shape[-1])
    return 1.0 + jitter.width * (2.0 * uniform_GSW.to(like.dtype) - 1.0)


@torch.no_grad()
def ranks(logits_GSE: Tensor, p_GSE: Tensor) -> Tensor:
    """What tokens are compared by: p, where fp32 by way of fp64.

    A sum over experts in fp32 depends on their order, so tokens with the same logits for other experts, whose gates are
    equal, would differ in the last bit, and the later one could come first.
    """
    if p_GSE.dtype != torch.float32 or logits_GSE.dtype != torch.float32:
        return p_GSE
    return torch.where(p_GSE == 0, p_GSE, logits_GSE.double().softmax(-1).float())
