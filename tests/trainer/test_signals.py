"""A request to stop is noted, not obeyed at once; a second Ctrl-C interrupts."""

import os
import signal

import pytest

from trainer.signals import StopRequest


@pytest.fixture(autouse=True)
def handlers():
    """What was installed before comes back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
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
