"""`pointsman eval RUN`: losses and routing of a checkpoint on held-out text, in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands.kinds import define
from launch.commands.parameters import takes_overrides, takes_run

if TYPE_CHECKING:
    from data.batch import StepBatch
    from trainer.report.metrics import Report


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
    from data.corpus import open_corpus
    from data.loader import build_loader
    from data.prepare import prepare_data
    from trainer.evaluate import evaluate, unigram_nats
    from trainer.loading import load_run
    from trainer.report.metrics import Meter
    from trainer.report.progress import PreparationView
    from trainer.report.routing_table import routing_table
    from trainer.report.summary import learning_lines
    from trainer.session import layer_names

    loaded = load_run(path, overrides=overrides)
    cfg, module = loaded.cfg, loaded.module
    view = PreparationView()
    prepare_data(cfg, progress=view.update)
    view.close()
    corpus = open_corpus(cfg)

    def batches(*, shuffled: bool = False) -> Iterator[StepBatch]:
        return build_loader(corpus, cfg, split="validation", dp_rank=0, dp_size=1, shuffled_inputs=shuffled)

    def report(*, shuffled: bool) -> Report:
        meter = Meter(pieces=corpus.tokenizer.pieces, layer_names=layer_names(cfg))
        return evaluate(module, batches(shuffled=shuffled), meter, mesh=loaded.mesh, device=loaded.device)

    straight = report(shuffled=False)
    unigram = unigram_nats(corpus, batches(), loaded.mesh)
    print(f"{loaded.reader.path} at step {loaded.reader.state['step']}, {straight.tokens:,.0f} target tokens")
    print(
        "\n".join(learning_lines(first_loss=None, last=straight, unigram_nats=unigram, shuffled=report(shuffled=True)))
    )
    print(routing_table(straight, capacity_factor=cfg.moe.eval_capacity_factor))
