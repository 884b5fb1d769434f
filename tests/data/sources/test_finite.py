"""A source of text is one file and one row: a toy is prepared, trained on and evaluated; every row finds its module."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.sources import PLACES, SOURCES
from data.corpus import open_corpus
from data.sources.finite import FiniteSource
from launch.cli import main
from tests.data.helpers import same, stacked, steps, text_config, tiny_config, write_jsonl
from tests.data.sources import poems


@pytest.fixture(autouse=True)
def _rows() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(SOURCES)
    yield
    SOURCES.clear()
    SOURCES.update(before)


def toy_config(tmp_path: Path, *overrides: str):
    poems.register()
    return tiny_config(tmp_path, "data=stdlib", "data.source=poems", *overrides)


def test_a_new_source_gives_the_batches_of_its_texts_and_notices_a_change(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path)
    write_jsonl(tmp_path / "same.jsonl", list(poems.texts(cfg.data).read()))
    as_text = text_config(tmp_path, f"data.files=['{tmp_path / 'same.jsonl'}']")
    ours, theirs = (steps(some, 3) for some in (cfg, as_text))
    assert all(same(stacked(a), stacked(b)) for a, b in zip(ours, theirs, strict=True))
    assert open_corpus(cfg).fingerprint == open_corpus(as_text).fingerprint
    other = replace(cfg, data=replace(cfg.data, seed=2))
    assert open_corpus(other).fingerprint["data"] != open_corpus(cfg).fingerprint["data"]


def test_background_processes_need_not_know_the_source(tmp_path: Path) -> None:
    """They open shards; a row registered in one process is enough."""
    cfg = toy_config(tmp_path)
    alone = steps(cfg, 3)
    helped = steps(replace(cfg, data=replace(cfg.data, workers=2)), 3)
    assert all(same(stacked(a), stacked(b)) for a, b in zip(alone, helped, strict=True))


def test_a_new_source_trains(tmp_path: Path) -> None:
    from parallel.mesh.axes import single_process
    from trainer.run import run_training

    cfg = toy_config(tmp_path, "launch.nproc=1", "train.steps=2", "train.fill_samples=0", "logging.wandb=off")
    cfg = replace(cfg, name="toy", runs_dir=str(tmp_path))
    assert run_training(cfg, single_process(), []) == 0
    lines = [json.loads(line) for line in (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("step", 0) for line in lines) == 2


def test_prepare_writes_its_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poems.register()
    arguments = [
        "data.source=poems",
        "data.tokenizer_vocab=120",
        f"data.cache_dir={tmp_path}",
        "data.prepare_workers=1",
    ]
    assert main(["prepare", "--out", str(tmp_path / "out"), *arguments]) == 0
    assert f"data=shards data.files={tmp_path / 'out'}" in capsys.readouterr().out


def test_the_row_decides_what_a_configuration_may_ask(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.source: got 'poems'; needs one of stdlib, text, shards, hub"):
        compose(["data.source=poems"])
    poems.register()
    with pytest.raises(ConfigError, match=r"data.files: .* a source that reads it \(text, shards\), not poems"):
        compose(["data.source=poems", "data.files=x.txt"])
    with pytest.raises(
        ConfigError, match=r"data.validation_files: .*\(stdlib, text, hub\), not shards; try data=stdlib"
    ):
        compose(["data=shards", f"data.files={tmp_path}", "data.validation_files=x.txt"])


def test_every_source_holds_out_the_files_it_reads(tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "held.jsonl", ["held out", "also"])
    (tmp_path / "a.txt").write_text("text")
    for overrides in (["data=stdlib"], ["data=text", f"data.files={tmp_path / 'a.txt'}"]):
        cfg = compose([*overrides, f"data.validation_files={held_out}"])
        found = [text for split, text in FiniteSource(cfg.data).documents() if split == "validation"]
        assert found == ["held out", "also"]
    with pytest.raises(ConfigError, match=r"data.validation_files: got '.*held.jsonl'; needs files that are not in"):
        compose(["data=text", f"data.files={held_out}", f"data.validation_files={held_out}"])


def test_rows_name_fields_modules_and_presets_that_exist() -> None:
    folder = Path(__file__).parents[3] / "conf" / "data"
    for name, row in SOURCES.items():
        assert set(row.reads) <= set(PLACES)
        assert (row.module is not None) == (row.kind == "documents")
        assert row.module is None or callable(importlib.import_module(row.module).texts)
        preset = (folder / f"{row.preset or name}.yaml").read_text()
        assert f"source: {name}\n" in preset
