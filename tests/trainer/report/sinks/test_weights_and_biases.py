"""W&B as its users know it, against a stand-in server: nothing is lost, overwritten, held up or sent unasked."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from tests.trainer.report.sinks.openings import opening
from tests.trainer.report.sinks.wandb_server import WandbServer
from trainer.report.log import RunLog
from trainer.report.sinks import weights_and_biases
from trainer.report.sinks.wandb_pieces import read_pieces
from trainer.report.sinks.weights_and_biases import wandb_choice

LOAD = {f"router/encoder.{layer}/load": [1 / 32] * 32 for layer in (1, 3)}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch, tmp_path):
    """Whoever runs the tests may have an account, and settings of their own."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # W&B takes seconds of processor time to start, and here a run has ended before that.
    monkeypatch.setattr(weights_and_biases, "_CONNECT_S", 60.0)


def use(monkeypatch, server):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def record(root, steps, *overrides, wandb="offline"):
    """A process of the run in `root` that logs `steps`; returns the closed log."""
    log = RunLog(opening(root, f"logging.wandb={wandb}", *overrides, resume_step=steps[0] - 1, evaluates_again=False))
    for step in steps:
        log.write(step, {"train/loss": 1.0 / step})
    log.close()
    return log


def upload(log):
    """Run the command that the closing summary prints; its output."""
    line = next(line for line in log.where() if "upload: " in line)
    command = shlex.split(line.partition("upload: ")[2])
    assert command[0] == "wandb"
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def processes_of(root):
    """Every process that W&B has for the run: ours, by the id of its session's leader, and those it started."""
    children = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
            children.append((parent, int(status.parent.name)))
    ours = [child for parent, child in children if parent == os.getpid() and b"wandb_process" in cmdline(child)]
    return ours + [child for parent, child in children if parent in ours]


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("setting", "variable", "choice"),
    [
        ("auto", None, "auto"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "online", "online"),
        ("auto", "disabled", "off"),
        ("offline", "online", "offline"),
        ("off", "online", "off"),
        ("online", "disabled", "online"),
    ],
)
def test_wandb_mode_ranks_above_auto_and_below_what_is_typed(monkeypatch, setting, variable, choice):
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_choice(compose([f"logging.wandb={setting}"]).logging) == choice


