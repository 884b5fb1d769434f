"""A request to stop is noted, not obeyed at once; a second Ctrl-C interrupts."""

import os
import signal
import subprocess
import sys

import pytest

from conf.errors import RankLost
from launch.process import ENDING_NOTE
from parallel.mesh.axes import single_process
from parallel.mesh.consensus import any_rank
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.launch.ranks.test_bound import assert_gone
from tests.settings import parallel_config
from trainer.signals import _SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def handlers():
    """Tests begin as below no nohup; what was installed before comes back."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_a_request(number):
    stop = StopRequest()
    stop.install()
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested
    stop.agree(single_process())
    assert stop.reason == number.name


def test_a_second_ctrl_c_interrupts():
    stop = StopRequest()
    stop.install()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    stop.install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.requested


@pytest.mark.parametrize(
    ("environment", "code"),
    [({}, 143), ({"WORLD_SIZE": "1"}, 143), ({"WORLD_SIZE": "2"}, 0), ({"TORCHELASTIC_RUN_ID": "x"}, 0)],
)
def test_only_a_rank_without_launcher_ends_with_the_signals_code(environment, code, monkeypatch, tmp_path):
    """The agent reads it in a note."""
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    stop = StopRequest()
    assert stop.exit_code == 0
    assert (tmp_path / ENDING_NOTE).read_text() == ""
    stop.install()
    os.kill(os.getpid(), signal.SIGTERM)
    stop.agree(single_process())
    assert stop.exit_code == code
    assert (tmp_path / ENDING_NOTE).read_text() == "SIGTERM"


def agreed(rank, world, asked, orphan):
    """What each rank knows of a stop that one was asked for, or whose launcher is gone."""
    stop = StopRequest()
    if rank == asked:
        stop.install()
        os.kill(os.getpid(), signal.SIGTERM)
    if rank == orphan:
        stop._launcher_gone = True
    mesh = init_groups(parallel_config(tp=1))
    assert any_rank(stop.requested, mesh)
    try:
        stop.agree(mesh)
    except RankLost as lost:
        return str(lost)
    return stop.reason


def test_all_ranks_learn_which_signal_reached_which_rank():
    assert run_ranks(agreed, 2, 1, None) == ["SIGTERM to rank 1"] * 2


def test_the_end_of_a_launcher_is_no_request_though_a_signal_came_too():
    told = run_ranks(agreed, 2, 0, 1)
    assert told[0] == told[1]
    assert told[0].startswith("the launcher of rank 1 has ended without its ranks")


_ORPHAN = """
import os, sys, time
os.environ.update(WORLD_SIZE="2", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")
if os.fork() == 0:
    from launch.ranks.bound import die_with_launcher
    from trainer.signals import StopRequest
    die_with_launcher()
    stop = StopRequest()
    stop.install()
    print(os.getpid(), flush=True)
    while not stop.requested:
        time.sleep(0.05)
    print("noticed", flush=True)
    time.sleep(600)
else:
    time.sleep(600)
"""


def test_a_rank_in_training_notices_the_end_of_its_launcher_and_does_not_stay(tmp_path):
    launcher = subprocess.Popen([sys.executable, "-c", _ORPHAN], stdout=subprocess.PIPE, text=True)
    pid = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    assert launcher.stdout.readline() == "noticed\n"
    assert launcher.stdout.readline() == ""  # it hangs, and ends itself
    assert_gone([pid], seconds=5)
