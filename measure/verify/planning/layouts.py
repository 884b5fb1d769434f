"""Layouts: what one is, how it is typed, which ones fit a number of ranks and a configuration. Arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from conf.errors import ConfigError, ConfigErrors
from conf.rules.ranges import divisors
from conf.rules.validate import validate
from conf.schema import CompileMode, RunConfig

Zero = Literal[0, 1, 2]
_ALIASES = {"acc": "accumulation", "accum": "accumulation", "recomputation": "recompute", "world": "ranks"}
_MODES: tuple[CompileMode, ...] = get_args(CompileMode)
_SWITCH = {"true": 1, "on": 1, "yes": 1, "1": 1, "false": 0, "off": 0, "no": 0, "0": 0}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Layout:
    """How a step is shared out. world = tp * dp; experts: world = etp * ep * edp."""

    tp: int
    dp: int
    ep: int
    etp: int  # tensor shards of one expert: tp or 1
    zero: Zero
    accumulation: int
    recompute: bool  # activations of blocks are computed again in backward
    compile: CompileMode = "off"

    @property
    def world(self) -> int:
        """Ranks it takes."""
        return self.tp * self.dp

    def __str__(self) -> str:
        tail = " recompute" if self.recompute else ""
        tail += f" compile={self.compile}" if self.compile != "off" else ""
        return f"tp={self.tp} dp={self.dp} ep={self.ep} etp={self.etp} zero={self.zero} acc={self.accumulation}{tail}"


KEYS = (*(field.name for field in fields(Layout)), "ranks")
FACTORS = tuple(key for key in KEYS if key not in ("compile", "ranks"))  # what a default set varies


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A layout that this configuration cannot run, and why."""

    layout: str
    reason: str


def own_layout(cfg: RunConfig) -> Layout:
    """The layout that a configuration names itself."""
    world = cfg.launch.nproc * cfg.launch.nodes
    return Layout(
        tp=cfg.parallel.tp,
        dp=world // cfg.parallel.tp,
        ep=cfg.parallel.ep,
        etp=cfg.parallel.etp,
        zero=cfg.parallel.zero,
        accumulation=cfg.train.accumulation,
        recompute=cfg.train.activation_checkpointing,
        compile=cfg.train.compile,
    )


def apply(cfg: RunConfig, layout: Layout) -> RunConfig:
    """`cfg` on one machine with this layout; not validated."""
    parallel = replace(cfg.parallel, tp=layout.tp, ep=layout.ep, etp=layout.etp, zero=layout.zero)
    train = replace(
        cfg.train,
        accumulation=layout.accumulation,
        activation_checkpointing=layout.recompute,
        compile=layout.compile,
    )
    launch = replace(cfg.launch, nproc=layout.world, nodes=1)
    return replace(cfg, parallel=parallel, train=train, launch=launch)


def read_keys(text: str) -> dict[str, int]:
    """The settings of a layout as typed: `tp=2 ep=2 zero=1 acc=2 recompute`. Raises ConfigError."""
    found: dict[str, int] = {}
    for word in text.replace(",", " ").split():
        key, sign, value = word.partition("=")
        key = _ALIASES.get(key, key)
        if key not in KEYS:
            raise ConfigError("--layouts", got=word, needs="one of " + ", ".join(KEYS), hint="'tp=2 ep=2 zero=1'")
        number = _number(key, value if sign else "true")
        least = 0 if key in ("zero", "recompute", "compile") else 1
        if number < least or (key == "zero" and number > 2):
            wanted = {"zero": "0, 1 or 2", "recompute": "true or false", "compile": ", ".join(_MODES)}
            needs = wanted.get(key, "a number from 1 on")
            raise ConfigError("--layouts", got=word, needs=needs, hint=f"{key}=1")
        found[key] = number
    return found


def _number(key: str, value: str) -> int:
    """A typed value as a number: a switch is 0 or 1, a mode of compiling its place in the list; -1: none of these."""
    if key == "compile" and value in _MODES:
        return _MODES.index(value)
    if key in ("recompute", "compile"):
        return _SWITCH.get(value.lower(), -1)
    return int(value) if value.isdecimal() else -1


def least_ranks(keys: dict[str, int]) -> int:
    """The fewest ranks on which typed settings make sense."""
    tp, ep = keys.get("tp", 1), keys.get("ep", 1)
    return max(keys.get("ranks", 1), math.lcm(tp * keys.get("dp", 1), keys.get("etp", tp) * ep))


def complete(keys: dict[str, int], *, ranks: int, own: Layout) -> Layout:
    """A whole layout: what was not typed is 1 for tp and ep, all ranks for dp, and as in the configuration else.

    Raises ConfigError when tp does not divide the ranks, or more ranks are wanted than there are.
    """
    tp = keys.get("tp", 1)
    world = keys.get("ranks", tp * keys["dp"] if "dp" in keys else ranks)
    dp = keys.get("dp", world // tp)
    if tp * dp != world or world > ranks:
        given = " ".join(f"{key}={value}" for key, value in keys.items())
        needs, hint = f"tp * dp = {world} ranks", f"--ranks {max(tp * dp, world)}"
        if max(tp * dp, world) > ranks or tp > ranks:
            needs, hint = f"at most {ranks} ranks", f"--ranks {max(tp, tp * dp, world)}"
        elif "dp" not in keys:
            needs = f"a tp that divides {world} ranks: {', '.join(map(str, divisors(world)))}"
            hint = f"'{given} dp=1', which takes {tp} of them"
        raise ConfigError("--layouts", got=given, needs=needs, hint=hint)
    return Layout(
        tp=tp,
        dp=dp,
        ep=keys.get("ep", 1),
        etp=keys.get("etp", tp),
        zero=keys.get("zero", own.zero),  # pyright: ignore[reportArgumentType]  # read_keys has checked it
        accumulation=keys.get("accumulation", own.accumulation),
        recompute=bool(keys.get("recompute", own.recompute)),
        compile=_MODES[keys["compile"]] if "compile" in keys else own.compile,
    )


def product(ranks: int, *, experts: bool, accumulations: Iterable[int] = (1, 2)) -> Iterator[Layout]:
    """Every layout of up to `ranks` ranks whose axes divide it; without experts ep is 1 and etp is tp."""
    sizes = divisors(ranks)
    for tp in sizes:
        for dp in (n for n in sizes if ranks % (tp * n) == 0):
            shards = sorted({1, tp}) if experts else [tp]
            for etp in shards:
                for ep in divisors(tp * dp // etp) if experts else [1]:
                    for zero in (0, 1, 2):
                        for accumulation in accumulations:
                            for recompute in (False, True):
                                yield Layout(
                                    tp=tp, dp=dp, ep=ep, etp=etp, zero=zero, accumulation=accumulation,
                                    recompute=recompute,
                                )  # fmt: skip


def split_valid(cfg: RunConfig, layouts: Iterable[Layout]) -> tuple[list[Layout], list[Refused]]:
    """Layouts that `cfg` can run, and the others with the reason that `pointsman train` would give."""
    valid: list[Layout] = []
    refused: list[Refused] = []
    for layout in layouts:
        try:
            validate(apply(cfg, layout), files="unchecked")
        except (ConfigError, ConfigErrors) as error:
            refused.append(Refused(layout=str(layout), reason=str(error).splitlines()[0]))
        else:
            valid.append(layout)
    return valid, refused
