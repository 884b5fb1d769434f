"""A run's folder and its cache, file by file: links in the place of files, and single bytes that are not as written."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.compose import load as load_config
from conf.continued import compose_run, overrides_of
from conf.errors import DataError, PointsmanError
from data.corpus import open_corpus
from data.prepare import prepare_data
from data.shards.shards import ShardReader, read_index
from tests.trainer.conftest import start
from trainer.checkpoint.reader import CheckpointReader
from trainer.loading import load_run
from trainer.report.sinks.jsonl import read_rows
from trainer.resume import changed_settings, check_config_file, check_same_run, saved_in
from trainer.run_dir import RunDir


def test_no_file_of_a_run_is_written_through_a_link(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, elsewhere = trained / "runs/mine", trained / "elsewhere"
    elsewhere.mkdir()
    files = [path for path in run.iterdir() if path.is_file()]
    assert {path.name for path in files} == {
        "config.yaml", "overrides.yaml", "metrics.jsonl", "status.json", "tokenizer.model",
    }  # fmt: skip
    before = {}
    for file in files:
        before[file.name] = file.read_bytes()
        (elsewhere / file.name).write_bytes(before[file.name])
        file.unlink()
        file.symlink_to(elsewhere / file.name)
    for name in (".step_00000003.saving", "step_00000003"):  # a folder that is written anew
        (elsewhere / name).mkdir()
        (run / "checkpoints" / name).symlink_to(elsewhere / name)
    assert start(trained, "train.steps=3") == 0
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir() if path.is_file()} == before
    assert not any(path.is_dir() and any(path.iterdir()) for path in elsewhere.iterdir())
    assert not any(path.is_symlink() for path in run.rglob("*"))
    lock = run / "checkpoints/.lock"
    lock.unlink()
    (elsewhere / "precious").write_text("precious")
    lock.symlink_to(elsewhere / "precious")
    capsys.readouterr()
    assert start(trained, "train.steps=4") == 2
    assert "is a symbolic link, which is not written through" in capsys.readouterr().err
    assert (elsewhere / "precious").read_text() == "precious"


def flips(file: Path, count: int) -> Iterator[str]:
    """The file with one bit changed, at places all over it, and as it was at the end."""
    content, chance = file.read_bytes(), random.Random(file.name)
    for place in sorted(chance.sample(range(len(content)), min(count, len(content)))):
        bit = 1 << chance.randrange(8)
        file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        yield f"{file.name}: byte {place}, bit {bit}"
        file.write_bytes(content)


def check(file: Path, count: int, use: Callable[[], Any]) -> int:
    """Every flip is caught with a deliberate error, or nothing comes of it; how many were caught."""
    expected, caught = use(), 0
    for what in flips(file, count):
        caught += 1
        with suppress(PointsmanError):
            assert use() == expected, what
            caught -= 1
    return caught


def loaded(run: Path) -> tuple[Any, ...]:
    """All that evaluation, filling, generation and export are made from."""
    found = load_run(run)
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in found.module.parameters()))
    return found.cfg, found.tokenizer.fingerprint, weights.hexdigest()


# Places of a file that are tried: a few in the quick run, many in the slow one.
MANY = pytest.mark.parametrize("times", [1, pytest.param(12, marks=pytest.mark.slow)])


@MANY
def test_a_flipped_byte_beside_or_in_a_checkpoint_is_caught_or_harmless(trained: Path, times: int) -> None:
    run = trained / "runs/mine"
    for file in sorted((run / "checkpoints/step_00000002").iterdir()):
        assert check(file, 5 * times, lambda: loaded(run)) == 5 * times, "nothing of a checkpoint is used unverified"
    assert check(run / "tokenizer.model", 5 * times, lambda: loaded(run)) == 5 * times
    assert check(run / "config.yaml", 12 * times, lambda: loaded(run)) > 3 * times
    check(run / "overrides.yaml", 5 * times, lambda: loaded(run))


@MANY
def test_a_flipped_byte_in_what_a_run_continues_from_is_caught_or_harmless(
    trained: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.chdir(trained)
    run = trained / "runs/mine"
    saved = load_config(run / "config.yaml")

    def continued() -> Any:
        """What a start would train with; the checkpoint is compared with it before anything else."""
        words = ["name=mine"]
        cfg = compose_run(words)
        found = saved_in(CheckpointReader(run / "checkpoints/step_00000002"))
        check_config_file(RunDir(root=run), found, lambda field, value: True, overrides_of(words))
        check_same_run(found.config(), cfg)
        return [line for line in changed_settings(saved, cfg) if not line.startswith("name:")]

    assert check(run / "config.yaml", 5 * times, continued) >= times
    assert check(run / "overrides.yaml", 5 * times, continued) >= times


@MANY
def test_a_flipped_byte_in_the_log_is_named_or_only_another_number(trained: Path, times: int) -> None:
    file = trained / "runs/mine/metrics.jsonl"
    count = len(read_rows(file))
    for what in flips(file, 60 * times):
        with suppress(DataError):
            assert len(read_rows(file)) in (count, count - 1), what  # the last line without its end counts as cut off


def test_a_flipped_byte_in_the_cache_is_mended(trained: Path, tmp_path: Path) -> None:
    cfg = load_config(trained / "runs/mine/config.yaml")
    cache = tmp_path / "cache"
    shutil.copytree(cfg.data.cache_dir, cache)
    cfg = replace(cfg, data=replace(cfg.data, cache_dir=str(cache)))

    def corpus() -> Any:
        prepare_data(cfg, progress=lambda text: None)
        found = open_corpus(cfg)
        shards = [(folder, read_index(folder)) for folder in found.folders]
        readers = [ShardReader(folder, shard, index.dtype) for folder, index in shards for shard in index.shards]
        return found.fingerprint, [(reader.tokens.tobytes(), reader.offsets.tobytes()) for reader in readers]

    expected = corpus()
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.parent.name for path in files} >= {"scans", "tokenizers", "verified"}
    for file in files:
        content, place = file.read_bytes(), file.stat().st_size // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert corpus() == expected, file
