"""What the agent tells after a failure: the first rank's own words, last."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError

from launch import agent
from launch.agent import report
from launch.process import CODE_KEY, INTERRUPTED, TIME_KEY


def failure(local_rank: int, exitcode: int, *, at: int, note: str | None, noted_code: int | None = None) -> Any:
    extra = {TIME_KEY: at, CODE_KEY: exitcode if noted_code is None else noted_code}
    data = {} if note is None else {"message": {"message": note, "extraInfo": extra}}
    return SimpleNamespace(local_rank=local_rank, exitcode=exitcode, timestamp=at // 10**9, error_file_data=data)


def write_log(folder: Path, local_rank: int, text: str) -> None:
    log = folder / "run" / "attempt_0" / str(local_rank) / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text(text)


def test_cause_is_told_last_with_its_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, 1, "noise\nerror: data.files: got []\n")
    second = 10**9
    cause = failure(1, 2, at=5 * second + 100, note="ConfigError: data.files: got []")
    victim = failure(0, 1, at=5 * second + 900, note="RuntimeError: Connection closed by peer")
    assert report({0: victim, 1: cause}, log_dir=tmp_path) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "rank 0 ended after that: exit code 1"
    assert told[-2:] == ["rank 1 failed: exit code 2", "  ConfigError: data.files: got []"]


def test_ranks_with_the_same_words_share_an_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = {rank: failure(rank, 2, at=10**9 + rank, note="DataError: no file matches") for rank in (0, 1)}
    assert report(both, log_dir=tmp_path) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "ranks 0, 1 failed: exit code 2",
        "  DataError: no file matches",
    ]


def test_unexpected_exception_shows_the_end_of_that_ranks_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path, 3, "".join(f"line {n}\n" for n in range(50)))
    assert report({7: failure(3, 1, at=0, note=None)}, log_dir=tmp_path) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-21] == "rank 7 failed: exit code 1"
    assert (told[-20], told[-1]) == ("  line 30", "  line 49")


def test_rank_ended_by_the_agent_is_not_taken_for_the_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, 1, "pointsman: rank 1: ConfigError: bad\n")
    slow, cause = failure(0, -15, at=10**9, note=None), failure(1, 2, at=10**9, note=None)
    assert report({0: slow, 1: cause}, log_dir=tmp_path) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "rank 0 ended after that: killed by SIGTERM"
    assert told[-2:] == ["rank 1 failed: exit code 2", "  pointsman: rank 1: ConfigError: bad"]


def test_killed_rank_names_the_signal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report({0: failure(0, -9, at=0, note=None)}, log_dir=tmp_path) == 137
    assert "rank 0 failed: killed by SIGKILL" in capsys.readouterr().err


@pytest.mark.parametrize("signum", [6, 15])
def test_what_meets_a_failed_rank_on_its_way_out_is_not_the_cause(
    signum: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cause = failure(1, -signum, at=5 * 10**9, note="ConfigError: data.files: got []", noted_code=2)
    victim = failure(0, 1, at=5 * 10**9 + 1, note="RuntimeError: Connection closed by peer")
    assert report({0: victim, 1: cause}, log_dir=tmp_path) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "rank 0 ended after that: exit code 1"
    assert told[-2:] == ["rank 1 failed: exit code 2", "  ConfigError: data.files: got []"]


def test_rank_killed_by_the_kernel_comes_before_those_that_lost_their_connection_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = 10**9
    cause = failure(1, -9, at=6 * second, note=None)  # seen by the agent up to a second after the other's note
    victim = failure(0, 1, at=6 * second - 50, note="RuntimeError: Connection closed by peer")
    assert report({0: victim, 1: cause}, log_dir=tmp_path) == 137
    assert "rank 1 failed: killed by SIGKILL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (RendezvousTimeoutError("nobody came"), 2, "error: launch.rdzv_endpoint: the agents did not meet: nobody came"),
    ],
)
def test_what_ends_the_agent_before_there_are_ranks_is_told_in_a_line(
    raised: BaseException,
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: list[str]) -> None:
        raise raised

    logs = tmp_path / "logs"
    logs.mkdir()
    monkeypatch.setenv(agent.LOG_DIR_VARIABLE, str(logs))
    monkeypatch.setattr("torch.distributed.run.main", fail)
    monkeypatch.setattr(agent.News, "listen", lambda self: None)
    assert agent.main(["--standalone", f"--log-dir={logs}"]) == code
    assert capsys.readouterr().err.splitlines() == [told]
    assert not logs.exists()


def test_news_of_the_launcher_are_told_once_and_keep_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    news = agent.News()
    restart = "[%s] Worker group %s. %s/%s attempts left; will restart worker group"
    news.handle(logging.LogRecord("a", logging.INFO, "f", 1, "[%s] starting workers", ("default",), None))
    assert not news.remarkable
    news.handle(logging.LogRecord("a", logging.INFO, "f", 1, restart, ("default", "FAILED", 2, 3), None))
    assert "continue at the last checkpoint (2/3 restarts left)" in capsys.readouterr().err
    assert news.remarkable


def test_agents_that_share_a_disk_keep_their_logs_apart() -> None:
    several = ["--nnodes=2", "--log-dir=/shared/ranks-7", "-m", "trainer.main"]
    assert agent._log_dir(agent._own_folder(several)) == Path("/shared/ranks-7") / socket.gethostname()
    alone = ["--standalone", "--log-dir=/tmp/x"]
    assert agent._own_folder(alone) == alone
