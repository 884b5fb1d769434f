"""Checks that what a configuration names on the file system is there; only where the run will be can it be told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from conf.errors import ConfigError
from conf.reading.paths import check_file, held_out_files, inode, is_run, text_files, user_path
from conf.schema import RawDataConfig, RawRunConfig
from conf.sources import SHARDS_INDEX, SOURCES

Problems = Iterator[ConfigError]


def check_files(cfg: RawRunConfig) -> Problems:
    """Named files exist and are of a kind that can be read, as far as one look at the file system tells."""
    data, row = cfg.data, SOURCES[cfg.data.source]
    looks: list[Callable[[], object]] = [lambda: text_files("data.hub_files", data.hub_files)]
    if row.kind == "shards":
        yield from _check_folders(data)
    else:
        looks.append(lambda: text_files("data.files", data.files))
        looks.append(lambda: held_out_files(data.files, data.validation_files))
    for look in looks:
        try:
            look()
        except ConfigError as problem:
            yield problem
    if data.tokenizer is not None:
        yield from check_file("data.tokenizer", data.tokenizer, "an existing sentencepiece .model file")
    start = cfg.train.from_checkpoint
    if start is not None and not is_run(user_path(start)):
        needs = f"a run folder or a checkpoint in it (seen from {os.getcwd()})"
        yield ConfigError("train.from_checkpoint", got=start, needs=needs, hint="an absolute path")


def _check_folders(data: RawDataConfig) -> Problems:
    found: dict[tuple[int, int], str] = {}
    for name in data.files:
        index = os.path.join(os.path.expanduser(name), SHARDS_INDEX)
        if os.path.isfile(index):
            if first := found.get(inode(index)):
                needs = f"each directory once: it is {first!r} as well, and would be trained on twice"
                yield ConfigError("data.files", got=name, needs=needs, hint="leaving it out")
            found[inode(index)] = name
        else:
            yield ConfigError(
                "data.files",
                got=name,
                needs=f"{SOURCES['shards'].holding} ({SHARDS_INDEX} is not in it, seen from {os.getcwd()})",
                hint="an absolute path, or finish `pointsman prepare`",
            )
