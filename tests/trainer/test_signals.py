"""A request to stop is noted, not obeyed at once; a second Ctrl-C interrupts."""

import os
import signal

import pytest

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
    assert stop.name == number.name


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
def test_only_a_rank_without_launcher_ends_with_the_signals_code(environment, code, monkeypatch):
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stop = StopRequest()
    assert stop.exit_code == 0
    stop.install()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.exit_code == code
