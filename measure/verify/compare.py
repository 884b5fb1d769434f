"""What is compared, within which limits, and the ledger in which a rank notes the largest error of each quantity.

The error of a tensor is max|a - b| / max|b|, b the reference's whole tensor; of updated parameters it is
max|a - b| / learning rate. Each rank compares the shards it holds, so copies on several ranks are all compared.
Shape suffixes: G groups, S tokens per group, E experts, K choices per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from measure.verify.observe.record import Decision
from measure.verify.reference.step_file import LOGITS, SLOTS, TOKENS, ReferenceStep

Precision = Literal["fp32", "bf16", "fp64"]
Quantity = Literal["output", "routing", "loss", "aux", "z", "gradient", "norm", "parameter", "moment"]
# In causal order: the first that differs is the one to look at.
QUANTITIES: tuple[Quantity, ...] = ("routing", "loss", "aux", "z", "gradient", "norm", "parameter", "moment")
FORWARD: tuple[Quantity, ...] = ("routing", "loss", "aux", "z")
# Largest errors that pass; a quantity that is not here is measured and shown, but not judged.
LIMITS: dict[Precision, dict[Quantity, float]] = {
    "fp32": {
        "routing": 0.0, "loss": 1e-5, "aux": 1e-5, "z": 1e-5, "gradient": 5e-5, "norm": 1e-5, "parameter": 0.02,
        "moment": 1e-4,
    },
    "bf16": {"routing": 0.0, "loss": 1e-2, "aux": 1e-2, "z": 1e-2, "norm": 5e-2},
    "fp64": {"routing": 0.0, "loss": 1e-10, "aux": 1e-10, "z": 1e-10, "gradient": 1e-10, "norm": 1e-10},
}  # fmt: skip
# Outputs of sublayers are not judged: they tell where what is judged begins to differ.
OUTPUT_LIMITS: dict[Precision, float] = {"fp32": 1e-5, "fp64": 1e-12}
KEY = "the noise's key"
TIE = 1e-5  # logits, or gates that tokens are ranked by, this close may be ordered either way
MOST_TOKENS = 5_000  # different tokens that a rank lists one by one


@dataclass(frozen=True, kw_only=True, slots=True)
class Error:
    """One error and where it is."""

    quantity: Quantity
    error: float
    where: str  # a parameter, a layer, or "" for numbers of the whole step
    step: int
    position: int  # of `where` in the model, to tell which comes first

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts by cause: step, quantity, place in the model (of gradients: as backward comes to it)."""
        return self.step, -1 if self.quantity == "output" else QUANTITIES.index(self.quantity), self.position


@dataclass(kw_only=True, slots=True)
class Findings:
    """What a rank found in one layout."""

    worst: dict[Quantity, Error] = field(default_factory=dict)
    first: Error | None = None  # the first past its limit
    output: Error | None = None  # the first sublayer whose output differs; not judged
    past: dict[str, set[str]] = field(default_factory=dict)  # places past the limit, by "step quantity"
    tokens: set[tuple[int, int, int, int]] = field(default_factory=set)  # routed otherwise: step, layer, group, token
    excused: set[tuple[int, int, int, int]] = field(default_factory=set)  # of these, near a tie
    covered: dict[str, set[tuple[tuple[int, ...], tuple[int, ...]]]] = field(default_factory=dict)  # offsets, sizes

    def join(self, other: Findings) -> None:
        """Take in what another rank found."""
        for error in other.worst.values():
            if error.quantity not in self.worst or error.error > self.worst[error.quantity].error:
                self.worst[error.quantity] = error
        self.first, self.output = _earlier(self.first, other.first), _earlier(self.output, other.output)
        for key, places in other.past.items():
            self.past.setdefault(key, set()).update(places)
        self.tokens |= other.tokens
        self.excused |= other.excused
        for name, parts in other.covered.items():
            self.covered.setdefault(name, set()).update(parts)

    def same_as_first(self) -> set[str]:
        """Every place at which the first quantity to differ is past its limit in that step."""
        return set() if self.first is None else self.past[_key(self.first)]


def _earlier(one: Error | None, other: Error | None) -> Error | None:
    found = [error for error in (one, other) if error is not None]
    return min(found, key=lambda error: error.order, default=None)


def _key(error: Error) -> str:
    return f"{error.step} {error.quantity}"


