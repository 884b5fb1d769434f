"""Whose fault it was: ranks that fail tell each other through the store of the default process group.

A rank that ends takes its connections along, and its peers then fail within milliseconds, each with the words of a
socket. So a rank that lost a peer waits a moment for signs of the others and names those that gave none. Whoever waits
is also noted later than the cause, by torchrun for one, which takes the first failure that it sees for it.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from conf.errors import RankLost, is_peers_fault
from parallel.mesh.consensus import ranks_named

_SIGNS_S = 2.0  # for the others to notice the same
_LOOK_S = 0.1
_ANSWER_S = 1.0  # for the store to answer a question
_ASKING = 16  # ranks that ask after all others; in a large world the rest only say that they are there
_WORDS = 300
# [/some/where/gloo/transport/tcp/pair.cc:538], and torch's advice
_NOISE = re.compile(r"\[[^\]]*gloo[^\]]*\] *|\.? This is typically caused by .*")


@contextmanager
def told_to_peers() -> Iterator[None]:
    """Tell the other ranks of an error; one that is theirs becomes a RankLost that names the ranks it came from."""
    try:
        yield
    except RankLost:
        raise
    except Exception as error:
        text = str(error)
        said = f"{type(error).__name__}: {text}"
        if not is_peers_fault(said):
            _within(_ANSWER_S, lambda: _Board().tell(said[:_WORDS]))
            raise
        signs: dict[int, str] = {}
        _within(_SIGNS_S + _ANSWER_S, lambda: signs.update(_Board().signs()))
        absent = [rank for rank in range(_world()) if rank not in signs] if signs else []
        raise RankLost(_told(signs, absent, _NOISE.sub("", text.splitlines()[0])), absent=absent) from error


def _told(signs: dict[int, str], absent: Sequence[int], words: str) -> str:
    failed = {rank: said for rank, said in signs.items() if said}
    if failed:
        first = min(failed)
        return f"{ranks_named([*failed])} failed: {failed[first]}"
    if absent:
        verb = "answers" if len(absent) == 1 else "answer"
        return f"{ranks_named(absent)} no longer {verb}: {words}"
    return f"the connection to another rank was lost: {words}"


class _Board:
    """What ranks have said of their failure: a key for each, empty where it only lost others."""

    def __init__(self) -> None:
        self._store: Any = distributed_c10d._get_default_store()
        self._attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store may be older than this start

    def _key(self, name: object) -> str:
        return f"pointsman/failure/{self._attempt}/{name}"

    def tell(self, said: str) -> None:
        self._store.set(self._key(dist.get_rank()), said)

    def signs(self) -> dict[int, str]:
        """By rank, after a wait for all; empty where enough others have asked."""
        self.tell("")
        if self._store.add(self._key("asking"), 1) > _ASKING:
            return {}
        keys = {rank: self._key(rank) for rank in range(_world())}
        end = time.monotonic() + _SIGNS_S
        while not self._store.check([*keys.values()]) and time.monotonic() < end:
            time.sleep(_LOOK_S)
        return {rank: self._store.get(key).decode() for rank, key in keys.items() if self._store.check([key])}


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _within(seconds: float, act: Callable[[], object]) -> None:
    """Run `act` in a thread that is left behind when it takes longer: the store may be that of a rank that hangs."""
    if _world() == 1:
        return

    def run() -> None:
        with suppress(Exception):  # no news is what a store that is gone tells; the error itself is raised anyway
            act()

    thread = threading.Thread(target=run, name="failure", daemon=True)
    thread.start()
    thread.join(seconds)
