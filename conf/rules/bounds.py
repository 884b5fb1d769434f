"""What holds for every field of a kind: numbers below what would hang, overflow or fill a machine, texts of one line.

The bounds are far above what anybody trains. Without them a slip of the keyboard, or a file from elsewhere, costs
minutes or a traceback instead of a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from conf.derived.estimate import num_params
from conf.errors import ConfigError
from conf.reading.convert import flat, to_dict
from conf.reading.fields import leaf_types, without_none
from conf.safety import shell
from conf.schema import RawRunConfig, RunConfig

Problems = Iterator[ConfigError]


class Most(NamedTuple):
    """The largest value of a field, and why there is one."""

    value: int | float
    reason: str


_WHOLE = Most(2**53, "larger whole numbers are not exact in ratios")
_NUMBER = Most(1e30, "fp32 ends at 3e38")
_SEED = Most(2**63 - 1, "generators take 63 bits")
_LAYERS = Most(4096, "layers are planned, built and reported one by one")
_LENGTH = Most(2**16, "attention compares every token with every other")
_PROCESSES = Most(1024, "each is a process of this machine")
_BATCH = Most(2**20, "a batch is laid out row by row")
_FACTOR = Most(1e6, "slots beyond the tokens of a group stay empty")
MOST = {
    "seed": _SEED,
    "model.num_encoder_layers": _LAYERS,
    "model.num_decoder_layers": _LAYERS,
    "moe.num_experts": Most(2**20, "each expert of each layer is a number in every row of metrics"),
    "moe.capacity_factor": _FACTOR,
    "moe.eval_capacity_factor": _FACTOR,
    "data.seed": _SEED,
    "data.encoder_length": _LENGTH,
    "data.decoder_length": _LENGTH,
    "data.tokenizer_vocab": Most(2**24, "pieces are trained and scored one by one"),
    "data.sentinels": Most(2**20, "each is an id of the vocabulary"),
    "data.stream_lanes": Most(2**16, "each is a stream that is open all the time"),
    "data.stream_window": Most(2**24, "its windows are held in memory"),
    "data.workers": _PROCESSES,
    "data.prepare_workers": _PROCESSES,
    "parallel.timeout_s": Most(30 * 86_400, "a rank that hangs is told only then"),
    "train.global_batch": _BATCH,
    "train.accumulation": _BATCH,
    "train.eval_batches": Most(10**6, "an evaluation reads them all"),
    "train.fill_samples": Most(1000, "each is generated when the run ends"),
    "launch.nproc": _PROCESSES,
    "launch.nodes": Most(2**16, "one task is started on each"),
    "launch.threads_per_rank": Most(4096, "they are threads of one process"),
    "launch.max_restarts": Most(10_000, "a run that fails so often is to be looked at"),
    "launch.slurm_gpus_per_node": Most(1024, "they are of one machine"),
    "launch.slurm_cpus_per_task": Most(2**16, "they are of one machine"),
}
_MOST_PARAMETERS = 10**15


def check_bounds(raw: RawRunConfig) -> Problems:
    """Every number and every text of a configuration."""
    kinds = leaf_types()
    for path, value in flat(to_dict(raw)).items():
        kind = without_none(kinds[path])[0]
        if kind in (int, float) and value is not None:
            most = MOST.get(path, _WHOLE if kind is int else _NUMBER)
            if value > most.value:
                needs = f"at most {most.value:,}: {most.reason}"
                yield ConfigError(path, got=_shown(value), needs=needs, hint=f"{path}={most.value}")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield from _check_text(path, text)


def _check_text(path: str, text: str) -> Problems:
    if (problem := shell.control_character(path, text)) is not None:
        yield problem
    elif "${" in text:  # what a reference came to; the next reader would look it up again
        yield ConfigError(path, got=text, needs="text without ${", hint="another name")


def _shown(value: Any) -> Any:
    """Numbers of hundreds of digits are no help."""
    return value if len(str(value)) <= 40 else f"{str(value)[:40]}..."


def check_size(cfg: RunConfig) -> Problems:
    """The parameters can be counted, and addressed, by machines that there are."""
    total = num_params(cfg.model, cfg.moe)
    if total > _MOST_PARAMETERS:
        needs = f"a model of at most {_MOST_PARAMETERS:.0e} parameters: no machines hold more"
        yield ConfigError("model", got=f"{total:.2e} parameters", needs=needs, hint="smaller model.d_model and d_ff")
