"""Reads files whose content is wanted whole; what is no file, such as a named pipe, is an error and no endless wait."""

from __future__ import annotations

import errno
import os
import stat


def read_regular(path: str | os.PathLike[str], *, most: int | None = None) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read, is no regular file (opening a named pipe waits until somebody writes into it), or
            has more than `most` bytes.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file, but a pipe or a device", os.fspath(path))
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, and {most:,} are the most", os.fspath(path))
        return stream.read()
