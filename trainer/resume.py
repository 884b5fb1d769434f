"""What a run continues from: its own newest whole checkpoint, another run's weights, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from conf import compose
from conf.errors import ConfigError
from conf.reading.convert import flat
from conf.safety import shell
from conf.safety.redact import fits
from conf.schema import RunConfig
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

    @staticmethod
    def from_json(state: dict[str, Any]) -> TrainState:
        """Back from `state.json`."""
        return TrainState(
            step=state["step"], tokens=state["tokens"], wall_s=state["wall_s"], generation=state.get("generation")
        )


def changed_settings(saved: RunConfig, cfg: RunConfig) -> list[str]:
    """Every setting that differs from the checkpoint's, as ``path: old -> new``; what may change is still said."""
    before, after = flat(compose.to_dict(saved)), flat(compose.to_dict(cfg))
    return [f"{leaf}: {old} -> {after.get(leaf)}" for leaf, old in before.items() if not fits(old, after.get(leaf))]


def check_same_tokenizer(reader: CheckpointReader, corpus_tokenizer: str, run: RunDir) -> None:
    """Raise `ConfigError` unless weights to start from know the ids of this run's tokenizer (its fingerprint)."""
    if reader.state["fingerprints"]["tokenizer"] == corpus_tokenizer:
        return
    raise ConfigError(
        "data.tokenizer",
        got=f"one of fingerprint {corpus_tokenizer[:12]}",
        needs=f"the one of {reader.path}: to its weights every id of another tokenizer is another word",
        hint=f"{shell.word(f'data.tokenizer={run.tokenizer}')}, or train.allow_data_change=true",
    )


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
