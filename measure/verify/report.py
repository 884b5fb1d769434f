"""What `verify-parallel` prints and writes: a table row per layout, what differs first, a JSON report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.compose import without_secrets
from conf.derived.estimate import num_params
from conf.derived.layers import is_dense
from launch.commands.output import write_output
from measure.verify.compare import FORWARD, KEY, LIMITS, QUANTITIES, Error, Findings, Precision
from measure.verify.planning.plan import Plan
from measure.verify.reference.step_file import INITIAL
from measure.verify.run_plan import Verdict, precision_of

_LAYOUT_WIDTH, _WIDTH = 48, 10
_TITLES = {"parameter": "param/lr", "gradient": "gradient"}
_WORDS = {"equal": "equal", "differs": "DIFFERS", "failed": "FAILED"}
_REASONS = 8  # of refused layouts that are shown
_PLACES = 5  # that differ like the first, named after it


def opening(plan: Plan) -> list[str]:
    """What will be compared with what."""
    cfg, precision = plan.base, precision_of(plan)
    kind = "dense" if is_dense(cfg) else f"{cfg.moe.num_experts} experts, {cfg.moe.semantics}"
    engine = "no engine" if plan.exact else f"{cfg.optim.name}, clip {cfg.optim.clip_norm:g}, lr {cfg.schedule.lr:g}"
    lines = [
        f"{cfg.model.preset} ({kind}), {num_params(cfg.model, cfg.moe) / 1e6:.2f} M parameters, {precision}, {engine}",
        f"{plan.steps} steps of {cfg.train.global_batch} sequences ({cfg.data.encoder_length} + "
        f"{cfg.data.decoder_length} tokens, uneven padding) on up to {plan.ranks} ranks against one process without "
        "an engine",
    ]
    if plan.changes:
        lines.append("changed for this: " + ", ".join(plan.changes))
    if plan.cover is not None:
        lines.append(
            f"{len(plan.layouts)} layouts show {plan.cover.covered} of the {plan.cover.pairs} pairs of settings that "
            "can occur together (--all runs every layout)"
        )
    reasons: dict[str, list[str]] = {}
    for each in plan.refused:
        reasons.setdefault(each.reason, []).append(each.layout)
    for reason, layouts in list(reasons.items())[:_REASONS]:
        more = f" and {len(layouts) - 1} more" if len(layouts) > 1 else ""
        lines.append(f"left out: {layouts[0]}{more}: {reason}")
    if len(reasons) > _REASONS:
        lines.append(f"left out for {len(reasons) - _REASONS} further reasons")
    return lines


def heading(precision: Precision) -> list[str]:
    """Titles of the table, and the limits below them."""
    titles = "".join(f"{_TITLES.get(q, q):>{_WIDTH}}" for q in QUANTITIES)
    limits = "".join(f"{_limit(precision, q):>{_WIDTH}}" for q in QUANTITIES)
    return [f"{'layout':<{_LAYOUT_WIDTH}}{titles}", f"{'  limit':<{_LAYOUT_WIDTH}}{limits}"]


def row(verdict: Verdict) -> list[str]:
    """One layout: the largest error of each quantity, and what differs first or failed."""
    cells = ""
    for quantity in QUANTITIES:
        error = verdict.findings.worst.get(quantity)
        shown = "-" if error is None else f"{error.error:.0f}" if quantity == "routing" else f"{error.error:.1e}"
        cells += f"{shown:>{_WIDTH}}"
    lines = [f"{verdict.layout!s:<{_LAYOUT_WIDTH}}{cells}  {_WORDS[verdict.status]}, {verdict.seconds:.1f} s"]
    if verdict.ties:
        lines.append(
            f"    routed otherwise because of a tie: {verdict.ties} tokens (0 expected); numbers are those of a run "
            "that routes by the logits of one process"
        )
    first = verdict.findings.first
    if first is not None:
        lines.append(f"    first to differ: {describe_first(verdict.findings)}")
        more = sorted(verdict.findings.same_as_first() - {first.where, ""})
        if more:
            shown = ", ".join(more[:_PLACES]) + (f" and {len(more) - _PLACES} more" if len(more) > _PLACES else "")
            lines.append(f"    {first.quantity} of others as well: {shown}")
    lines += [f"    {line}" for line in verdict.message.splitlines()]
    return lines


def describe_first(findings: Findings) -> str:
    """What differs first in words, led by the sublayer whose output does where that is where it comes from."""
    first, output = findings.first, findings.output
    assert first is not None
    if output is None or output.step != first.step or not _leads(output, first):
        return describe(first)
    return f"{describe(output)}; then {describe(first)}"


def _leads(output: Error, first: Error) -> bool:
    """Whether an output that differs explains it: one before the layer, and only one that is recomputed in backward."""
    if first.quantity not in FORWARD:
        return output.where.endswith("recomputed")
    stack, _, index = first.where.partition(".")
    if not index.isdecimal():
        return True  # a loss in all
    layer, before = (stack == "decoder", float(index)), _block(output.where)
    return before < layer or (before == layer and not output.where.endswith(".ff"))


def _block(place: str) -> tuple[bool, float]:
    """Where in the forward a module is: whether it is the decoder's, and the number of its layer."""
    parts = place.split(".")
    inside = len(parts) > 2 and parts[1] == "layers"
    return place.startswith("decoder"), float(parts[2]) if inside else math.inf if "final" in place else -1.0


