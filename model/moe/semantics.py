"""The named routing semantics as a table of settings: what the reference codes do differently, one row each.

Capacity and group size follow the same names in `conf.derive`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from conf.schema import Semantics


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterSemantics:
    """Settings of the Switch (top-1) router and of its losses."""

    padding: Literal["skipped", "routed"]  # skipped: no slot and gate 0; routed: padding is a token like any other
    decision: Literal["fp32", "activation"]  # dtype that probabilities are rounded to before the arg max
    jitter: Literal["times_input", "plus_logits"]  # where U(1 - j, 1 + j) goes in training
    first_slot: int  # position of an expert's first token; 1 leaves slot 0 empty and one token less room
    aux_scale: Literal["real_share", "one"]  # factor on E * sum f * P, whose means run over padding as well
    z_tokens: Literal["real", "all"]  # tokens over which the z-loss is a mean
    z_scale: Literal["aux_weight", "one"]  # factor on the z-loss's weight
    over_layers: Literal["sum", "mean", "stack_mean"]  # how layers' losses join; stack_mean: mean per stack, then sum


SEMANTICS: dict[Semantics, RouterSemantics] = {
    # Mesh-TensorFlow. Its mask multiplies P after the mean over tokens: padding counts in f and P, and the group's term
    # is scaled by its share of real tokens.
    "mesh_tf": RouterSemantics(
        padding="skipped",
        decision="fp32",
        jitter="times_input",
        first_slot=0,
        aux_scale="real_share",
        z_tokens="real",
        z_scale="aux_weight",  # added before the layer multiplies by the auxiliary weight (PARITY b1.10)
        over_layers="sum",
    ),
    # flaxformer with `ignore_padding_tokens=False`, its default.
    "flaxformer": RouterSemantics(
        padding="routed",
        decision="fp32",
        jitter="times_input",
        first_slot=0,
        aux_scale="one",
        z_tokens="all",
        z_scale="one",
        over_layers="mean",
    ),
    # Hugging Face: probabilities are cast back to the input's dtype before the arg max. It joins a stack's layers along
    # the tokens before it takes f and P (b3.5); here each layer has its own f * P, so that collapsed layers do not
    # cancel. With one expert layer in a stack the two are equal; the z-loss always is.
    "hf": RouterSemantics(
        padding="routed",
        decision="activation",
        jitter="times_input",
        first_slot=0,
        aux_scale="one",
        z_tokens="all",
        z_scale="one",
        over_layers="stack_mean",
    ),
    # The listing in the paper's appendix F: jitter is added to logits; an inclusive count is compared with `less`.
    "paper": RouterSemantics(
        padding="routed",
        decision="fp32",
        jitter="plus_logits",
        first_slot=1,
        aux_scale="one",
        z_tokens="all",
        z_scale="one",
        over_layers="sum",
    ),
}
