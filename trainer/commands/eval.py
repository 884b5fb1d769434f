"""`pointsman eval RUN`: losses and routing of a checkpoint on held-out text, in one process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from conf.reading.setting_files import key_of
from launch.commands.kinds import define
from launch.commands.known import require_run
from launch.commands.parameters import takes_overrides, takes_run


@define(examples=("pointsman eval runs/first data=text data.files='docs/*.jsonl' train.eval_batches=20",))
@takes_run
@takes_overrides(of_new_run=False)
def command(run: Path, overrides: tuple[str, ...]) -> int:
    """Evaluate a trained model on held-out text, in one process, whatever layout trained it.

    Settings change the evaluation: other data, more batches.
    """
    evaluate_run(run, overrides=overrides)
    return 0


def evaluate_run(path: Path, *, overrides: Sequence[str] = ()) -> None:
    """Print the losses and the routing table of a run's newest checkpoint."""
    require_run(path)  # before torch is imported, which takes seconds
    from trainer.commands.trained import HeldOut
    from trainer.loading import load_run
    from trainer.report.routing_table import routing_table
    from trainer.report.summary import learning_lines

    loaded = load_run(path, overrides=overrides)
    held_out = HeldOut(loaded)
    asked_for = any(key_of(word).partition(".")[0] == "data" for word in overrides)
    if not asked_for and (note := held_out.note()):
        print(note, file=sys.stderr)
    straight, unigram = held_out.report(), held_out.unigram_nats()
    print(f"{loaded.reader.path} at step {loaded.reader.step}, {straight.tokens:,.0f} target tokens")
    shuffled = held_out.report(shuffled=True)
    print("\n".join(learning_lines(first_loss=None, last=straight, unigram_nats=unigram, shuffled=shuffled)))
    print(routing_table(straight, capacity_factor=loaded.cfg.moe.eval_capacity_factor))
