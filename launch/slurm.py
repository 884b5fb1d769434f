"""Writes, and on request submits, the Slurm batch script of a run: one task per node, each starting its node's ranks.

The script holds the run's settings and nothing of the environment: variables, a Weights & Biases key among them,
reach the job as `sbatch` passes them on and are written nowhere. A setting that holds a secret is refused, unless a
variable has it too: then the variable is named instead.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from conf.errors import ConfigError, SetupError
from conf.reading.convert import to_dict
from conf.reading.paths import user_path
from conf.reading.setting_files import key_of, told
from conf.rules.sections import NOTICE_SECONDS
from conf.safety import shell
from conf.safety.redact import redact, redact_text, secrets
from conf.schema import LaunchConfig, RunConfig
from launch.commands.kinds import define
from launch.commands.output import OUTPUT, write_output
from launch.commands.parameters import option, takes_overrides
from launch.naming import with_name
from launch.ranks.allocator import TUNABLES, VARIABLE
from launch.ranks.environment import STALE, module_search_path
from launch.torchrun import TRAINER, Rendezvous, torchrun_arguments

TEMPLATE = Path(__file__).with_name("sbatch.sh")
MOST_STARTS = 2  # of a job without a new checkpoint
# Known only to the job; the shell expands them.
MEETING = Rendezvous(endpoint="$head:$port", run_id="$SLURM_JOB_ID-$start")
LOG_DIR = "$folder/ranks-$SLURM_JOB_ID"
_ALIVE = (f"--rdzv-endpoint={MEETING.endpoint}", f"--rdzv-id={MEETING.run_id}", f"--log-dir={LOG_DIR}")


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
@option("--write", type=OUTPUT, metavar="FILE", help="write the script to this file")
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
        make_folder(run_folder(named))
        write_output(write, script)
        print(f"{write} written; submit it here with: {shell.line(['sbatch', write])}")
        return 0
    print(script, end="")
    return 0


def run_folder(cfg: RunConfig) -> Path:
    """Where the job's output goes, absolute: Slurm reads it in another working directory."""
    assert cfg.name is not None
    return (user_path(cfg.runs_dir) / cfg.name).resolve()


def make_folder(folder: Path) -> None:
    """Make the run's folder, for Slurm does not create that of --output. Raises ConfigError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        needs = f"a folder that can be written ({folder}: {error.strerror})"
        raise ConfigError("runs_dir", got=str(folder.parent), needs=needs, hint="runs_dir=runs") from error


class ScriptTemplate(Template):
    """`@name` is filled in; the shell's own `$` stays as it is."""

    delimiter = "@"


def batch_script(cfg: RunConfig, overrides: Sequence[str], *, module: str = TRAINER) -> str:
    """The script for `sbatch`. `overrides` are what the ranks compose again; `cfg` is what they come to.

    Raises:
        ConfigError: a value cannot stand in a script: a secret, a control character, or what Slurm takes for syntax.
    """
    launch, folder = cfg.launch, run_folder(cfg)
    container = launch.slurm_container
    check_folder(folder, in_container=container is not None)
    for name, value in to_dict(launch).items():
        if redact(value) != value:
            raise ConfigError(f"launch.{name}", got=redact(value), needs="no secret: the script is a file", hint="null")
    overrides = [without_secret(word) for word in overrides]
    arguments = torchrun_arguments(launch, overrides, rendezvous=MEETING, log_dir=LOG_DIR, module=module)
    exports = []
    if container is None and (search := module_search_path("")):
        exports.append(f"export PYTHONPATH={shell.word(search)}")
    if container is not None:
        exports.append('case $PWD in *[,:]*) echo "error: $PWD: cannot be mounted: , and :" >&2; exit 2 ;; esac')
    if launch.max_restarts:
        exports.append("export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
    text = ScriptTemplate(TEMPLATE.read_text()).substitute(
        directives="\n".join(directives(cfg, folder)),
        stale=" ".join(STALE),
        threads=launch.threads_per_rank or max(1, cpus_per_task(launch) // launch.nproc),
        allocator=f'[ -n "${{LD_PRELOAD-}}" ] || compgen -e MALLOC_ > /dev/null || '
        f'export {VARIABLE}="${{{VARIABLE}-{TUNABLES}}}"',
        notice=NOTICE_SECONDS,
        grace=NOTICE_SECONDS - 60,
        exports="\n".join(exports),
        folder=shell.word(folder),
        most=MOST_STARTS,
        nodes=launch.nodes,
        cpus=cpus_per_task(launch),
        container=container_options(container),
        python="python" if container else shell.word(Path(sys.executable)),
        arguments=" \\\n    ".join(f'"{word}"' if word in _ALIVE else shell.word(word) for word in arguments),
    )
    check_secrets(text)
    return text


def check_folder(folder: Path, *, in_container: bool) -> None:
    """Raise ConfigError for a run's folder that Slurm, or what mounts it, would take for something else."""
    if (problem := shell.control_character("runs_dir", str(folder))) is not None:
        raise problem
    refused = "\\,:" if in_container else "\\"
    if found := [sign for sign in refused if sign in str(folder)]:
        needs = "a folder without \\, by which Slurm takes no %j for a job's number"
        if in_container:
            needs += ", and with launch.slurm_container none with , or :, which separate mounts"
        raise ConfigError("runs_dir", got=f"{folder}, with {' '.join(found)}", needs=needs, hint="runs_dir=/PATH")


def without_secret(word: str) -> str:
    """An override as the script may hold it. Raises ConfigError, naming the setting, for a secret in it."""
    word = told(word)
    if (problem := shell.control_character(key_of(word), word)) is not None:
        raise problem
    if redact_text(word) == word:
        return word
    key = key_of(word)
    hint = f"{key}='...${{oc.env:NAME}}...', with the secret in a variable, which sbatch passes on"
    raise ConfigError(key, got=redact_text(word), needs="no secret: the script is a file", hint=hint)


def check_secrets(script: str) -> None:
    """Raise ConfigError, naming the variable, for the value of a secret variable that got into the script otherwise."""
    for secret, name in secrets().items():
        if secret in script:
            needs = "a value that is no part of a path or setting of the job: the script is a file"
            raise ConfigError(name, got="a variable that looks secret", needs=needs, hint=f"unset {name}")


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
        "output": f"{str(folder).replace('%', '%%')}/slurm-%j.out",
        "open-mode": "append",  # a requeued job goes on in the same file
        "signal": f"B:USR1@{NOTICE_SECONDS}",  # B: to the script, which passes it on and puts the job back
    }
    lines = [f"#SBATCH --{name}={shell.directive(str(value))}" for name, value in wanted.items() if value is not None]
    return [*lines, "#SBATCH --requeue"]


def container_options(image: str | None) -> str:
    """Options of `srun` for a container (pyxis and enroot): the working directory and the run's folder, as outside."""
    if image is None:
        return ""
    mounts = '--container-mounts="$PWD:$PWD,$folder:$folder" --container-workdir="$PWD"'
    return f"--container-image={shell.word(image)} {mounts} "


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
    make_folder(folder)
    copy = folder / "train.sbatch"
    write_output(copy, script)
    return subprocess.run([sbatch, str(copy)], check=False).returncode
