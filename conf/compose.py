"""From overrides to a checked, resolved `RunConfig`, and to a YAML file and back; the only user of OmegaConf."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import ConfigError, ConfigErrors, within
from conf.machine import local_ranks
from conf.reading.convert import flat, nested, to_config, to_dict
from conf.reading.formats import modern, stamped
from conf.reading.meanings import is_free_text
from conf.reading.overrides import Overrides, read_overrides, value_of
from conf.reading.presets import CONF_DIR, groups
from conf.reading.yaml_text import read_yaml
from conf.rules.validate import Files, check_world, validate
from conf.safety.redact import redact
from conf.safety.writing import write_whole
from conf.schema import RunConfig

__all__ = ["compose", "dump", "load", "restore", "to_dict", "without_secrets", "written"]

_RESTORE = 'restoring it: "config" in state.json of the run\'s newest checkpoint is the same, and JSON is YAML'

OmegaConf.register_new_resolver("local_ranks", local_ranks, replace=True)  # conf/launch/local.yaml


def compose(overrides: Sequence[str], *, world: tuple[int, int] | None = None, files: Files = "checked") -> RunConfig:
    """The run that `overrides` describe: composed, converted, validated and with every derived field filled.

    `world` is (ranks, ranks on this node) as a launcher has already started them; it takes the place of launch.nproc
    and launch.nodes. `files`: whether what it names must exist here.
    Raises `ConfigError` (also when the user set launch.* to something else) or `ConfigErrors`.
    """
    read = read_overrides(overrides)
    return checked(completed(hydra_tree(read, world), read.keys), world, files=files)


def checked(tree: Any, world: tuple[int, int] | None, *, files: Files = "checked") -> RunConfig:
    """The configuration of a whole tree; for the rest see `compose`."""
    raw = to_config(tree)
    if world is not None:
        check_world(raw, world[0])
    return validate(raw, files=files)


def tree_of(overrides: Sequence[str]) -> dict[str, Any]:
    """What presets and `overrides` say, as nested dictionaries: neither checked nor with what is derived filled in."""
    read = read_overrides(overrides)
    return completed(hydra_tree(read, None), read.keys)


def hydra_tree(read: Overrides, world: tuple[int, int] | None) -> Any:
    """Presets and overrides as Hydra composes them, in plain dictionaries; for `world` see `compose`."""
    started: tuple[str, ...] = ()
    if world is not None:
        ranks, local = world
        if local < 1 or ranks % local:
            raise ConfigError(
                "launch.nproc", got=f"{ranks} ranks, {local} of them here", needs="the same number on each node"
            )
        # before the user's own, which win, so that presets that refer to launch.nproc see the real one
        started = (f"launch.nproc={local}", f"launch.nodes={ranks // local}")
    try:
        composed = _composed((*started, *read.lines))
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise _unresolved(error, read.lines) from error


def _unresolved(error: HydraException | OmegaConfBaseException, lines: Sequence[str]) -> ConfigError:
    """What cannot be composed is what a setting refers to: all others have been read."""
    typed = {key: value for key, _, value in (line.partition("=") for line in lines) if "${" in value}
    field = getattr(error, "full_key", None)
    if field not in typed:  # of what it refers to
        field = next(iter(typed), "overrides")
    why = str(error).splitlines()[0]
    return ConfigError(
        field,
        got=typed.get(field, " ".join(lines)),
        needs=f"a reference that can be looked up ({why})",
        hint="the value itself, ${oc.env:NAME} of a variable that is set, or ${section.field} of another field",
    )


@lru_cache(maxsize=64)
def _composed(lines: tuple[str, ...]) -> DictConfig:
    """Before interpolations are resolved, which may read what changes. Hydra takes 0.1 to 0.3 s, and most commands
    compose the same lines more than once."""
    with initialize_config_dir(str(CONF_DIR), version_base=None):
        return hydra_compose("config", overrides=list(lines))


def completed(tree: Any, typed: frozenset[str]) -> Any:
    """`tree` with parallel.ep filled, which follows from the sizes of launch, parallel and moe unless it was typed."""
    decoder = tree["moe"]["decoder_sparse_every"]
    dense = tree["moe"]["sparse_every"] == 0 and decoder in (0, None)  # None: as the encoder
    if dense and "parallel.ep" not in typed:
        tree["parallel"]["ep"] = 1  # the dense twin of a layout has no experts to spread
    if tree["parallel"]["ep"] is None:
        tree["parallel"]["ep"] = _auto_ep(tree)
    return tree


def _auto_ep(tree: Any) -> int:
    """The most expert-parallel ranks that divide both the data-parallel ranks and the experts.

    1 where the numbers it needs are not numbers; conversion then names the one that is wrong.
    """
    launch, tp, experts = tree["launch"], tree["parallel"]["tp"], tree["moe"]["num_experts"]
    numbers = (launch["nproc"], launch["nodes"], tp, experts)
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return 1
    return max(math.gcd(launch["nproc"] * launch["nodes"] // tp, experts), 1)


def dump(cfg: RunConfig, path: str | os.PathLike[str]) -> None:
    """Write `cfg` as YAML, whole or not at all, without secrets."""
    write_whole(Path(path), to_yaml(cfg))


def written(cfg: RunConfig) -> dict[str, Any]:
    """`cfg` as it is written to files: plain values without secrets, and the number of the format.

    `restore` takes it back, with `conf.safety.redact.REDACTED` where secrets were.
    """
    return stamped(without_secrets(cfg))


def without_secrets(cfg: RunConfig) -> dict[str, Any]:
    """`cfg` as `to_dict` gives it, for whatever is kept or sent."""
    leaves = flat(to_dict(cfg))
    return nested({path: redact(value) if is_free_text(path) else value for path, value in leaves.items()})


def to_yaml(cfg: RunConfig) -> str:
    """`cfg` as YAML text, in the form of `written`."""
    return OmegaConf.to_yaml(OmegaConf.create(written(cfg)))


def load(path: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that `dump` wrote, with `overrides` (values, or a data preset such as ``data=text``) on top.

    Files it names need not exist here; older formats are read as well. Raises `ConfigError(s)`.
    """
    return restore(_read(path), origin=str(path), overrides=overrides)


