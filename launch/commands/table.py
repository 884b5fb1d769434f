"""The commands of `pointsman`, one row each. A new one is a row here and a file that has a click command `command`."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One command; its module is imported when it is run or asked for help."""

    name: str
    module: str
    summary: str


COMMANDS = (
    Row("train", "launch.commands.train", "train a model on this machine (or submit it: launch=slurm)"),
    Row("eval", "trainer.commands.eval", "losses and routing of a checkpoint on held-out text"),
    Row("fill", "trainer.commands.fill", "fill the masked spans of a sentence"),
    Row("generate", "trainer.commands.generate", "generate from a checkpoint: greedy, sampling, beams"),
    Row("prepare", "trainer.commands.prepare", "train the tokenizer, turn documents into shards"),
    Row("config", "launch.commands.config", "print the composed configuration and what follows from it"),
    Row("study", "measure.studies.study", "a grid of runs that answers one question, and its page"),
    Row("bench", "measure.speed.bench", "timings as ratios against a peer measured in the same run"),
    Row("import-hf", "trainer.commands.import_hf", "a Hugging Face T5 or Switch checkpoint as a run"),
    Row("export-hf", "trainer.commands.export_hf", "a run as a Hugging Face checkpoint"),
    Row(
        "verify-parallel",
        "measure.verify.verify_parallel",
        "show that layouts train as one process does, down to every gradient",
    ),
    Row("doctor", "trainer.commands.doctor", "versions, backends, an all-to-all check"),
    Row("slurm", "launch.slurm", "write or submit a Slurm batch script"),
    Row("completion", "launch.commands.completion", "print what makes your shell complete commands and settings"),
)
