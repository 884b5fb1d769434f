"""A run of two steps, made once: what tests damage is a copy of it."""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import shutil
from pathlib import Path

import pytest

from trainer.main import main

WORDS = (
    "data=text", "data.tokenizer_vocab=300", "data.sentinels=20", "data.encoder_length=24",
    "data.workers=0", "data.prepare_workers=1", "model.vocab_size=384", "model.d_model=16", "model.d_ff=16",
    "model.d_kv=4", "model.num_heads=2", "moe.num_experts=2", "train.global_batch=4", "train.eval_batches=1",
    "train.log_every=1", "train.fill_samples=1", "train.keep_last=1", "train.steps=2", "train.eval_every=1",
    "schedule.warmup_steps=1", "logging.wandb=off", "launch.nproc=1",
)  # fmt: skip


def start(folder: Path, *more: str) -> int:
    """Start or continue the run below `folder`, in this process; its exit code."""
    home = os.getcwd()
    os.chdir(folder)
    try:
        return main(["name=mine", *more])
    finally:
        os.chdir(home)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    topics = sorted(pydoc_data.topics.topics.values())[:60]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in topics))
    assert start(folder, *WORDS, f"data.files={folder}/text.jsonl", f"data.cache_dir={folder}/cache") == 0
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """A folder with runs/mine, of which `start` continues the run; text and cache are elsewhere."""
    shutil.copytree(_trained / "runs", tmp_path / "runs")
    return tmp_path
