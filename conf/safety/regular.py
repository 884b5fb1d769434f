"""Reads files whose content is wanted whole; what is no file, such as a named pipe, is an error and no endless wait."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """A file opened for reading.

    Raises:
        OSError: it cannot be read, or is no regular file (opening a named pipe waits until somebody writes into it).
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "it is no regular file, but a pipe or a device", os.fspath(path))


def read_regular(path: str | os.PathLike[str], *, most: int | None = None) -> bytes:
    """The content of a file. Raises OSError as `open_regular`, and for more than `most` bytes."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and {most:,} are the most", os.fspath(path))
        return stream.read()
