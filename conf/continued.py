"""What a run is started with when its folder is there already, or when it begins from another run's weights.

A run's folder holds `config.yaml`, what its settings came to, and `overrides.yaml`, what was typed for it. A run that
is continued is composed from both and from what is typed now (docs/adr/012): every setting has the value it had,
unless it is typed anew or follows from one that is. `train.from_checkpoint=RUN` takes model, moe and tokenizer of RUN
in the same way. The launcher and its ranks read the same folder before the run writes to it, and so come to the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from conf.compose import checked, completed, hydra_tree, load, restore, to_dict
from conf.errors import ConfigError, ConfigErrors, within
from conf.reading.convert import flat, nested
from conf.reading.formats import stamped
from conf.reading.overrides import read_overrides
from conf.reading.paths import CONFIG, MANIFEST, is_there, user_path
from conf.reading.presets import presets
from conf.reading.setting_files import expand, key_of, merged, read_settings
from conf.rules.validate import Files
from conf.safety.redact import REDACTED, fits
from conf.schema import RunConfig

OVERRIDES = "overrides.yaml"
# Of one start, not of the run: which folder, and leave that was given once.
_OF_A_START = ("name", "runs_dir", "train.resume", "train.allow_data_change")
# What follows from the length of the run, the layout or the machine, unless it was typed.
_FOLLOWING = (
    "train.eval_every", "train.save_every", "schedule.warmup_steps", "parallel.ep", "parallel.etp", "launch.nproc",
    "launch.nodes", "launch.slurm_gpus_per_node", "data.cache_dir",
)  # fmt: skip
# Files that a run may outlive: it has its own once it has a checkpoint.
_OF_THE_BEGINNING = ("train.from_checkpoint", "data.tokenizer")
_PATHS = ("data.files", "data.validation_files", "data.hub_files")  # typed from one folder, written as from any
_TOKENIZER = ("data.sentinels", "data.tokenizer_vocab")
# Group -> the field that holds the preset's name: for folders without a record of what was typed.
_PRESET_FIELDS = {
    "model": "model.preset", "moe": "moe.semantics", "data": "data.source", "optim": "optim.name",
    "schedule": "schedule.name", "launch": "launch.launcher",
}  # fmt: skip


class Basis(NamedTuple):
    """What stands before anything is typed."""

    words: list[str]  # overrides that were typed earlier
    values: dict[str, Any]  # field -> value that stands, whatever the words would come to today


def compose_run(words: Sequence[str], *, world: tuple[int, int] | None = None, files: Files = "checked") -> RunConfig:
    """The run that is started by `words`: as `conf.compose.compose`, on the basis of its folder or of its weights' run.

    Raises `ConfigError(s)` as `compose` does, and for a folder whose configuration cannot be read.
    """
    typed = expand(words)
    basis = _basis(typed)
    if world is not None:  # what was started counts more than what was typed earlier
        basis = basis._replace(words=[w for w in basis.words if key_of(w) not in ("launch.nproc", "launch.nodes")])
    keys = read_overrides(typed).keys
    basis = _without_gaps(basis, keys)
    read = read_overrides(merged(basis.words, typed))
    tree = hydra_tree(read, world)
    if basis.values:
        now, before = flat(tree), flat(hydra_tree(read_overrides(basis.words), world))
        stands = {f: v for f, v in basis.values.items() if f not in keys and now.get(f) == before.get(f)}
        tree = nested(now | stands)
    return checked(completed(tree, read.keys), world, files=files)


def _without_gaps(basis: Basis, keys: frozenset[str]) -> Basis:
    """`basis` without values in which a secret was left out: the words say how they come about.

    Raises `ConfigError` for a setting that nothing says any more.
    """
    gone = {field for field, value in basis.values.items() if REDACTED in str(value)} - keys
    said = {key_of(word): word for word in basis.words}
    for field in sorted(gone | said.keys() - keys):
        word = said.get(field, REDACTED)
        if REDACTED in word:
            raise ConfigError(
                field,
                got=word.partition("=")[2] or REDACTED,
                needs="its value once more: a run's folder keeps no secrets",
                hint=f"{field}='...${{oc.env:NAME}}...', with the secret in a variable, which is kept by its name",
            )
    return basis._replace(values={field: value for field, value in basis.values.items() if field not in gone})


def overrides_of(words: Sequence[str]) -> list[str]:
    """Everything that was ever typed for the run that `words` start, to be kept in its folder."""
    typed = expand(words)
    return of_the_run(merged(_basis(typed).words, typed))


def of_the_run(words: Sequence[str]) -> list[str]:
    """`words` without what concerns one start alone."""
    return [word for word in words if key_of(word) not in _OF_A_START]


def _basis(typed: Sequence[str]) -> Basis:
    if not {"name", "train.from_checkpoint"} & {key_of(word) for word in typed}:
        return Basis([], {})
    start = flat(hydra_tree(read_overrides(typed), None))
    name, runs, weights = start["name"], start["runs_dir"], start["train.from_checkpoint"]
    if isinstance(name, str) and isinstance(runs, str) and is_there((folder := user_path(runs) / name) / CONFIG):
        return _of_folder(folder)
    if isinstance(weights, str) and is_there((folder := run_of(Path(weights))) / CONFIG):
        return _of_weights(folder)
    return Basis([], {})


def run_of(path: Path) -> Path:
    """The run's folder, of which `path` may be a checkpoint."""
    path = user_path(path)
    return path.resolve().parent.parent if is_there(path / MANIFEST) else path


