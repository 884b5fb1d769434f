"""The whole job as a user starts it: train on two ranks, evaluate, fill and generate in one process, resume.

The text is the help topics that come with Python: real, small, the same on every machine with one Python version.
"""

import json
import os
import pydoc_data.topics
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import cli
from launch.local import free_port
from launch.ranks.environment import STALE, module_search_path

SMALL = (
    "data=text",
    "data.tokenizer_vocab=400",
    "data.sentinels=20",
    "data.encoder_length=32",
    "data.workers=0",
    "model.vocab_size=512",
    "model.d_model=32",
    "model.d_ff=64",
    "model.d_kv=8",
    "model.num_heads=4",
    "moe.num_experts=4",
    "train.global_batch=8",
    "train.eval_batches=2",
    "train.log_every=1",
    "train.fill_samples=1",
    "schedule.warmup_steps=2",
    "logging.wandb=offline",
)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """A JSONL file of help topics."""
    path = tmp_path_factory.mktemp("text") / "topics.jsonl"
    topics = sorted(pydoc_data.topics.topics.items())
    path.write_text("".join(json.dumps({"text": text}) + "\n" for _, text in topics))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def environment():
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "POINTSMAN"))}
    return {**clean, "OMP_NUM_THREADS": "1"}


def pointsman(*arguments, cwd, timeout=240):
    """Run the command as installed, from a folder that is not the project's."""
    command = [str(Path(sys.executable).with_name("pointsman")), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return {row["step"]: row["train/loss"] for row in rows(run) if "train/loss" in row}


def overrides(text_file, cache, *more):
    return (*SMALL, f"data.files={text_file}", f"data.cache_dir={cache}", *more)


def test_train_evaluate_fill_generate(text_file, cache, tmp_path, capsys):
    out = pointsman(
        "train", *overrides(text_file, cache, "name=smoke", "train.steps=6", "train.eval_every=3"), cwd=tmp_path
    )
    run = tmp_path / "runs" / "smoke"
    assert "validation loss" in out
    assert "unigram model" in out
    assert "encoder.1" in out
    assert json.loads((run / "status.json").read_text())["ending"] == "done"
    logged = rows(run)
    assert [row["step"] for row in logged if "eval/loss" in row][:3] == [0, 3, 6]
    assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6]
    first = next(row for row in logged if "train/loss" in row)
    assert {"train/aux_loss", "train/dropped", "train/lr", "train/grad_norm", "perf/tokens_per_second"} <= set(first)
    assert "train/router/decoder.1/entropy" in first
    assert len(logged[0]["router/encoder.1/load"]) == 4
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()][-1].startswith("step_")
    evaluated = pointsman("eval", "runs/smoke", cwd=tmp_path)
    final = [row for row in logged if "eval/loss" in row][-1]["eval/loss"]
    assert f"{final:.3f}" in evaluated
    capsys.readouterr()
    assert cli.run(["fill", str(run), "The <mask> statement"]) == 0
    filled = capsys.readouterr().out
    assert filled.startswith("The ")
    assert filled.rstrip().endswith(" statement")
    # hot, because the likeliest token of so young a model may well be the end
    hot = ("--sample", "--temperature", "50", "--max-length", "5", "--ids")
    assert cli.run(["generate", str(run), "The statement", *hot]) == 0
    ids = [int(word) for word in capsys.readouterr().out.split()]
    assert ids
    assert all(1 < token < 420 for token in ids)


@pytest.mark.slow
def test_dense_twin_trains_in_one_process(text_file, cache, tmp_path):
    more = ("name=dense", "train.steps=2", "moe=dense", "parallel=data", "launch.nproc=1", "logging.wandb=off")
    out = pointsman("train", *overrides(text_file, cache, *more), cwd=tmp_path)
    assert "dense" in out
    assert sorted(losses(tmp_path / "runs" / "dense")) == [1, 2]


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(text_file, cache, tmp_path):
    more = ("train.steps=16", "train.save_every=4", "train.eval_every=0", "model.dropout=0.1")
    pointsman("train", *overrides(text_file, cache, *more, "name=straight"), cwd=tmp_path)
    command = [str(Path(sys.executable).with_name("pointsman")), "train"]
    command += overrides(text_file, cache, *more, "name=killed")
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    checkpoint = tmp_path / "runs" / "killed" / "checkpoints" / "step_00000008"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    out = pointsman("train", *overrides(text_file, cache, *more, "name=killed"), cwd=tmp_path)
    straight, killed = losses(tmp_path / "runs" / "straight"), losses(tmp_path / "runs" / "killed")
    assert sorted(killed) == sorted(straight) == list(range(1, 17))
    assert killed == straight, out


@pytest.mark.slow
def test_every_launcher_trains_to_the_same_losses(text_file, cache, tmp_path):
    """`pointsman train`, two torchrun agents that meet by rendezvous, and DeepSpeed's launcher."""
    common = ("train.steps=3", "train.eval_every=0", "train.save_every=0", "logging.wandb=off")

    def settings(name):
        return overrides(text_file, cache, *common, f"name={name}")

    pointsman("train", *settings("own"), cwd=tmp_path)
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    agent += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=both", "-m", "trainer.main"]
    finish(*[start([*agent, *settings("agents")], tmp_path) for _ in range(2)])
    deepspeed = [Path(sys.executable).with_name("deepspeed"), "--num_accelerators=2", f"--master_port={free_port()}"]
    finish(start([*deepspeed, "--module", "trainer.main", *settings("deepspeed")], tmp_path))
    own = losses(tmp_path / "runs" / "own")
    assert sorted(own) == [1, 2, 3]
    for name in ("agents", "deepspeed"):
        assert losses(tmp_path / "runs" / name) == own, name


def start(command, cwd):
    env = {name: value for name, value in environment().items() if name not in STALE}
    env |= {"PYTHONPATH": module_search_path("") or "", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)[-6000:]