def restore(tree: Mapping[Any, Any], *, origin: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of which `written` made `tree`, whatever release did; `origin` is where it comes from.

    For `overrides` see `load`. Raises `ConfigError(s)`; what is wrong with `tree` itself is said to be in `origin`.
    """
    try:
        now = modern(tree, origin=origin)
        own = validate(to_config(now), files="unchecked")
    except (ConfigError, ConfigErrors) as error:
        raise within(origin, error) from None
    if not overrides:
        return own
    return validate(to_config(nested(flat(now) | _on_top(overrides))), files="unchecked")


def _read(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """What stands in a YAML file."""
    try:
        tree = _plain(OmegaConf.create(read_yaml(path, hint=_RESTORE)))
    except FileNotFoundError:
        raise ConfigError(str(path), got="no such file", needs="the config.yaml of a run") from None
    except ConfigError:
        raise
    except Exception as error:  # OmegaConf passes on the YAML parser's errors, which have no common base
        raise ConfigError(str(path), got=f"{error}", needs="YAML as written by a run", hint=_RESTORE) from error
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(str(path), got=tree, needs="the settings of a run", hint=_RESTORE)
    return tree


def _plain(node: Any) -> Any:
    # unresolved: what stands in a written configuration is final, nothing is looked up in this environment
    return OmegaConf.to_container(node, resolve=False)


def _on_top(overrides: Sequence[str]) -> dict[str, Any]:
    """Field -> value that `overrides` put over a written configuration: first of a data preset, then single ones.

    The other groups cannot be chosen any more once their values are written down. What refers to others stays as it
    was typed, and is refused.
    """
    chosen: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for line in read_overrides(overrides).lines:
        key, _, value = line.partition("=")
        if key == "data":
            preset = _plain(OmegaConf.load(CONF_DIR / "data" / f"{value}.yaml"))
            chosen |= {f"data.{name}": preset[name] for name in preset if name != "defaults"}
        elif key in groups():
            raise ConfigError(
                key, got=line, needs="single values of a written configuration", hint=f"{key}.FIELD=VALUE"
            )
        else:
            values[key] = value_of(line)
    return chosen | values
