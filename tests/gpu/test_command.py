"""`pointsman` as a user types it, on one GPU: train, continue exactly, evaluate on the CPU, measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.devices import ON_GPU, SLOW_CPU, child_environment
from tests.test_end_to_end import cache, losses, overrides, rows, text_file

__all__ = ["cache", "text_file"]  # fixtures
BACKEND = {"cpu": "gloo", "cuda": "nccl"}


def pointsman(*arguments, cwd, timeout=300) -> str:
    command = [str(Path(sys.executable).with_name("pointsman")), *map(str, arguments)]
    environment = {k: v for k, v in child_environment().items() if not k.startswith(("WANDB", "POINTSMAN"))}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("device", [ON_GPU])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_train_continue_and_evaluate_elsewhere(device, precision, text_file, cache, tmp_path):
    one = ("launch.nproc=1", "parallel.ep=1", f"train.precision={precision}", f"parallel.backend={BACKEND[device]}")
    common = overrides(text_file, cache, *one, "schedule=constant", "train.eval_every=0", "logging.wandb=off")
    out = pointsman("train", *common, "name=straight", "train.steps=6", cwd=tmp_path)
    assert f", {device}" in out, "the run says what it computes on"
    for steps in (3, 6):
        pointsman("train", *common, "name=stopped", f"train.steps={steps}", cwd=tmp_path)
    straight, stopped = (losses(tmp_path / "runs" / name) for name in ("straight", "stopped"))
    assert sorted(straight) == [1, 2, 3, 4, 5, 6]
    assert stopped == straight, "a run that was continued is the run that was not stopped, to the last digit"
    last = [row for row in rows(tmp_path / "runs" / "straight") if "eval/loss" in row][-1]["eval/loss"]
    told = pointsman("eval", "runs/straight", "parallel.backend=gloo", cwd=tmp_path)
    found = float(told.split("validation loss", 1)[1].split()[0])
    assert found == pytest.approx(last, abs={"fp32": 2e-3, "bf16": 2e-2}[precision])
    pointsman("generate", "runs/straight", "The statement", "--sample", "--max-length", "4", "--ids", cwd=tmp_path)


@pytest.mark.parametrize("device", [SLOW_CPU, ON_GPU])
def test_benchmarks_run(device, tmp_path):
    settings = ("launch.nproc=1", f"parallel.backend={BACKEND[device]}", "train.global_batch=16", "--rounds", "1")
    out = pointsman("bench", "step", "layer", "router", *settings, cwd=tmp_path)
    assert "dense twin" in out
    assert "loop over experts" in out
