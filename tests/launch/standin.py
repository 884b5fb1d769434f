"""A rank that stands in for the trainer: meets its peers over gloo, sums their ranks, leaves a file, does as told.

Arguments are words `key=value`: `out=FOLDER` (where rank-N.json goes), `act=fail:R` (rank R, or each for `all`, raises
a ConfigError after the meeting), `act=crash:R` (rank R raises an unexpected exception, once), `act=die:R` and
`act=hang:R` (rank R is killed, or stopped as it stands), `act=wait` (sleep until a signal, note it).
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path

from conf.errors import ConfigError
from launch.identity import check_packages
from launch.process import guarded, noted
from launch.ranks.bound import die_with_launcher


def work() -> int:
    check_packages()
    words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word and not word.startswith("--"))
    out = Path(words["out"])
    action, _, target = words.get("act", "").partition(":")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda signum, _frame: stopped.append(signum))

    import torch
    import torch.distributed as dist

    from parallel.mesh.failure import told_to_peers
    from parallel.mesh.groups import destroy_groups

    try:
        with noted(), told_to_peers():
            dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=5 if action == "hang" else 30))
            total = torch.tensor([rank], dtype=torch.int64)
            dist.all_reduce(total)
            print(f"rank {rank} of {world}: sum {total.item()}, terminal {sys.stdout.isatty()}", flush=True)
            if action == "fail" and target in ("all", str(rank)):
                raise ConfigError("train.steps", got=-1, needs="a positive number", hint="train.steps=100")
            marker = out / "crashed"
            if action == "crash" and rank == int(target) and not marker.exists():
                marker.touch()
                raise RuntimeError("an unexpected crash")
            if action in ("die", "hang") and rank == int(target):
                os.kill(os.getpid(), signal.SIGKILL if action == "die" else signal.SIGSTOP)
            if action in ("fail", "die", "hang"):
                dist.all_reduce(total)  # the peers of a failed rank see their connection close
            (out / f"rank-{rank}.json").write_text(json.dumps(report(int(total.item()))))
            while action == "wait" and not stopped:
                time.sleep(0.05)
    finally:
        destroy_groups()  # as the trainer does, however it ends
    if stopped:
        (out / f"stopped-{rank}").write_text(signal.Signals(stopped[0]).name)
    return 0


def report(total: int) -> dict[str, object]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMP_NUM_THREADS", "SLURM_JOB_ID")
    return {
        "sum": total,
        "argv": sys.argv[1:],
        "cwd": os.getcwd(),
        "pid": os.getpid(),
        "env": {name: os.environ[name] for name in names if name in os.environ},
    }


if __name__ == "__main__":
    die_with_launcher()
    sys.exit(guarded(work))
