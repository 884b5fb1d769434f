"""What a run continues from: its own newest whole checkpoint, another run's weights, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from conf import compose
from conf.continued import unexplained
from conf.errors import CheckpointError, ConfigError
from conf.reading.convert import flat, raise_all
from conf.safety import shell
from conf.safety.redact import fits
from conf.schema import RunConfig
from model.hf.generation import Generation, generation_of
from trainer.checkpoint.manifest import STATE_FILE
from trainer.checkpoint.reader import CheckpointReader
from trainer.run_dir import RunDir

# Settings that decide what the run *is*: changing one under a checkpoint would silently make another run of it.
_IDENTITY = (
    "seed",
    "model",
    "moe",
    "data.source",
    "data.seed",
    "data.task",
    "data.encoder_length",
    "data.noise_density",
    "data.mean_span_length",
    "data.decoder_length",
    "data.packing",
    "data.sentinels",
    "data.stream_lanes",
    "data.stream_window",
    "train.global_batch",
    "optim.name",
)


# In the place of fingerprints, of a model that was imported.
NO_TOKENIZER, IMPORTED = "none", "imported"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """Where a run stands: everything that is neither weights nor moments."""

    step: int = 0  # optimizer steps taken; also the data cursor, since order is a function of it
    tokens: int = 0  # real encoder and target tokens seen
    wall_s: float = 0.0  # seconds spent training, over all attempts
    generation: Mapping[str, Any] | None = None  # settings that an imported model came with (`model.hf.generation`)

    def advanced(self, *, tokens: int, wall_s: float) -> TrainState:
        """After one more step."""
        return replace(self, step=self.step + 1, tokens=self.tokens + tokens, wall_s=self.wall_s + wall_s)

    def to_json(self, cfg: RunConfig, fingerprints: dict[str, str]) -> dict[str, Any]:
        """The content of a checkpoint's `state.json`."""
        return {**asdict(self), "fingerprints": fingerprints, "config": compose.written(cfg)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What the verified state.json of a checkpoint says."""

    state: TrainState
    generation: Generation | None  # `state.generation` as what it means
    fingerprints: Mapping[str, str]  # of the tokenizer and of the data
    tree: Mapping[str, Any]  # the configuration as it is written
    origin: str  # of it, in errors

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """The configuration, with `overrides` on top. Raises as `conf.compose.load`."""
        return compose.restore(self.tree, origin=self.origin, overrides=overrides)


def saved_in(reader: CheckpointReader) -> Saved:
    """What a checkpoint says of its run. Raises CheckpointError for what `TrainState.to_json` never wrote."""
    found, origin = reader.state, f"{reader.path / STATE_FILE}"
    checks: dict[str, Callable[[Any], bool]] = {
        "step": lambda value: value == reader.step and type(value) is int,
        "tokens": lambda value: type(value) is int and value >= 0,
        "wall_s": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
        "fingerprints": lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
        "config": lambda value: isinstance(value, dict),
    }
    for key, is_right in checks.items():
        if key not in found or not is_right(found[key]):
            got = repr(found[key])[:60] if key in found else "missing"
            raise CheckpointError(f"{origin}: {key} is {got}; its digest is right, so it was made by something else")
    generation = generation_of(found, origin)
    return Saved(
        state=TrainState(
            step=found["step"], tokens=found["tokens"], wall_s=found["wall_s"],
            generation=generation.to_json() if generation else None,
        ),
        generation=generation,
        fingerprints=found["fingerprints"],
        tree=found["config"],
        origin=origin,
    )  # fmt: skip


def changed_settings(saved: RunConfig, cfg: RunConfig) -> list[str]:
    """Every setting that differs from the checkpoint's, as ``path: old -> new``; what may change is still said."""
    before, after = flat(compose.to_dict(saved)), flat(compose.to_dict(cfg))
    return [f"{leaf}: {old} -> {after.get(leaf)}" for leaf, old in before.items() if not fits(old, after.get(leaf))]


def check_same_tokenizer(saved: Saved, corpus_tokenizer: str, run: RunDir) -> None:
    """Raise `ConfigError` unless weights to start from know the ids of this run's tokenizer (its fingerprint)."""
    if saved.fingerprints.get("tokenizer") == corpus_tokenizer:
        return
    raise ConfigError(
        "data.tokenizer",
        got=f"one of fingerprint {corpus_tokenizer[:12]}",
        needs=f"the one of {saved.origin}: to its weights every id of another tokenizer is another word",
        hint=f"{shell.word(f'data.tokenizer={run.tokenizer}')}, or train.allow_data_change=true",
    )


def check_config_file(
    run: RunDir, saved: Saved, reads: Callable[[str, Any], bool], typed: Sequence[str] | None
) -> None:
    """Raise `ConfigError(s)` where config.yaml differs from the verified one of a checkpoint and was not typed to.

    `reads(field, value)` says whether the value there would be used (of what was overruled nothing is said); for
    `typed` see `unexplained`.
    """
    if run.config.exists():
        found = unexplained(run.root, saved.config(), typed)
        raise_all([
            ConfigError(
                f"{run.config}: {field}",
                got=value,
                needs=f"{trusted!r}, as {saved.origin} has it: the file was changed after it was written",
                hint=f"setting it to {trusted!r} there, or typing {field}=... where a change is wanted",
            )
            for field, (value, trusted) in found.items()
            if reads(field, value)
        ])  # fmt: skip


def check_same_run(saved: RunConfig, cfg: RunConfig) -> None:
    """Raise `ConfigError` naming the first setting in which `cfg` would be another run than the checkpoint's."""
    trained, now = flat(compose.to_dict(saved)), flat(compose.to_dict(cfg))
    for path in _IDENTITY:
        if path == "data.source" and cfg.train.allow_data_change:
            continue
        for leaf, old in trained.items():
            if (leaf == path or leaf.startswith(f"{path}.")) and not fits(old, now[leaf]):
                raise ConfigError(
                    leaf,
                    got=now[leaf],
                    needs=f"{old!r}, which the checkpoint of this run was trained with",
                    hint=f"{shell.word(f'{leaf}={old}')}, another name=..., or train.from_checkpoint=... to start "
                    "from its weights",
                )
