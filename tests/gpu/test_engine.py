"""Training steps through the engine on a device: NCCL on GPUs, gloo on the CPU, held against plain torch on the CPU.

On the CPU these are slow tests, whose point is that the check itself works.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.gpu.devices import GPU, ON_GPU, SLOW_CPU, TWO_GPUS, child_environment
from tests.trainer.test_layouts import STEPS, TINY, config, oracle

BACKEND = {"cpu": "gloo", "cuda": "nccl"}
LIMIT = {"cpu": 1e-5, "cuda": 1e-4}  # other orders of summation, through four steps of AdamW
ONE = (*TINY, "parallel.tp=1", "parallel.ep=1")


def train(folder, device: str, cases: list[dict], *, nproc: int = 1) -> list[list[list[float]]]:
    """Histories of the cases, trained one after the other in processes of their own; nproc 0: without a launcher."""
    spec, out = folder / f"spec-{device}.json", folder / f"out-{device}.json"
    spec.write_text(json.dumps({"device": device, "backend": BACKEND[device], "cases": cases, "out": str(out)}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    command = [*(command if nproc else [sys.executable]), "-m", "tests.gpu.engine_child", str(spec)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return json.loads(out.read_text())


def near(ours, theirs, limit: float, what: object = "") -> None:
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert tuple(a) == pytest.approx(tuple(b), rel=limit), f"step {step} {what}"


def case(*overrides: str, steps: int = STEPS, **folders) -> dict:
    return {"overrides": [*ONE, *overrides], "steps": steps, **{k: str(v) for k, v in folders.items()}}


@pytest.mark.parametrize("device", [SLOW_CPU, ON_GPU])
def test_fp32_steps_are_those_of_plain_torch(device, tmp_path):
    variants = [(f"parallel.zero={stage}",) for stage in (0, 1, 2)]
    variants += [
        ("parallel.zero=1", "train.accumulation=4"),
        ("parallel.zero=2", "train.activation_checkpointing=true"),
    ]
    expected = oracle(config("one"))
    for variant, history in zip(variants, train(tmp_path, device, [case(*v) for v in variants]), strict=True):
        near(history, expected, LIMIT[device], what=variant)


@pytest.mark.parametrize("device", [ON_GPU])
def test_bf16_steps_stay_near_fp32(device, tmp_path):
    histories = train(tmp_path, device, [case("train.precision=bf16", f"parallel.zero={stage}") for stage in (0, 1, 2)])
    losses = torch.tensor([loss for loss, _ in oracle(config("one"))])
    for stage, history in enumerate(histories):
        ours = torch.tensor([loss for loss, _ in history])
        assert float(((ours - losses) / losses).abs().max()) < 2e-2, f"ZeRO {stage}: {ours} for {losses}"
        assert not torch.equal(ours, losses), "bf16 was on"


STAGES = [pytest.param("cpu", 1, marks=pytest.mark.slow), *(pytest.param("cuda", n, marks=GPU) for n in (0, 1, 2))]


@pytest.mark.parametrize(("device", "stage"), STAGES)
def test_a_checkpoint_of_the_device_continues_there_and_on_the_cpu(device, stage, tmp_path):
    zero, folder = f"parallel.zero={stage}", tmp_path / "checkpoints"
    straight, _, resumed = train(
        tmp_path, device, [case(zero), case(zero, steps=2, save=folder), case(zero, steps=2, load=folder)]
    )
    assert resumed == straight[2:], "continuing repeats every bit"
    (on_cpu,) = train(tmp_path, "cpu", [case(zero, steps=2, load=folder)])
    near(on_cpu, straight[2:], LIMIT[device])


@pytest.mark.parametrize("device", [ON_GPU])
def test_a_process_without_a_launcher_trains_as_well(device, tmp_path):
    """What studies and a notebook do: the engine makes a group of one rank itself."""
    (history,) = train(tmp_path, device, [case("launch.nproc=1")], nproc=0)
    near(history, oracle(config("one")), LIMIT[device])


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=TWO_GPUS)])
@pytest.mark.parametrize("layout", ["parallel.ep=2", "parallel.tp=2", "parallel.ep=1"])
def test_two_ranks_are_one_process(device, layout, tmp_path):
    ours = [{"overrides": [*TINY, layout, f"parallel.zero={stage}"], "steps": STEPS} for stage in (0, 1, 2)]
    expected = oracle(config("one"))
    for history in train(tmp_path, device, ours, nproc=2):
        near(history, expected, LIMIT[device])
