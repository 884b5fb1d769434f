"""Light background processes: a fresh Python that imports only what it needs and never outlives its parent.

`multiprocessing` would import the parent's `__main__` (and with it torch) in every child; a plain interpreter with a
pipe does not. A child leaves when its pipe breaks or its parent changes. Errors travel as text with their traceback.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import GeneratorType
from typing import IO, Any, Literal

from conf.errors import DataError, PointsmanError
from conf.safety.streams import redact_streams

_ROOT = str(Path(__file__).resolve().parent.parent)
_COMMAND = "import sys; sys.path.insert(0, sys.argv[1]); from data.children import serve; serve(int(sys.argv[2]))"
_PARENT_CHECK_S = 0.5
_EXIT_S = 5.0
# Terminals and schedulers send these to every process of a job; the parent decides what they mean.
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
Kind = Literal["item", "end", "error"]


class Child:
    """One background process that runs functions named "package.module:function"."""

    def __init__(self) -> None:
        environment = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, _ROOT, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def iterate(self, function: str, *args: Any) -> Iterator[Any]:
        """Items of the generator `function(*args)` evaluated in the child; at most a pipe's worth is made ahead.

        Raises:
            DataError: the function raised (with its traceback, unless it was a deliberate error), or the process died.
        """
        self._send((function, args))
        while True:
            kind, value = self._receive(function)
            if kind == "error":
                raise DataError(value)
            if kind == "end":
                return
            yield value

    def call(self, function: str, *args: Any) -> Any:
        """Result of `function(*args)` evaluated in the child. Raises as `iterate` does."""
        (result,) = self.iterate(function, *args)
        return result

    def close(self) -> None:
        """End the process; safe to call twice."""
        process = self._process
        process.kill()  # files are written atomically, so nothing is lost
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was still buffered for a dead process
                    pipe.close()

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin, message)
        except (BrokenPipeError, ValueError) as error:
            raise self._died("before it took its work") from error

    def _receive(self, function: str) -> tuple[Kind, Any]:
        assert self._process.stdout is not None
        try:
            return _read(self._process.stdout)
        except (EOFError, ValueError, OSError) as error:
            raise self._died(f"while running {function}") from error

    def _died(self, when: str) -> DataError:
        try:
            code = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            code = "unknown"
        return DataError(
            f"background process {self.pid} ended {when} (exit code {code}; negative means killed by that signal, -9 "
            "often by the system for lack of memory); try data.workers=0 or data.prepare_workers=1 to see more"
        )


def serve(parent: int) -> None:
    """Main loop of a child: read (function, args), write items, until the pipe closes."""
    for name in _PARENTS_SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    redact_streams()
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print must not land between messages
    requests = sys.stdin.buffer
    try:
        while True:
            _answer(answers, *_read(requests))
    except (EOFError, BrokenPipeError):
        os._exit(0)


def _answer(answers: IO[bytes], function: str, args: tuple[Any, ...]) -> None:
    try:
        module, _, name = function.partition(":")
        result = getattr(importlib.import_module(module), name)(*args)
        if isinstance(result, GeneratorType):
            for item in result:
                _write(answers, ("item", item))
        else:
            _write(answers, ("item", result))
        _write(answers, ("end", None))
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, PointsmanError):  # says all that a person needs
            _write(answers, ("error", str(error)))
        else:
            detail = f"{type(error).__name__}: {error}\nin a background process:\n{traceback.format_exc()}"
            _write(answers, ("error", detail))


def _leave_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def _write(pipe: IO[bytes], message: Any) -> None:
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(struct.pack("<Q", len(content)))
    pipe.write(content)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Any:
    header = pipe.read(8)
    if len(header) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", header)
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    # Safe here: both ends of this anonymous pipe are our own processes; no file or network is read.
    return pickle.loads(content)