def describe(error: Error) -> str:
    """An error in words."""
    when = "before the first step" if error.step == INITIAL else f"in step {error.step + 1}"
    if error.where.startswith(KEY):
        return f"{error.where} {when}"
    where = f" of {error.where}" if error.where else ""
    size = f"{error.error:.0f} tokens" if error.quantity == "routing" else f"{error.error:.2e}"
    return f"{error.quantity}{where} {when}: {size}"


def duration(seconds: float) -> str:
    """A length of time, roughly."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def closing(verdicts: Sequence[Verdict], precision: Precision) -> list[str]:
    """The largest error of each quantity over all layouts, and the verdict."""
    lines: list[str] = []
    for quantity in QUANTITIES:
        found = [(v.findings.worst[quantity], v) for v in verdicts if quantity in v.findings.worst]
        if found:
            error, verdict = max(found, key=lambda pair: pair[0].error)
            where = f" ({error.where})" if error.where and error.error > 0 else ""
            at = f" at {verdict.layout}{where}" if error.error > 0 else ""
            lines.append(f"largest {quantity:<10}{error.error:.2e}  limit {_limit(precision, quantity):<8}{at}")
    bad = [verdict for verdict in verdicts if verdict.status != "equal"]
    total = len(verdicts)
    said = f"{len(bad)} of {total} layouts do NOT equal" if bad else f"all {total} layouts equal"
    lines.append(f"{said} one process")
    return lines


def write_json(path: Path, plan: Plan, verdicts: Sequence[Verdict]) -> None:
    """The same as a JSON file."""
    precision = precision_of(plan)
    tree = {
        "equal": all(verdict.status == "equal" for verdict in verdicts),
        "precision": precision,
        "limits": LIMITS[precision],
        "steps": plan.steps,
        "ranks": plan.ranks,
        "turned_on": list(plan.changes),
        "left_out": [asdict(each) for each in plan.refused],
        "layouts": [_verdict_tree(verdict) for verdict in verdicts],
        "config": without_secrets(plan.base),
    }
    write_output(path, json.dumps(tree, indent=1) + "\n")


def _verdict_tree(verdict: Verdict) -> dict[str, Any]:
    findings = verdict.findings
    return {
        "layout": asdict(verdict.layout),
        "status": verdict.status,
        "seconds": round(verdict.seconds, 2),
        "ties": verdict.ties,
        "replayed": verdict.replayed,
        "largest": {quantity: _error_tree(error) for quantity, error in findings.worst.items()},
        "first": _error_tree(findings.first) if findings.first else None,
        "output": _error_tree(findings.output) if findings.output else None,
        "like_first": sorted(findings.same_as_first()),
        "message": verdict.message,
    }


def _error_tree(error: Error) -> dict[str, Any]:
    # JSON knows no infinity
    size = error.error if math.isfinite(error.error) else str(error.error)
    return {"quantity": error.quantity, "error": size, "where": error.where, "step": error.step}


def _limit(precision: Precision, quantity: Any) -> str:
    limit = LIMITS[precision].get(quantity)
    return "-" if limit is None else f"{limit:g}"
