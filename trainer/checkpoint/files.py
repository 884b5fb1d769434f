"""Names, durability and locking of checkpoint directories on a file system."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conf.errors import ConfigError
from conf.safety.writing import open_in_place
from trainer.checkpoint.manifest import FileEntry

LOCK_FILE = ".lock"
HASH_THREADS = 4  # hashing releases the interpreter lock; more threads than this wait for the disk
_COMMITTED = re.compile(r"step_(\d{8,})")
_UNCOMMITTED = re.compile(r"\.step_\d{8,}\.(saving|deleting)")


def step_folder(root: Path, step: int) -> Path:
    """Where the committed checkpoint of a step lies."""
    return root / f"step_{step:08d}"


def saving_folder(root: Path, step: int) -> Path:
    """Where it is written until it is committed."""
    return root / f".step_{step:08d}.saving"


def step_of(folder: Path) -> int:
    """Step of a committed checkpoint's directory."""
    match = _COMMITTED.fullmatch(folder.name)
    assert match is not None, f"{folder} is not the directory of a checkpoint"
    return int(match.group(1))


def committed(root: Path) -> list[Path]:
    """Directories of committed checkpoints, newest first; none if `root` does not exist."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _COMMITTED.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def superseded(steps: Iterable[int], *, newest: int, keep_last: int, keep_every: int | None) -> list[int]:
    """Steps that retention gives up after `newest` was committed.

    Steps above `newest` belong to a future this run has left (it fell back past them); they do not count as kept and
    are not removed, because nobody has looked at them yet.
    """
    past = sorted((step for step in steps if step <= newest), reverse=True)
    return [step for step in past[max(1, keep_last) :] if not (keep_every and step % keep_every == 0)]


def remove(folder: Path) -> None:
    """Delete a checkpoint so that one killed half-way is never listed: renamed first, then removed."""
    doomed = folder.with_name(f".{folder.name}.deleting")
    if folder.name.startswith("."):
        doomed = folder
    else:
        delete(doomed)
        folder.rename(doomed)
    delete(doomed)


def delete(folder: Path) -> None:
    """Delete a folder if it is there; of a link, the link alone."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def remove_uncommitted(root: Path) -> list[str]:
    """Delete what a killed save or a killed removal left behind; returns the names."""
    stale = sorted(path for path in root.iterdir() if _UNCOMMITTED.fullmatch(path.name))
    for path in stale:
        remove(path)
    return [path.name for path in stale]


def describe_file(path: Path) -> FileEntry:
    """Size and sha256 of a file as it is on disk now."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(size=os.fstat(stream.fileno()).st_size, sha256=digest)


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Size and sha256 of several files, read side by side."""
    ordered = sorted(names)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return dict(zip(ordered, pool.map(lambda name: describe_file(folder / name), ordered), strict=True))


def problem_of(path: Path, expected: FileEntry) -> str | None:
    """What is wrong with a file, or None."""
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for
            return f"{path.name}: is not a plain file"
        if (size := path.stat().st_size) != expected.size:
            return f"{path.name}: {size} bytes, the manifest says {expected.size}"
        found = describe_file(path)
    except OSError as error:
        return f"{path.name}: cannot be read ({error.strerror})"
    if found.sha256 != expected.sha256:
        return f"{path.name}: sha256 {found.sha256[:12]}.., the manifest says {expected.sha256[:12]}.."
    return None


def sync_folder(folder: Path) -> None:
    """Wait until a directory's entries (created, renamed files) are on stable storage."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FolderLock:
    """Keeps a second job out of a run directory.

    A POSIX record lock: it vanishes with the process however that ends, is not inherited by forked data workers, and
    works over NFS. Who holds it is written into the file for the message the second job gives.
    """

    def __init__(self, root: Path) -> None:
        """Take the lock. Raises ConfigError naming the owner if another process has it, OSError for no plain file."""
        self._handle = open_in_place(root / LOCK_FILE, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = os.pread(self._handle, 4096, 0).decode("utf-8", "replace").strip() or "unknown"
            os.close(self._handle)
            raise ConfigError(
                "name", got=str(root), needs=f"a run directory that no other job writes to (in use by {owner})",
                hint="another name=, or stop that job",
            ) from error  # fmt: skip
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, (json.dumps(owner) + "\n").encode(), 0)

    def release(self) -> None:
        """Give the lock back; the file stays."""
        os.ftruncate(self._handle, 0)
        os.close(self._handle)
