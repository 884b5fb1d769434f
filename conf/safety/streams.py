"""The standard streams of a process of ours: what it prints, tracebacks and logs included, holds no secret."""

from __future__ import annotations

import io
import os
import sys

from conf.errors import SetupError
from conf.safety.redact import redact_text

_CALLED = {1: "standard output", 2: "standard error"}


class Redacting(io.TextIOWrapper):
    """A text stream that takes secrets out of each piece that is written; `print` gives a line as one piece."""

    def write(self, text: str) -> int:
        """Write `text` without secrets; the number of characters that were taken. Raises as `flush`."""
        if text == "":  # click tries streams with it, and passes over errors
            return 0
        try:
            super().write(redact_text(text))
        except UnicodeEncodeError as error:
            got, needs = f"U+{ord(error.object[error.start]):04X}", f"an encoding that has it, not {self.encoding}"
            raise SetupError(
                f"{_CALLED[self.fileno()]}: got {got}; needs {needs}; try PYTHONIOENCODING=utf-8"
            ) from error
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Raises SetupError where standard output cannot be written, BrokenPipeError where its reader has ended."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        number = self.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # what is still buffered must not fail once more
        if number == 1:  # of the other one nobody can be told
            needs = "a file or device that can be written; try another one, or more room"
            raise SetupError(f"{_CALLED[number]}: got {error.strerror!r}; needs {needs}") from error


def open_streams() -> None:
    """Give a process that was started without some of its standard streams (`>&-`) the null device in their place.

    Else the next file that is opened would be one of them, and get what is printed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:  # closed
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            stream = open(number, mode, closefd=False)  # noqa: SIM115 - it is open as long as the process lives
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def redact_streams(*, unknown: str = "backslashreplace") -> None:
    """Replace stdout and stderr for the rest of the process. Streams that somebody has replaced already stay.

    `unknown`: what becomes of characters that the encoding does not have, as in `str.encode`; strict: SetupError.
    """
    open_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            stream.flush()
            # the old one stays alive as sys.__stdout__ and shares the buffer
            fresh = Redacting(
                stream.buffer,
                encoding=stream.encoding,
                errors=unknown if stream.errors == "strict" else stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, fresh)
