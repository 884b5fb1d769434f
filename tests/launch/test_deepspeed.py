"""The `deepspeed` launcher starts the module as it stands: two ranks on the CPU, a stand-in for the trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.local import free_port
from launch.ranks.environment import STALE, module_search_path


@pytest.mark.slow
def test_deepspeed_launcher_starts_two_ranks(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in STALE}
    env = {**clean, "PYTHONPATH": module_search_path("") or "", "DS_ACCELERATOR": "cpu"}
    script = Path(sys.executable).with_name("deepspeed")
    port = f"--master_port={free_port()}"
    command = [script, "--num_accelerators=2", port, "--module", "tests.launch.standin", f"out={tmp_path}", "act=none"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [report["sum"] for report in reports] == [1, 1]
    for rank, report in enumerate(reports):
        # What the trainer has to cope with: a flag before its overrides, and LOCAL_SIZE for LOCAL_WORLD_SIZE.
        assert report["argv"] == [f"--local_rank={rank}", f"out={tmp_path}", "act=none"]
        assert report["env"]["LOCAL_SIZE"] == "2"
        assert "LOCAL_WORLD_SIZE" not in report["env"]
