"""How runs, caches and exports write their files: whole or not at all, and never through a symbolic link.

Others may write to a run's folder as well, so a link in the place of one of its files must not lead us to another one:
what is replaced takes the link's place, and what is written in place is refused.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO


def write_whole(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Give `path` this content: it has its old or its new one, also after a kill; `durable`: and after a power cut.

    Raises OSError; nothing has changed then.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(handle)
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # nobody knows the other name
        raise


def open_in_place(path: Path, flags: int) -> int:
    """`os.open` of a plain file, made if `flags` say so. Raises OSError for a link, a pipe and the like: none waits."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        what = "is a symbolic link, which is not written through" if error.errno == errno.ELOOP else "is a pipe"
        raise OSError(error.errno, f"{what}; move it away", str(path)) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is not a plain file; move it away", str(path))
    return handle


def append_to(path: Path) -> IO[bytes]:
    """A plain file, made if it is missing, to be written at its end. Raises OSError as `open_in_place`."""
    return os.fdopen(open_in_place(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
