"""The commands of `pointsman` and the text of their help."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launch.identity import ROOT

PROJECT = "Pointsman trains Switch Transformers with tensor, data and expert parallelism."


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command."""

    name: str
    summary: str
    module: str | None = None  # whose `main(argv) -> int` does the work in this process; None: `launch.cli` itself
    usage: str = "[OVERRIDES]"
    details: str = ""  # help of a command without a module; modules print their own


COMMANDS = {
    command.name: command
    for command in (
        Command(
            name="train",
            summary="train a model on this machine (or submit it: launch=slurm)",
            details="""\
Composes and checks the configuration, then starts launch.nproc ranks. Interrupt with Ctrl-C.
The same command with the same name= continues the run from its last checkpoint (train.resume=auto).

examples
  pointsman train                                              the small default, on Python's standard library
  pointsman train train.steps=200 launch.nproc=4 parallel.ep=4
  pointsman train data=text data.files='docs/*.jsonl' name=mine
  pointsman train model=switch_base_8 parallel.tp=2 parallel.ep=2 launch.nproc=4
  torchrun --nproc-per-node=2 -m trainer.main train.steps=200  with the launcher you have

A run writes to runs/<name>/: config.yaml, metrics.jsonl, checkpoints/, the Weights & Biases run.
Several nodes: give launch.nodes, launch.nproc and launch.rdzv_endpoint=HOST:PORT and run the command on each.""",
        ),
        Command(
            name="eval", summary="losses and routing of a checkpoint on held-out text", module="trainer.commands.eval"
        ),
        Command(name="fill", summary="fill the masked spans of a sentence", module="trainer.commands.fill"),
        Command(
            name="generate",
            summary="generate from a checkpoint: greedy, sampling, beams",
            module="trainer.commands.generate",
        ),
        Command(name="prepare", summary="train the tokenizer, turn documents into shards", module="data.prepare"),
        Command(
            name="config",
            summary="print the composed configuration and what follows from it",
            details="""\
Nothing is started. Takes the same overrides as `train` and refuses what `train` would refuse.

examples
  pointsman config
  pointsman config model=switch_base_128 launch.nproc=8 parallel.ep=8""",
        ),
        Command(
            name="study",
            summary="a grid of runs that answers one question, and its page: headline, precision",
            module="measure.studies.study",
            usage="NAME [OPTIONS]",
        ),
        Command(
            name="bench",
            summary="timings as ratios against a peer measured in the same run",
            module="measure.speed.bench",
            usage="[WHAT...] [OVERRIDES]",
        ),
        Command(
            name="import-hf",
            summary="a Hugging Face T5 or Switch checkpoint as a run",
            module="trainer.commands.import_hf",
        ),
        Command(name="export-hf", summary="a run as a Hugging Face checkpoint", module="trainer.commands.export_hf"),
        Command(
            name="verify-parallel",
            summary="show that layouts train as one process does, down to every gradient",
            module="measure.verify.verify_parallel",
            usage="[OVERRIDES] [--layouts 'tp=2 ep=2 zero=1' ...]",
        ),
        Command(name="doctor", summary="versions, backends, an all-to-all check", module="trainer.commands.doctor"),
        Command(
            name="slurm",
            summary="write or submit a Slurm batch script",
            usage="[--write FILE | --submit] [OVERRIDES]",
            details="""\
One task per node starts that node's ranks; they meet on the first node. Without an option the script is printed.
The job is put back into the queue shortly before its time limit and continues from its last checkpoint.
launch=slurm is meant: 8 ranks and as many GPUs per node unless launch.nproc and launch.slurm_gpus_per_node differ.

examples
  pointsman slurm launch.nodes=2 launch.nproc=8 launch.slurm_partition=gpu model=switch_base_128 parallel.ep=16
  pointsman slurm --write train.sbatch launch.nodes=2 launch.slurm_time=12:00:00
  pointsman slurm --submit launch.slurm_gpus_per_node=null launch.nproc=2 name=first_on_cpus""",
        ),
    )
}


def overview() -> str:
    """Help of `pointsman` itself."""
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS.values())
    return f"""\
{PROJECT}

usage: pointsman COMMAND [OVERRIDES]      pointsman COMMAND --help      pointsman --version

commands
{table}

overrides (Hydra's): a preset for a group, or a value for a field
  model=t5_small          take another file of the group conf/model/
  train.steps=1000        set one field; `pointsman config` lists them all
  data.files='*.txt'      quote what the shell would expand
presets
{presets()}

first steps
  pointsman train                                   a small model on the text of Python's standard library
  pointsman fill runs/NAME "The <mask> of the list."   ask the model you have just trained
  pointsman config parallel.tp=2 launch.nproc=4     what a layout would be, without starting it

Everything a run writes lies in runs/<name>/; tokenizers and shards in data.cache_dir.
--debug (or POINTSMAN_DEBUG=1) shows the traceback of an error."""


def command_help(command: Command) -> str:
    """Help of one command that has no module."""
    usage = f"usage: pointsman {command.name} {command.usage}"
    return f"{command.summary}\n\n{usage}\n\n{command.details}\n\npresets\n{presets()}"


def presets() -> str:
    """The groups of `conf/` with their files, one group a line, wrapped."""
    lines = []
    for group in sorted(folder for folder in (ROOT / "conf").iterdir() if folder.is_dir()):
        names = sorted((f.stem for f in group.glob("*.yaml") if not f.stem.startswith("_")), key=_natural)
        if names:
            lines.append(_wrapped(f"  {group.name}=", names))
    return "\n".join(lines)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts base_8 before base_16."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _wrapped(head: str, names: list[str], *, width: int = 110) -> str:
    lines, line = [], head.ljust(12)
    for name in names:
        if len(line) + len(name) > width:
            lines.append(line.rstrip())
            line = " " * 12
        line += name + "  "
    return "\n".join([*lines, line.rstrip()])
