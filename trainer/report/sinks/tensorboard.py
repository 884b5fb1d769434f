"""Metrics to TensorBoard: event files in the run folder, under the names that metrics.jsonl has."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from conf.safety import shell
from trainer.report.panels import load_panels
from trainer.report.sinks.sink import Opening, Value

logger = logging.getLogger(__name__)


class TensorBoardSink:
    """Scalars as they are, what is a list for each expert as one image for each stack."""

    def __init__(self, opening: Opening) -> None:
        """Points beyond `resume_step` are hidden by the writer's `purge_step`: they will be written again."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder = opening.run.root / "tensorboard"
        purge = opening.resume_step + 1 if opening.resume_step else None
        self._writer: SummaryWriter | None = SummaryWriter(str(self._folder), purge_step=purge)

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """See `Sink`."""
        if self._writer is None:
            return
        try:
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)
            for name, image in load_panels(metrics, step).items():
                self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self, *, failed: bool) -> None:
        """See `Sink`."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._give_up(error)

    def where(self) -> list[str]:
        """See `Sink`."""
        return [f"  TensorBoard        {self._folder}   view: {shell.line(['tensorboard', '--logdir', self._folder])}"]

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        logger.warning("TensorBoard is off for the rest of this run (%s); metrics.jsonl stays complete", error)
