"""Writes, and on request submits, the Slurm batch script of a run: one task per node, each starting its node's ranks.

The script holds the run's settings and nothing of the environment: variables, a Weights & Biases key among them,
reach the job as `sbatch` passes them on and are written nowhere.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from conf.errors import ConfigError, SetupError
from conf.reading.redact import redact_text
from conf.schema import LaunchConfig, RunConfig
from launch.commands.kinds import define
from launch.commands.parameters import FILE, option, takes_overrides
from launch.naming import with_name
from launch.ranks.environment import STALE, module_search_path
from launch.torchrun import TRAINER, Rendezvous, torchrun_arguments

TEMPLATE = Path(__file__).with_name("sbatch.sh")
NOTICE_SECONDS = 180  # before the time limit, for the ranks to save and end
# Known only to the job; the shell expands them.
MEETING = Rendezvous(endpoint="$head:$port", run_id="$SLURM_JOB_ID-$start")


@define(
    notes="""\
    One task per node starts that node's ranks; they meet on the first node. Without an option the script is printed.
    The job is put back into the queue shortly before its time limit and continues from its last checkpoint.
    launch=slurm is meant: 8 ranks and GPUs per node unless launch.nproc and launch.slurm_gpus_per_node differ.""",
    examples=(
        "pointsman slurm launch.nodes=2 launch.nproc=8 launch.slurm_partition=gpu model=switch_base_128 parallel.ep=16",
        "pointsman slurm --write train.sbatch launch.nodes=2 launch.slurm_time=12:00:00",
        "pointsman slurm --submit launch.slurm_gpus_per_node=null launch.nproc=2 name=first_on_cpus",
    ),
)
@takes_overrides()
@option("--write", type=FILE, metavar="FILE", help="write the script to this file")
@option("--submit", is_flag=True, help="hand it to sbatch; a copy is kept in the run's folder")
def command(overrides: tuple[str, ...], write: Path | None, submit: bool) -> int:
    """Write or submit the Slurm batch script of a run."""
    if write is not None and submit:
        raise ConfigError("--write", got="--submit as well", needs="one of the two", hint="--submit alone")
    return script_of_run(overrides, write=write, submitted=submit)


def start(cfg: RunConfig, overrides: Sequence[str]) -> int:
    """Submit the run; sbatch's exit code."""
    return script_of_run(overrides, submitted=True)


def script_of_run(overrides: Sequence[str], *, write: Path | None = None, submitted: bool = False) -> int:
    """Print the script, write it or submit it; launch=slurm unless another launch preset is named. The exit code."""
    from conf.continued import compose_run
    from conf.rules.files import check_files

    if not any(word.startswith("launch=") for word in overrides):
        overrides = ["launch=slurm", *overrides]  # with the GPUs and restarts of a job, whatever this machine has
    cfg = compose_run(overrides, files="unchecked")
    for problem in check_files(cfg):
        print(f"note: not on this machine, so it must be on the compute nodes: {problem}", file=sys.stderr)
    named, overrides = with_name(overrides, cfg)
    script = batch_script(named, overrides)
    if submitted:
        return submit(script, folder=run_folder(named))
    if write is not None:
        write.write_text(script)
        run_folder(named).mkdir(parents=True, exist_ok=True)
        print(f"{write} written; submit it here with: sbatch {write}")
        return 0
    print(script, end="")
    return 0


def run_folder(cfg: RunConfig) -> Path:
    """Where the job's output goes, absolute: Slurm reads it in another working directory."""
    assert cfg.name is not None
    return (Path(cfg.runs_dir) / cfg.name).resolve()


class ScriptTemplate(Template):
    """`@name` is filled in; the shell's own `$` stays as it is."""

    delimiter = "@"


def batch_script(cfg: RunConfig, overrides: Sequence[str], *, module: str = TRAINER) -> str:
    """The script for `sbatch`. `overrides` are what the ranks compose again; `cfg` is what they come to."""
    launch, folder = cfg.launch, run_folder(cfg)
    container = launch.slurm_container
    log_dir = f"{folder}/ranks-$SLURM_JOB_ID"
    arguments = torchrun_arguments(launch, overrides, rendezvous=MEETING, log_dir=log_dir, module=module)
    exports = []
    if container is None and (search := module_search_path("")):
        exports.append(f"export PYTHONPATH={shlex.quote(search)}")
    if launch.max_restarts:
        exports.append("export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
    text = ScriptTemplate(TEMPLATE.read_text()).substitute(
        directives="\n".join(directives(cfg, folder)),
        stale=" ".join(STALE),
        threads=launch.threads_per_rank or max(1, cpus_per_task(launch) // launch.nproc),
        notice=NOTICE_SECONDS,
        grace=NOTICE_SECONDS - 60,
        exports="\n".join(exports),
        nodes=launch.nodes,
        cpus=cpus_per_task(launch),
        container=container_options(container, folder),
        python="python" if container else shlex.quote(sys.executable),
        arguments=" \\\n    ".join(_shell_word(word) for word in arguments),
    )
    return redact_text(text)


def cpus_per_task(launch: LaunchConfig) -> int:
    """Cores for the one task of a node: as configured, else one for each of its ranks."""
    return launch.slurm_cpus_per_task or launch.nproc


def directives(cfg: RunConfig, folder: Path) -> list[str]:
    """The `#SBATCH` lines."""
    launch = cfg.launch
    wanted = {
        "job-name": f"pointsman-{cfg.name}",
        "nodes": launch.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpus_per_task(launch),
        "gpus-per-node": launch.slurm_gpus_per_node,
        "partition": launch.slurm_partition,
        "account": launch.slurm_account,
        "time": launch.slurm_time,
        "output": f"{folder}/slurm-%j.out",
        "open-mode": "append",  # a requeued job goes on in the same file
        "signal": f"B:USR1@{NOTICE_SECONDS}",  # B: to the script, which passes it on and puts the job back
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in wanted.items() if value is not None]
    return [*lines, "#SBATCH --requeue"]


def container_options(image: str | None, folder: Path) -> str:
    """Options of `srun` for a container (pyxis and enroot): the working directory and the run's folder, as outside."""
    if image is None:
        return ""
    mounts = f'"$PWD:$PWD,{folder}:{folder}"'
    return f'--container-image={shlex.quote(image)} --container-mounts={mounts} --container-workdir="$PWD" '


def submit(script: str, *, folder: Path) -> int:
    """Hand the script to `sbatch` and keep a copy in the run's folder; return sbatch's exit code.

    Raises:
        SetupError: this machine has no `sbatch`.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise SetupError(
            "sbatch: not found on PATH; needs a machine with Slurm's commands, as a rule the login node; "
            "try `pointsman slurm --write FILE` here and sbatch there"
        )
    folder.mkdir(parents=True, exist_ok=True)  # Slurm does not create the folder of --output
    copy = folder / "train.sbatch"
    copy.write_text(script)
    return subprocess.run([sbatch, str(copy)], check=False).returncode


def _shell_word(word: str) -> str:
    """Quoted for the shell; of our own arguments only the variables of `MEETING` and the log folder stay alive."""
    if word.startswith(("--rdzv-endpoint=", "--rdzv-id=", "--log-dir=")):
        return f'"{word}"'
    return shlex.quote(word)