def _of_folder(folder: Path) -> Basis:
    values = flat(to_dict(load(folder / CONFIG)))
    words = _words(folder, values, _FOLLOWING)
    if any((folder / "checkpoints").glob("step_*")):  # what the run began with may be gone: it has its own by now
        own = dict(zip(_OF_THE_BEGINNING, (None, str(folder / "tokenizer.model")), strict=True))
        gone = {f: new for f, new in own.items() if values[f] is not None and not Path(values[f]).exists()}
        values |= gone
        words = [word for word in words if key_of(word) not in gone]
    left_out = (*_FOLLOWING, *_OF_A_START)
    return Basis(words, {field: value for field, value in values.items() if field not in left_out})


def comes_with_weights(field: str) -> bool:
    """Whether a run that starts from another one's weights takes the field along; groups follow from its own batch."""
    return (field.startswith(("model.", "moe.")) or field in _TOKENIZER) and field != "moe.group_sequences"


def _of_weights(folder: Path) -> Basis:
    values = flat(to_dict(load(folder / CONFIG)))
    taken = {f: v for f, v in values.items() if comes_with_weights(f)}
    words = _words(folder, values, ("moe.group_sequences",))
    words = [w for w in words if key_of(w) in ("model", "moe", "moe.group_sequences", *taken)]
    if (tokenizer := folder / "tokenizer.model").exists():
        words.append(f"data.tokenizer={tokenizer.resolve()}")
    return Basis(words, taken)


def unexplained(folder: Path, saved: RunConfig, words: Sequence[str] | None = None) -> dict[str, tuple[Any, Any]]:
    """Fields of a run's config.yaml that are neither as in its checkpoint (`saved`) nor were typed since.

    Field -> (value in config.yaml, value in the checkpoint). `words` are all that were typed; None: as the folder
    records them. What follows from other fields, is of one start alone or of the run's beginning nobody reads there.
    """
    values, trusted = flat(to_dict(load(folder / CONFIG))), flat(to_dict(saved))
    unread = (*_FOLLOWING, *_OF_A_START, *_OF_THE_BEGINNING)
    unlike = {f: v for f, v in values.items() if f not in unread and not (fits(v, trusted[f]) or fits(trusted[f], v))}
    if not unlike:
        return {}
    words = _words(folder, values, _FOLLOWING) if words is None else words
    typed, keys = flat(hydra_tree(read_overrides(words), None)), {key_of(word) for word in words}
    set_by = {f: {f, f.partition(".")[0]} & keys for f in unlike}
    explained = {f for f in unlike if set_by[f] and (typed.get(f) == unlike[f] or f in _PATHS)}
    return {f: (value, trusted[f]) for f, value in unlike.items() if f not in explained}


def _words(folder: Path, values: dict[str, Any], following: Sequence[str]) -> list[str]:
    """What was typed for the run: the record, or for a folder of an older release without one, what shows in `values`.

    There a preset shows in its name, and a field that follows from others in a value that does not.
    """
    if (record := folder / OVERRIDES).exists():
        return _recorded(record, values)
    words = [f"{group}={values[field]}" for group, field in _PRESET_FIELDS.items() if values[field] in presets(group)]
    fresh = flat(hydra_tree(read_overrides(words), None))
    tree = completed(nested(values | {field: fresh[field] for field in following}), frozenset())
    derived = flat(to_dict(restore(stamped(tree), origin=str(folder / CONFIG))))
    unlike = [field for field in following if values[field] != derived[field] and field != "data.cache_dir"]
    return [*words, *(f"{field}={'null' if values[field] is None else values[field]}" for field in unlike)]


def _recorded(record: Path, values: Mapping[str, Any]) -> list[str]:
    """What was typed, as the folder records it. Raises ConfigError for a record that config.yaml contradicts.

    Of most fields config.yaml has the last word; what follows from others is taken from the record alone.
    """
    words = read_settings(record)
    try:
        read = read_overrides(words)
    except (ConfigError, ConfigErrors) as error:
        raise within(str(record), error) from None
    # ranks that a launcher started win over those that were typed
    following = [field for field in _FOLLOWING if field in read.keys and not field.startswith("launch.")]
    typed = flat(hydra_tree(read, None)) if following else {}
    for field in following:
        if typed[field] not in (None, values[field]):
            raise ConfigError(
                f"{record}: {field}",
                got=typed[field],
                needs=f"{values[field]!r}, as {CONFIG} beside it has it: one of them was changed",
                hint=f"{field}={values[field]}",
            )
    return words
