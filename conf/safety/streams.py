"""The standard streams of a process of ours: what it prints, tracebacks and logs included, holds no secret."""

from __future__ import annotations

import io
import sys

from conf.safety.redact import redact_text


class Redacting(io.TextIOWrapper):
    """A text stream that takes secrets out of each piece that is written; `print` gives a line as one piece."""

    def write(self, text: str) -> int:
        """Write `text` without secrets; the number of characters that were taken."""
        super().write(redact_text(text))
        return len(text)


def redact_streams() -> None:
    """Replace stdout and stderr for the rest of the process. Streams that somebody has replaced already stay."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            stream.flush()
            # the old one stays alive as sys.__stdout__ and shares the buffer
            fresh = Redacting(
                stream.buffer,
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, fresh)