class Ledger:
    """Notes errors of one layout on one rank."""

    def __init__(
        self, limits: Mapping[Quantity, float], *, tie: float | None = None, output_limit: float = math.inf
    ) -> None:
        """`tie`: how close logits excuse another order; None: `TIE`."""
        self._limits, self._tie, self._output_limit = limits, tie, output_limit
        self.findings = Findings()

    def note(
        self,
        quantity: Quantity,
        error: float,
        *,
        step: int,
        where: str = "",
        position: int = 0,
        limit: float | None = None,
    ) -> None:
        """Keep the error if it is the largest of its quantity, or the first past its limit. NaN counts as infinite.

        `limit` takes the place of the quantity's own.
        """
        error = math.inf if math.isnan(error) else error
        entry = Error(quantity=quantity, error=error, where=where, step=step, position=position)
        held = self.findings
        if quantity not in held.worst or error > held.worst[quantity].error:
            held.worst[quantity] = entry
        if error > (self._limits.get(quantity, math.inf) if limit is None else limit):
            held.first = _earlier(held.first, entry)
            held.past.setdefault(_key(entry), set()).add(where)

    def output(self, ours: Tensor, theirs: Tensor, scale: float, *, step: int, where: str, at: int) -> None:
        """Compare fingerprints of a sublayer's output."""
        error = float("nan") if ours.shape != theirs.shape else _share(float((ours - theirs).abs().max()), scale)
        if not error <= self._output_limit:
            entry = Error(quantity="output", error=error, where=where, step=step, position=at)
            self.findings.output = _earlier(self.findings.output, entry)

    def number(
        self, quantity: Quantity, ours: float, theirs: float, *, step: int, where: str = "", at: int = 0
    ) -> None:
        """Compare two numbers."""
        self.note(quantity, _share(abs(ours - theirs), abs(theirs)), step=step, where=where, position=at)

    def tensor(
        self,
        quantity: Quantity,
        ours: Tensor,
        theirs: Tensor,
        scale: float,
        *,
        step: int,
        where: str,
        at: int,
        limit: float | None = None,
    ) -> None:
        """Compare a shard with the same part of the reference; `scale`: what the largest difference is divided by."""
        assert ours.shape == theirs.shape, f"{where}: {tuple(ours.shape)} here, {tuple(theirs.shape)} in the reference"
        wide = torch.float64 if torch.float64 in (ours.dtype, theirs.dtype) else torch.float32
        difference = (ours.detach().to("cpu", wide) - theirs.detach().to("cpu", wide)).abs()
        largest = float(difference.max()) if difference.numel() else 0.0
        self.note(quantity, _share(largest, scale), step=step, where=where, position=at, limit=limit)

    def key(self, what: str, *, step: int) -> None:
        """Note a noise key that is not the one process': before everything that forward computes."""
        entry = Error(quantity="output", error=math.inf, where=f"{KEY} ({what})", step=step, position=-1)
        self.findings.output = _earlier(self.findings.output, entry)

    def routing(
        self, decision: Decision, reference: ReferenceStep, *, step: int, at: int, choices: int, text_order: bool
    ) -> None:
        """Compare which tokens got which slots; the error is the number of tokens that no tie excuses.

        `choices` and `text_order` as in `near_ties`.
        """
        layer, groups = decision.layer, decision.groups.cpu()
        slots_GSK = reference.whole(SLOTS, layer)[groups]
        tokens_GEC = reference.whole(TOKENS, layer)[groups]
        if slots_GSK.shape != decision.slots_GSK.shape or tokens_GEC.shape != decision.tokens_GEC.shape:
            # Other groups or capacities: nothing can be matched token by token, so all tokens count.
            self.note("routing", float(decision.slots_GSK.shape[:2].numel()), step=step, where=layer, position=at)
            return
        differs_GS = (slots_GSK != decision.slots_GSK.cpu()).any(-1)
        inverse = int((tokens_GEC != decision.tokens_GEC.cpu()).sum())
        if not differs_GS.any():
            self.note("routing", float(inverse), step=step, where=layer, position=at)
            return
        logits_GSE = reference.whole(LOGITS, layer)[groups]
        ties_GS = near_ties(logits_GSE, choices, tie=self._tie, text_order=text_order)
        # A tie that went the other way moves the queue behind it: its group is excused with it.
        excused_GS = differs_GS & (ties_GS | (differs_GS & ties_GS).any(1, keepdim=True))
        self._list(self.findings.tokens, differs_GS, groups, step, at)
        self._list(self.findings.excused, excused_GS, groups, step, at)
        left = int((differs_GS & ~excused_GS).sum())
        self.note("routing", float(left), step=step, where=layer, position=at)

    def _list(self, into: set[Any], found_GS: Tensor, groups: Tensor, step: int, at: int) -> None:
        for group, token in found_GS.nonzero()[:MOST_TOKENS].tolist():
            into.add((step, at, int(groups[group]), token))


def near_ties(logits_GSE: Tensor, choices: int, *, text_order: bool, tie: float | None = None) -> Tensor:
    """Tokens [G, S] whose choice of experts, or whose rank among tokens, an error of `tie` could change.

    The choice hangs on the `choices` + 1 largest logits, `choices` being as many as a token may try. Routers that serve
    tokens by score also hang on the order of tokens, by their largest probability and by each expert's logits.
    """
    experts, tie = logits_GSE.shape[-1], TIE if tie is None else tie
    top = logits_GSE.double().sort(-1, descending=True).values[..., : min(choices + 1, experts)]
    ties_GS = ((top[..., :-1] - top[..., 1:]) <= tie).any(-1)
    if text_order:
        return ties_GS
    gates_GS1 = logits_GSE.double().softmax(-1).amax(-1, keepdim=True)
    scores_GSF = torch.cat([gates_GS1, logits_GSE.double()], dim=-1)
    sorted_GSF, order_GSF = scores_GSF.sort(1)
    close_GSF = (sorted_GSF[:, 1:] - sorted_GSF[:, :-1]) <= tie
    edge = torch.zeros_like(close_GSF[:, :1])
    either_GSF = torch.cat([edge, close_GSF], 1) | torch.cat([close_GSF, edge], 1)
    back_GSF = torch.zeros_like(either_GSF).scatter_(1, order_GSF, either_GSF)
    return ties_GS | back_GSF.any(-1)


def _share(difference: float, scale: float) -> float:
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0.0 else math.inf
