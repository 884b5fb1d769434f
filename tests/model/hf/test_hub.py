"""Checkpoints of the hub, from a stand-in for it: fetched once, refused with what to do, and from the cache alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.hf.hub import is_repository
from tests.model.hf.folders import SWITCH, folder_of, masters
from tests.model.hf.hub_server import COMMIT, hub

CALLS = """
import sys
from launch.cli import main
for line in sys.argv[1:]:
    print("=====", main(["import-hf", *line.split()]), flush=True)
    print("=====", file=sys.stderr, flush=True)
"""


def calls(folder: Path, address: str, *lines: str) -> tuple[list[str], list[str]]:
    """`pointsman import-hf` with each of the lines, below `folder`; what each printed, and what it said of errors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", CALLS, *lines]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("===== "), done.stderr.split("=====\n")


@pytest.mark.slow
def test_a_repository_becomes_a_run_and_serves_again_without_a_network(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", SWITCH)
    pickled = folder_of(tmp_path / "pickled", SWITCH)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for folder in (theirs, pickled):
        (folder / "modeling.py").write_text("raise SystemExit")
        (folder / "tf_model.h5").write_bytes(b"x")
    repositories = {"made/up": theirs, "made/pickled": pickled}
    with hub(repositories, gated="made/gated") as (address, asked):
        out, err = calls(
            tmp_path, address, "made/up", "made/pickled --name bin", "made/up", "made/none", "made/gated",
            "made/up --revision other --name other",
        )  # fmt: skip
    assert [text.split()[0] for text in out[1:]] == ["0", "0", "2", "2", "2", "2"]
    assert f"made/up: commit {COMMIT}" in out[0]
    assert "No tokenizer" in out[0]
    for name, folder in (("up", theirs), ("bin", theirs)):
        ours = masters(tmp_path / "runs" / name)
        assert torch.equal(ours["shared.weight"][:50], load_file(folder / "model.safetensors")["shared.weight"])
    assert not any(path.endswith((".py", ".h5")) for path in asked)
    assert "--name: got 'runs/up'" in err[2]
    assert "DIR: got 'made/none'; needs a public repository of the hub" in err[3]
    assert "DIR: got 'made/gated'; needs a repository that this machine may read" in err[4]
    assert "--revision: got 'other'; needs a branch, tag or commit of made/up" in err[5]
    out, err = calls(tmp_path, "http://127.0.0.1:9", "made/up --name again", "made/unseen")
    assert [text.split()[0] for text in out[1:]] == ["0", "2"]
    assert masters(tmp_path / "runs/again").keys() == masters(tmp_path / "runs/up").keys()
    assert "DIR: got 'made/unseen'; needs a folder here, a repository in the hub's cache, or a network" in err[1]
    assert "try `hf download made/unseen --local-dir unseen` where there is one" in err[1]
    assert "Traceback" not in "".join(err)


def test_what_is_on_this_machine_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_repository("google/switch-base-8")
    for name in ("t5-small", "/a/b", "a/b/c", "./a", "../a", "a/", "~/a", "a b/c"):
        assert not is_repository(name), name
    (tmp_path / "google/switch-base-8").mkdir(parents=True)
    assert not is_repository("google/switch-base-8")
