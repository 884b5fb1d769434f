"""What a person reads when a run ends: three measures of learning, filled spans, and where everything is."""

from __future__ import annotations

from collections.abc import Sequence

from conf.safety import shell
from trainer.report.metrics import Report
from trainer.run_dir import RunDir


def learning_lines(*, first_loss: float | None, last: Report, unigram_nats: float, shuffled: Report) -> list[str]:
    """How far the loss fell, how it compares with a unigram model, and whether the decoder reads the encoder."""
    lines = []
    if first_loss is not None:
        fall = 1.0 - last.loss / first_loss
        lines.append(f"validation loss      {first_loss:.3f} -> {last.loss:.3f} nats per token (down {fall:.0%})")
    else:
        lines.append(f"validation loss      {last.loss:.3f} nats per token")
    others = "".join(f"   {kind} tokens {loss:.3f}" for kind, loss in last.by_kind.items() if kind != "text")
    lines.append(f"  text tokens        {last.loss_text:.3f}{others}")
    lines.append(
        f"unigram model        {unigram_nats:.3f} on the text tokens: the model is "
        f"{abs(unigram_nats - last.loss_text):.3f} nats {'better' if last.loss_text < unigram_nats else 'WORSE'}"
    )
    lines.append(
        f"shuffled input       {shuffled.loss_text:.3f} on the text tokens: reading the input in order is worth "
        f"{shuffled.loss_text - last.loss_text:+.3f} nats"
    )
    return lines


def where_lines(
    run: RunDir, sinks: Sequence[str], *, checkpoints: Sequence[str], command: tuple[str, str, str]
) -> list[str]:
    """Paths of everything the run wrote (`sinks`: what the sinks say), and what to do next: commands to be pasted.

    `command`: what the task invites to try (`data.tasks.task.Task`).
    """
    root, names = shell.word(run.root), [f"name={run.root.name}"]
    if run.root.parent.name != "runs":
        names.append(f"runs_dir={run.root.parent}")
    label, verb, text = command
    return [
        f"run folder           {run.root}",
        f"  configuration      {run.config}",
        f"  checkpoints        {run.checkpoints} ({', '.join(checkpoints) or 'none'})",
        *sinks,
        f"evaluate             pointsman eval {root}",
        f"{label:<20} pointsman {verb} {root} {shell.word(text)}",
        f"continue             pointsman train {shell.line(names)} train.steps=...",
    ]
