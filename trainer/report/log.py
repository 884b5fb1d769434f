"""Everything a run records, and the table of places where metrics go. Rank 0 only."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from conf.errors import SetupError
from conf.safety.redact import redact_text
from conf.schema import LoggingConfig
from trainer.report.sinks.jsonl import JsonlSink
from trainer.report.sinks.sink import Opening, Sink, SinkKind, Value
from trainer.report.sinks.tensorboard import TensorBoardSink
from trainer.report.sinks.weights_and_biases import WandbSink, wandb_choice

# In this order they are opened and written; W&B reads what `metrics.jsonl` has.
SINKS: dict[str, SinkKind] = {
    "metrics.jsonl": SinkKind(open=JsonlSink, wanted=lambda logging: True),
    "Weights & Biases": SinkKind(
        open=WandbSink,
        wanted=lambda logging: wandb_choice(logging) != "off",
        package="wandb",
        remedy="pip install wandb, or logging.wandb=off",
    ),
    "TensorBoard": SinkKind(
        open=TensorBoardSink,
        wanted=lambda logging: logging.tensorboard,
        package="tensorboard",
        remedy="pip install 'pointsman[tensorboard]', or logging.tensorboard=false",
    ),
}


def check_sinks(logging: LoggingConfig) -> None:
    """Raise SetupError if a place that is asked for needs a package that is absent, ConfigError for a variable of W&B
    that it would fail at. Imports none of the packages."""
    for name, kind in SINKS.items():
        if kind.wanted(logging) and kind.package and find_spec(kind.package) is None:
            raise SetupError(f"{name} needs the package {kind.package}, which is not installed; try {kind.remedy}")


class RunLog:
    """Every sink that is wanted; none without an opening, as on ranks other than 0."""

    def __init__(self, opening: Opening | None = None) -> None:
        """Raises OSError when `metrics.jsonl` cannot be opened."""
        self._sinks: list[Sink] = []
        if opening is not None:
            logging = opening.cfg.logging
            self._sinks += [kind.open(opening) for kind in SINKS.values() if kind.wanted(logging)]

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Record one row everywhere, without secrets."""
        row = {name: redact_text(value) if isinstance(value, str) else value for name, value in metrics.items()}
        for sink in self._sinks:
            sink.write(step, row)

    def close(self, *, failed: bool = False) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close(failed=failed)

    def where(self) -> list[str]:
        """Lines of the closing summary, once all is closed."""
        return [line for sink in self._sinks for line in sink.where()]
