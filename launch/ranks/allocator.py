"""How glibc hands memory to ranks: freed tensors stay in the process instead of going back to the kernel.

By default a block above 128 KiB to 32 MiB is mapped anew each time and its pages are filled with zeros when they are
first touched; a step allocates thousands of them. docs/log.md has what the setting gave.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

VARIABLE = "GLIBC_TUNABLES"
_GIB = 2**30
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "mmap_max": 0,  # no block of its own mapping, which free() would give back
        "trim_threshold": 64 * _GIB,
        "top_pad": 64 * 2**20,
        "hugetlb": 1,  # asks the kernel for pages of 2 MiB where they are had on request
    }.items()
)
_CHOICES = ("LD_PRELOAD", "MALLOC_")  # of the user: another allocator, or settings of this one


def users_choice(environment: Mapping[str, str]) -> str | None:
    """The variable by which the user has chosen how memory is allocated, as NAME=VALUE; None: there is none."""
    for name, value in sorted(environment.items()):
        if name == VARIABLE or (name.startswith(_CHOICES) and value):
            return f"{name}={value}"
    return None


def allocator_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a rank: nothing where the user has chosen, or the C library is not glibc."""
    if users_choice(environment) is not None or platform.libc_ver()[0] != "glibc":
        return {}
    return {VARIABLE: TUNABLES}


@contextmanager
def allocator_of_children(environment: Mapping[str, str]) -> Iterator[None]:
    """While it is entered, new programs get the setting of `environment`: glibc reads it before they run."""
    before = os.environ.get(VARIABLE)
    if (value := environment.get(VARIABLE)) is not None:
        os.environ[VARIABLE] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def allocator_line(environment: Mapping[str, str]) -> str:
    """What ranks get, in words."""
    if (choice := users_choice(environment)) is not None:
        return f"as {choice} says"
    library, version = platform.libc_ver()
    if library != "glibc":
        return "the C library's own settings (not glibc)"
    return f"glibc {version}, for ranks with {VARIABLE}={TUNABLES}"
