"""Every router in Python loops, one group at a time, to be read against the references named in docs/routing.md.

Each takes the group's logits, real tokens and capacity, and returns who sits where: slot[(token, expert)] = (place,
gate). Equal values go to the first expert and to the first token. Padding follows the mended rules unless said.
"""

from __future__ import annotations

import math

Slot = dict[tuple[int, int], tuple[int, float]]


def probabilities(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return [weight / sum(weights) for weight in weights]


def ranked(values: list[float]) -> list[int]:
    """Positions in order of falling value, the first of equal ones first."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def token_choice(
    logits: list[list[float]], real: list[bool], capacity: int, *, k: int, by_gate: bool, real_only: bool
) -> Slot:
    """flaxformer: all first choices, then all second ones; in token order or in that of the first gate."""
    p = [probabilities(row) for row in logits]
    counts = [is_real or not real_only for is_real in real]
    first = [max(p[s]) if counts[s] else 0.0 for s in range(len(p))]
    order = ranked(first) if by_gate else list(range(len(p)))
    taken = [0] * len(p[0])
    slot: Slot = {}
    for choice in range(k):
        for s in order:
            if counts[s]:
                e = ranked(p[s])[choice]
                if taken[e] < capacity:
                    slot[s, e] = (taken[e], p[s][e])
                taken[e] += 1
    return slot


def top_2(logits: list[list[float]], real: list[bool], capacity: int, *, policy: str, threshold: float) -> Slot:
    """Mesh-TensorFlow: gates over both choices add up to 1; second choices queue behind the kept first ones."""
    p = [probabilities(row) for row in logits]
    pair = {s: ranked(p[s])[:2] for s in range(len(p)) if real[s]}
    taken = [0] * len(p[0])
    slot: Slot = {}
    for choice in (0, 1):
        for s, experts in pair.items():
            gate = p[s][experts[choice]] / (p[s][experts[0]] + p[s][experts[1]] + 1e-9)
            if choice == 1 and (policy == "none" or (policy == "threshold" and not gate > threshold)):
                continue
            if taken[experts[choice]] < capacity:
                slot[s, experts[choice]] = (taken[experts[choice]], gate)
            taken[experts[choice]] += 1
    return slot


def switch_max(logits: list[list[float]], real: list[bool], capacity: int) -> Slot:
    """Mesh-TensorFlow: each expert keeps the tokens of highest gate among those that chose it."""
    p = [probabilities(row) for row in logits]
    slot: Slot = {}
    for e in range(len(p[0])):
        asking = [s for s in range(len(p)) if real[s] and ranked(p[s])[0] == e]
        for place, s in enumerate(sorted(asking, key=lambda s: (-p[s][e], s))[:capacity]):
            slot[s, e] = (place, p[s][e])
    return slot


def ntlb(logits: list[list[float]], real: list[bool], capacity: int, *, k: int) -> Slot:
    """No token left behind: in round i every token without a slot tries its i-th choice."""
    p = [probabilities(row) for row in logits]
    taken = [0] * len(p[0])
    routed: set[int] = set()
    slot: Slot = {}
    for choice in range(k):
        for s in range(len(p)):
            e = ranked(p[s])[choice]
            if real[s] and s not in routed and taken[e] < capacity:
                slot[s, e] = (taken[e], p[s][e])
                taken[e] += 1
                routed.add(s)
    return slot


def expert_choice(logits: list[list[float]], real: list[bool], capacity: int, *, over_tokens: bool) -> Slot:
    """Each expert takes the real tokens of highest score; over tokens its takers share the gate."""
    tokens = [s for s in range(len(logits)) if real[s]]
    chosen: Slot = {}
    for e in range(len(logits[0])):
        if over_tokens:
            score = dict(zip(tokens, probabilities([logits[s][e] for s in tokens]), strict=True)) if tokens else {}
        else:
            score = {s: probabilities(logits[s])[e] for s in tokens}
        for place, s in enumerate(sorted(tokens, key=lambda s: (-score[s], s))[:capacity]):
            chosen[s, e] = (place, score[s])
    takers = {s: sum(1 for token, _ in chosen if token == s) for s in tokens}
    return {(s, e): (c, gate / takers[s] if over_tokens else gate) for (s, e), (c, gate) in chosen.items()}


def balance(logits: list[list[float]], real: list[bool], choices: int, *, mean: bool) -> float:
    """Mended auxiliary loss of a group: E * sum f * P over real tokens, times their share of the group."""
    tokens = [s for s in range(len(logits)) if real[s]]
    if not tokens:
        return 0.0
    p = [probabilities(row) for row in logits]
    total = 0.0
    for e in range(len(p[0])):
        f = sum(ranked(p[s])[:choices].count(e) for s in tokens) / len(tokens) / (choices if mean else 1)
        total += f * sum(p[s][e] for s in tokens) / len(tokens)
    return len(p[0]) * total * len(tokens) / len(logits)