def test_a_mode_that_there_is_not_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ConfigError, match="WANDB_MODE: got 'ofline'; needs one of online"):
        wandb_choice(compose(["logging.wandb=auto"]).logging)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_PROJECT", "team/x"),
        ("WANDB_RUN_ID", "a:b"),
        ("WANDB_BASE_URL", "wandb.local"),
        ("WANDB_BASE_URL", "://"),
    ],
)
def test_a_variable_that_wandb_would_fail_at_is_told_before_the_run(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose([]).logging
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}: got .*; needs .*; try unset {name}"):
        wandb_choice(cfg)
    wandb_choice(replace(cfg, wandb="off"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_choice(cfg) == "off"


def test_offline_sends_nothing_and_pieces_survive_each_other_when_uploaded(monkeypatch, tmp_path):
    """Two pieces of one folder, and a folder of the same name: the server forgets what it has, so that anything
    sent twice under one id would be overwritten."""
    with WandbServer() as server:
        use(monkeypatch, server)
        record(tmp_path / "a" / "run", [1, 2, 3])
        first = record(tmp_path / "a" / "run", [4, 5])
        other = record(tmp_path / "b" / "run", [1, 2])
        assert server.requests == []
        upload(first)
        upload(other)
        known = read_pieces(tmp_path / "a" / "run" / "wandb" / "pieces.json")
        assert [piece.id for piece in known.pieces] == [known.id, f"{known.id}-2"]
        assert server.steps(known.id) == [1, 2, 3]
        assert server.steps(f"{known.id}-2") == [4, 5]
        assert server.overwritten == []
        assert len(server.history) == 3
        assert server.groups[known.id] == server.groups[f"{known.id}-2"] == f"run-{known.id}"
        assert set(server.projects.values()) == {"pointsman"}
        assert not any("upload" in line for line in first.where())  # there is nothing left to upload


def test_loads_become_two_pictures_and_no_number_for_each_expert(monkeypatch, tmp_path):
    with WandbServer() as server:
        use(monkeypatch, server)
        log = RunLog(opening(tmp_path / "run", "logging.wandb=online"))
        log.write(0, {"eval/loss": 1.0, **LOAD})
        log.close()
        (row,) = next(iter(server.history.values())).values()
    assert {name for name in row if not name.startswith("_")} == {"step", "eval/loss", "router/encoder/load"}
    assert row["router/encoder/load"]["_type"] == "image-file"


@pytest.mark.slow
def test_its_variables_are_heard(monkeypatch, tmp_path):
    with WandbServer() as server:
        use(monkeypatch, server)
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_PROJECT", "theirs")
        monkeypatch.setenv("WANDB_RUN_GROUP", "sweep")
        monkeypatch.setenv("WANDB_ENTITY", "team")
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
        record(tmp_path / "run", [1, 2], wandb="auto")
        (name,) = server.history
        assert server.projects[name] == "theirs"
        assert server.groups[name] == "sweep"
        assert server.entities[name] == "team"
        assert list((tmp_path / "elsewhere" / "wandb").glob("run-*"))
        assert not list((tmp_path / "run" / "wandb").glob("*run-*"))


@pytest.mark.slow
def test_a_continued_online_run_goes_on_where_it_was(monkeypatch, tmp_path):
    with WandbServer(remembers=True) as server:
        use(monkeypatch, server)
        record(tmp_path / "run", [1, 2, 3], wandb="online")
        record(tmp_path / "run", [4, 5], wandb="auto")
        assert [server.steps(name) for name in server.history] == [[1, 2, 3, 4, 5]]
        assert server.overwritten == []


@pytest.mark.slow
def test_a_server_that_forgot_the_run_gets_another_id(monkeypatch, tmp_path):
    with WandbServer() as server:
        use(monkeypatch, server)
        record(tmp_path / "run", [1, 2, 3], wandb="online")
        record(tmp_path / "run", [4, 5], wandb="online")
        assert sorted(server.steps(name) for name in server.history if server.steps(name)) == [[1, 2, 3], [4, 5]]
        assert server.overwritten == []


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["silent", "broken"])
def test_a_server_in_trouble_holds_up_nothing_and_costs_nothing(monkeypatch, tmp_path, trouble):
    monkeypatch.setattr(weights_and_biases, "_CONNECT_S", 5.0)
    with WandbServer(trouble=trouble) as server:
        use(monkeypatch, server)
        began = time.monotonic()
        log = RunLog(opening(tmp_path / "run", "logging.wandb=online"))
        log.write(1, {"train/loss": 1.0})
        assert time.monotonic() - began < 2
        wait_for(lambda: server.requests)
        log.write(2, {"train/loss": 1.0})
        log.close()
        assert server.requests
    assert any("offline" in line for line in log.where())
    with WandbServer() as server:
        use(monkeypatch, server)
        upload(log)
        assert [server.steps(name) for name in server.history] == [[1, 2]]


@pytest.mark.slow
def test_a_server_that_fails_in_the_middle_loses_nothing(monkeypatch, tmp_path):
    log = None
    with WandbServer() as server:
        use(monkeypatch, server)
        log = RunLog(opening(tmp_path / "run", "logging.wandb=online"))
        log.write(1, {"train/loss": 1.0})
        wait_for(lambda: server.history)
    for step in (2, 3):
        log.write(step, {"train/loss": 1.0})
    log.close()
    assert any("(not sent)" in line for line in log.where())
    with WandbServer() as server:
        use(monkeypatch, server)
        upload(log)
        assert [server.steps(name) for name in server.history] == [[1, 2, 3]]


@pytest.mark.slow
@pytest.mark.parametrize("wandb", ["offline", "online"])
def test_a_signal_to_every_process_loses_no_row_and_prints_nothing(monkeypatch, tmp_path, capfd, wandb):
    with WandbServer(remembers=True) as server:
        use(monkeypatch, server)
        log = RunLog(opening(tmp_path / "run", f"logging.wandb={wandb}"))
        log.write(1, {"train/loss": 1.0})
        wait_for(lambda: read_pieces(tmp_path / "run" / "wandb" / "pieces.json"))
        wait_for(lambda: read_pieces(tmp_path / "run" / "wandb" / "pieces.json").pieces)
        if wandb == "online":
            wait_for(lambda: server.history)
        processes = processes_of(tmp_path / "run")
        assert len(processes) > 1  # ours and wandb-core
        for number in (signal.SIGINT, signal.SIGTERM):
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, number)
        log.write(2, {"train/loss": 1.0})
        log.close()
        if wandb == "offline":
            upload(log)
        assert [server.steps(name) for name in server.history] == [[1, 2]]
        assert server.overwritten == []
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.slow
def test_what_dies_before_the_server_has_all_is_followed_under_the_same_id(monkeypatch, tmp_path):
    """W&B's own process takes the last row and dies before it has sent it; the piece is noted as kept by then."""
    path = tmp_path / "run" / "wandb" / "pieces.json"
    with WandbServer(remembers=True) as server:
        use(monkeypatch, server)
        log = RunLog(opening(tmp_path / "run", "logging.wandb=online"))
        log.write(1, {"train/loss": 1.0})
        wait_for(lambda: server.history)
        core = processes_of(tmp_path / "run")[-1]
        os.kill(core, signal.SIGSTOP)
        log.write(2, {"train/loss": 1.0})
        closing = threading.Thread(target=log.close)
        closing.start()
        wait_for(lambda: read_pieces(path).pieces[-1].ending == "kept")
        os.kill(core, signal.SIGKILL)
        closing.join(timeout=120)
        assert not closing.is_alive()
        assert [server.steps(name) for name in server.history] == [[1, 2]]
        assert server.overwritten == []
        assert [piece.ending for piece in read_pieces(path).pieces] == ["sent", "sent"]


@pytest.mark.slow
def test_secrets_are_not_written(monkeypatch, tmp_path):
    canary = "c4n4ry" * 7
    monkeypatch.setenv("WANDB_API_KEY", canary[:40])
    monkeypatch.setenv("HF_TOKEN", canary)
    record(tmp_path, [1])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert all(b"c4n4ry" not in path.read_bytes() for path in files)


@pytest.mark.slow
@pytest.mark.parametrize(("wandb", "explained"), [("auto", False), ("online", True)])
def test_without_a_key_a_run_is_offline_and_says_so_where_online_was_asked_for(tmp_path, wandb, explained):
    log = record(tmp_path / "run", [1], wandb=wandb)
    assert any("W&B (offline)" in line for line in log.where())
    assert any("no key for" in line for line in log.where()) == explained


def test_a_process_that_cannot_work_does_not_stop_the_run(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(weights_and_biases, "_COMMAND", "raise SystemExit(3)")
    log = record(tmp_path / "run", [1, 2])
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()] == [1, 2]
    assert sum("Weights & Biases is off" in record.message for record in caplog.records) == 1
    assert any("nothing was recorded" in line for line in log.where())
