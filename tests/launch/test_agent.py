"""What the agent tells after a failure: the first rank's own words, last."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError

from launch import agent
from launch.agent import report
from launch.process import ABSENT_KEY, CODE_KEY, ENDING_NOTE, INTERRUPTED, PEER_KEY, TIME_KEY


def failure(
    local_rank: int,
    exitcode: int,
    *,
    at: int,
    note: str | None,
    noted_code: int | None = None,
    lost: Sequence[int] | None = None,
) -> Any:
    """`lost`: ranks that this one lost its connection to, as far as it knows."""
    extra = {TIME_KEY: at, CODE_KEY: exitcode if noted_code is None else noted_code}
    extra |= {PEER_KEY: lost is not None, ABSENT_KEY: lost or []}
    data = {} if note is None else {"message": {"message": note, "extraInfo": extra}}
    return SimpleNamespace(
        local_rank=local_rank,
        exitcode=exitcode,
        pid=1000 + local_rank,
        timestamp=at // 10**9,
        error_file_data=data,
    )


def write_log(folder: Path, local_rank: int, text: str) -> None:
    log = folder / "run" / "attempt_0" / str(local_rank) / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text(text)


def test_cause_is_told_last_with_its_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, 1, "noise\nerror: data.files: got []\n")
    second = 10**9
    cause = failure(1, 2, at=5 * second + 100, note="ConfigError: data.files: got []")
    victim = failure(0, 1, at=5 * second + 900, note="RankLost: rank 1 no longer answers", lost=[1])
    assert report({0: victim, 1: cause}, log_dir=tmp_path) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "rank 0 ended after that: exit code 1"
    assert told[-2:] == ["rank 1 failed: exit code 2", "  ConfigError: data.files: got []"]


@pytest.mark.parametrize("ranks", [(0, 1), (1, 2)])
def test_ranks_with_the_same_words_share_an_entry(
    ranks: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And rank 0 has said them on the terminal."""
    both = {rank: failure(rank, 2, at=10**9 + rank, note="DataError: no file matches") for rank in ranks}
    assert report(both, log_dir=tmp_path) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[1:] == [
        f"ranks {ranks[0]}, {ranks[1]} failed: exit code 2",
        *(["  DataError: no file matches"] if 0 not in ranks else []),
    ]


def test_a_rank_that_had_to_be_ended_hung_where_the_others_lost_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path, 2, "at step 7\n")
    second = 10**9
    victims = {
        rank: failure(rank, 1, at=second, note="RankLost: rank 2 no longer answers", lost=[2]) for rank in (0, 1)
    }
    hung = failure(2, -9, at=40 * second, note=None)
    assert report({**victims, 2: hung}, log_dir=tmp_path, ended=[hung.pid]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == [f"rank {rank} ended after that: exit code 1" for rank in (0, 1)]
    assert told[-2:] == ["rank 2 failed: hung, and the others waited for it in vain; killed by SIGKILL", "  at step 7"]


def test_a_rank_of_another_machine_is_named_and_none_that_was_slow_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = failure(0, 1, at=10**9, note="RankLost: rank 5 no longer answers", lost=[5])
    slow = failure(1, -9, at=40 * 10**9, note=None)
    assert report({0: victim, 1: slow}, log_dir=tmp_path, ended=[slow.pid]) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "rank 0 failed: exit code 1",
        "  RankLost: rank 5 no longer answers",
    ]


def test_a_rank_that_somebody_ended_is_the_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM before it could be a request."""
    cause, other = failure(1, -15, at=10**9, note=None), failure(0, -15, at=10**9, note=None)
    assert report({0: other, 1: cause}, log_dir=tmp_path, ended=[other.pid]) == 143
    assert "rank 1 failed: killed by SIGTERM" in capsys.readouterr().err


def test_ranks_that_one_signal_stopped_end_with_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def end(attempt: int, rank: int, reason: str, at: float) -> None:
        note = tmp_path / "run" / f"attempt_{attempt}" / str(rank) / ENDING_NOTE
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(reason)
        os.utime(note, (at, at))

    assert agent._stopped(tmp_path) == 0
    end(0, 0, "SIGTERM to rank 1", 1.0)  # by the launcher, which then started them again
    end(1, 1, "", 2.0)
    assert agent._stopped(tmp_path) == 0
    end(1, 0, "SIGUSR1 to rank 1", 3.0)
    assert agent._stopped(tmp_path) == 128 + 10
    assert capsys.readouterr().err == "stopped by SIGUSR1 to rank 1\n"


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
    assert report({0: slow, 1: cause}, log_dir=tmp_path, ended=[slow.pid]) == 2
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
    victim = failure(0, 1, at=5 * 10**9 + 1, note="RankLost: rank 1 no longer answers", lost=[1])
    assert report({0: victim, 1: cause}, log_dir=tmp_path) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "rank 0 ended after that: exit code 1"
    assert told[-2:] == ["rank 1 failed: exit code 2", "  ConfigError: data.files: got []"]


def test_rank_killed_by_the_kernel_comes_before_those_that_lost_their_connection_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = 10**9
    cause = failure(1, -9, at=6 * second, note=None)  # seen by the agent up to a second after the other's note
    victim = failure(0, 1, at=6 * second - 50, note="RankLost: rank 1 no longer answers", lost=[1])
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
    monkeypatch.setattr(os, "environ", {**os.environ})
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
    sent = "Sending process %s closing signal %s"
    news.handle(logging.LogRecord("a", logging.WARNING, "f", 1, sent, (4711, "SIGTERM"), None))
    assert news.ended == {4711}


def test_agents_that_share_a_disk_keep_their_logs_apart() -> None:
    several = ["--nnodes=2", "--log-dir=/shared/ranks-7", "-m", "trainer.main"]
    assert agent._log_dir(agent._own_folder(several)) == Path("/shared/ranks-7") / socket.gethostname()
    alone = ["--standalone", "--log-dir=/tmp/x"]
    assert agent._own_folder(alone) == alone
