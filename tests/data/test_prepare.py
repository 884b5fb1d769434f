"""Preparation: the same bytes for any number of processes, resumable, locked, idempotent, and honest about faults."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.errors import ConfigError, DataError
from data import prepare
from data.corpus import open_corpus
from data.notice import silent
from data.prepare import prepare_data, prepare_finite
from data.shards.shards import read_index
from data.shards.verify import find_faults
from data.sources.finite import is_validation
from launch.cli import main
from tests.data.helpers import sentences, text_config, tiny_config, write_jsonl

CORPUS = Path(__file__).parents[3] / "shared" / "corpus" / "en"
_SMALL = "import data.prepare as p; p._MIN_SHARD_BYTES = 12_000; "


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def assert_whole(folder: Path, tmp_path: Path) -> None:
    data = tiny_config(tmp_path, "data=stdlib", f"data.cache_dir={tmp_path / 'fresh'}").data
    assert find_faults(folder, read_index(folder), data, silent) == []


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_MIN_SHARD_BYTES", 4_000)


@pytest.mark.usefixtures("small_shards")
def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    cfg = text_config(tmp_path)
    one = prepare_finite(cfg.data, out=tmp_path / "one")
    three = prepare_finite(replace(cfg.data, prepare_workers=3), out=tmp_path / "three")
    assert contents(one.folder) == contents(three.folder)
    assert len(read_index(one.folder).shards) >= 4
    assert_whole(one.folder, tmp_path)


@pytest.mark.usefixtures("small_shards")
def test_shards_hold_every_document_once_in_order(tmp_path: Path) -> None:
    documents = [sentences(3 + n % 7, seed=n) for n in range(60)]
    prepared = prepare_finite(text_config(tmp_path).data, out=None)
    corpus = open_corpus(text_config(tmp_path))
    assert corpus.documents("train") + corpus.documents("validation") == 60
    assert 2 <= corpus.documents("validation") <= 25, "a share chosen by hash"
    ids = {split: [] for split in ("train", "validation")}
    for text in documents:
        split = "validation" if is_validation(text, 0.2) else "train"
        ids[split] += prepared.tokenizer.encode(text).tolist()
    for split, expected in ids.items():
        readers = corpus.indexed(split)._tokens
        assert [token for tokens in readers for token in tokens.tolist()] == expected


def test_second_time_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = text_config(tmp_path)
    messages: list[str] = []
    prepare_data(cfg, progress=messages.append)
    assert any("tokenizer" in message for message in messages)
    monkeypatch.setattr("data.sources.local.local_documents", None)
    messages.clear()
    prepare_data(cfg, progress=messages.append)
    assert messages == []


def test_changed_text_is_noticed(tmp_path: Path) -> None:
    cfg = text_config(tmp_path)
    before = open_corpus(cfg).fingerprint
    path = tmp_path / "corpus.jsonl"
    write_jsonl(path, [sentences(5, seed=n) for n in range(70)])
    after = open_corpus(cfg)
    assert after.fingerprint["data"] != before["data"]
    assert after.documents("train") + after.documents("validation") == 70


def test_another_file_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    cfg = text_config(tmp_path)
    before = open_corpus(cfg).fingerprint
    path = tmp_path / "corpus.jsonl"
    times = path.stat()
    path.write_text(path.read_text().replace("cat", "dog"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_corpus(cfg).fingerprint["data"] != before["data"]


@pytest.mark.parametrize("then", ["scan_source", "tokenizer_for"])
@pytest.mark.parametrize("documents", [20, 100])
def test_text_that_changes_meanwhile_is_refused_and_nothing_is_kept_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, documents: int
) -> None:
    cfg = text_config(tmp_path, "data.tokenizer_lines=200")
    path = tmp_path / "corpus.jsonl"
    whole, step = path.read_bytes(), getattr(prepare, then)

    def changing(*given: Any, **named: Any) -> Any:
        done = step(*given, **named)
        write_jsonl(path, [sentences(5, seed=n) for n in range(documents)])
        return done

    monkeypatch.setattr(prepare, then, changing)
    with pytest.raises(DataError, match="data=text: the text was changed while it was prepared"):
        prepare_data(cfg)
    monkeypatch.undo()
    assert not list((tmp_path / "cache").rglob("index.json"))
    path.write_bytes(whole)
    corpus = open_corpus(cfg)
    assert corpus.documents("train") + corpus.documents("validation") == 60


def test_killed_while_writing_it_resumes(tmp_path: Path) -> None:
    cfg = text_config(tmp_path, documents=500)
    whole = prepare_finite(cfg.data, out=tmp_path / "whole")
    out = tmp_path / "out"
    arguments = [
        "--out",
        str(out),
        "data=text",
        f"data.files=['{tmp_path / 'corpus.jsonl'}']",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.tokenizer_vocab=120",
        "data.validation_fraction=0.2",
        "data.prepare_workers=2",
    ]
    start = f"{_SMALL}import sys; from launch.cli import main; sys.exit(main(['prepare', *sys.argv[1:]]))"
    command = [sys.executable, "-c", start, *arguments]
    victim = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.json"))) < 3 and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (out / "index.json").exists(), "killed too late to show anything"
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert len(kept) >= 3
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    assert_whole(out, tmp_path)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept, "finished shards are kept"
    assert sum(shard.tokens for shard in read_index(out).shards) == sum(
        s.tokens for s in read_index(whole.folder).shards
    )
    assert not list(out.glob(".*.tmp"))


def test_two_jobs_at_once(tmp_path: Path) -> None:
    text_config(tmp_path)
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "prepare",
        "data=text",
        f"data.files=['{tmp_path / 'corpus.jsonl'}']",
    ]
    command += [f"data.cache_dir={tmp_path / 'cache'}", "data.tokenizer_vocab=120", "data.validation_fraction=0.2"]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    folders = {
        line.split()[0] for out, _ in outputs for line in out.splitlines() if "shards/" in line and " s)" in line
    }
    assert len(folders) == 1
    assert sum("training a tokenizer" in err for _, err in outputs) == 1, "the second waited and found it done"


def test_prepared_directory_is_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = text_config(tmp_path)
    out = tmp_path / "out"
    arguments = [
        f"data.files=['{cfg.data.files[0]}']",
        f"data.cache_dir={cfg.data.cache_dir}",
        "data.tokenizer_vocab=120",
    ]
    assert main(["prepare", "--out", str(out), "data=text", "data.validation_fraction=0.2", *arguments]) == 0
    assert f"data=shards data.files={out}" in capsys.readouterr().out
    shards = open_corpus(tiny_config(tmp_path, "data=shards", f"data.files=['{out}']"))
    text = open_corpus(cfg)
    assert shards.fingerprint == text.fingerprint
    assert shards.tokens("train") == text.tokens("train") > 0


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    cfg = text_config(tmp_path)
    prepare_finite(cfg.data, out=tmp_path / "out")
    other = prepare_finite(replace(cfg.data, tokenizer_vocab=130), out=tmp_path / "other")
    model = other.folder / "tokenizer.model"
    with pytest.raises(DataError, match=r"out: its shards were made with tokenizer .* leave data.tokenizer unset"):
        open_corpus(
            tiny_config(tmp_path, "data=shards", f"data.files=['{tmp_path / 'out'}']", f"data.tokenizer={model}")
        )


def test_the_tokenizer_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "tokenizer.model").write_bytes(b"a run's own")
    with pytest.raises(ConfigError, match=r"--out: .*run'; needs a folder without another tokenizer.model"):
        prepare_finite(text_config(tmp_path).data, out=run)
    assert [path.name for path in run.iterdir()] == ["tokenizer.model"]
    assert (run / "tokenizer.model").read_bytes() == b"a run's own"


def test_command_reports_faults_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps({"body": "x"}) + "\n")
    arguments = ["data=text", f"data.files=['{tmp_path / 'bad.jsonl'}']", f"data.cache_dir={tmp_path / 'cache'}"]
    assert main(["prepare", *arguments]) == 2
    assert "bad.jsonl: row 1: has no field 'text'" in capsys.readouterr().err


def test_skipped_rows_are_counted_in_the_summary_and_by_the_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"text": sentences(4, seed=n)}) for n in range(20)]
    rows[6], rows[11] = '{"text": null}', '{"text": "half \\ud83d of a pair"}'
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    text = [f"data.files={tmp_path / 'rows.jsonl'}", "data.bad_rows=skip"]
    cfg = tiny_config(tmp_path, *text)
    told = "data.bad_rows=skip: 2 bad rows skipped; the first is .*rows.jsonl: row 7: field 'text' is null"
    for _ in range(2):  # also when nothing is read again
        corpus = open_corpus(cfg)
        assert re.match(told, *corpus.notes)
        assert corpus.documents("train") + corpus.documents("validation") == 18
    arguments = ["data=text", *text, f"data.cache_dir={tmp_path / 'cache'}", "data.tokenizer_vocab=120"]
    assert main(["prepare", "--out", str(tmp_path / "out"), *arguments]) == 0
    assert re.search(told, capsys.readouterr().out)
    (tmp_path / "rows.jsonl").write_text('{"text": null}')
    with pytest.raises(DataError, match=r"no training document .*; data.bad_rows=skip: 1 bad row skipped; .* row 1"):
        open_corpus(cfg)


RARE = [
    "a note with a smile \U0001f600, 10 \u20ac\n",
    *(sentences(5, seed=n) for n in range(40)),
    "5 \u20ac, or 6 \u20ac",
]


def test_unknown_characters_are_counted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "rare.jsonl", RARE)
    cfg = tiny_config(tmp_path, f"data.files=['{tmp_path / 'rare.jsonl'}']", "data.character_coverage=0.99")
    size = f"{sum(map(len, RARE)):,}"
    told = rf"unknown characters: \d+ of {size} \(\d\.\d\d%\), such as .*\u20ac.*; .*data.byte_fallback=true"
    (note,) = open_corpus(cfg).notes
    assert re.match(told, note)
    arguments = [f"data.cache_dir={cfg.data.cache_dir}", "data.tokenizer_vocab=120", "data.validation_fraction=0.2"]
    files = f"data.files={tmp_path / 'rare.jsonl'}"
    out = str(tmp_path / "out")
    assert main(["prepare", "--out", out, "data=text", files, "data.character_coverage=0.99", *arguments]) == 0
    assert re.search(told, capsys.readouterr().out)
    shards = tiny_config(tmp_path, "data=shards", f"data.files=[{out}]")
    (note,) = open_corpus(shards).notes
    assert re.match(rf"{out}: unknown characters: \d+ of .*; a tokenizer with byte fallback", note)
    assert main(["prepare", "data=text", files, "data.byte_fallback=true", *arguments, "data.tokenizer_vocab=400"]) == 0
    assert "unknown characters: none" in capsys.readouterr().out


def test_unknown_characters_of_a_stream_are_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rare.jsonl", RARE * 3)
    files = f"data.hub_files=['{tmp_path / 'rare.jsonl'}']"
    lanes = ["data=c4", "data.stream_lanes=2", "data.hub_validation_split=null", "train.global_batch=8"]
    cfg = tiny_config(tmp_path, *lanes, files, "data.character_coverage=0.98", "data.validation_fraction=0.5")
    (note,) = open_corpus(cfg).notes
    assert re.match(r"unknown characters: \d+ of [\d,]+ held-out tokens \(\d+\.\d\d%\)", note)


def test_shards_of_an_older_format_are_made_again(tmp_path: Path) -> None:
    cfg = text_config(tmp_path)
    folder = prepare_finite(cfg.data, out=None).folder
    index = json.loads((folder / "index.json").read_text())
    fingerprint = read_index(folder).fingerprint
    for shard in index["shards"]:
        for name in ("characters", "unknown", "unknown_sample"):
            del shard[name]
    del index["sha256"]
    (folder / "index.json").write_text(json.dumps({**index, "format": 1}))
    assert prepare_finite(cfg.data, out=None).folder == folder
    assert read_index(folder).shards[0].characters > 0
    assert read_index(folder).fingerprint == fingerprint


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_is_told_and_nothing_is_half_written(tmp_path: Path, workers: int) -> None:
    """A limit on the size of files stands in for the disk."""
    cfg = text_config(tmp_path, documents=300)
    prepare_finite(cfg.data, out=None)
    arguments = ["--out", str(tmp_path / "out"), "data=text", f"data.files={cfg.data.files[0]}"]
    arguments += [f"data.cache_dir={cfg.data.cache_dir}", "data.tokenizer_vocab=120", f"data.prepare_workers={workers}"]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    code = f"{limit}import sys; from launch.cli import main; sys.exit(main(['prepare', *sys.argv[1:]]))"
    command = [sys.executable, "-c", code, *arguments, "data.validation_fraction=0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: .*train-00000-\w+\.tokens: cannot be written .*; needs room for \d", done.stderr)
    assert "Traceback" not in done.stderr
    assert not [path for path in (tmp_path / "out").iterdir() if "tmp" in path.name or "index" in path.name]
    assert (
        subprocess.run([*command[:2], code.replace(limit, ""), *command[3:]], timeout=120, check=False).returncode == 0
    )
    assert_whole(tmp_path / "out", tmp_path)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the shared corpus is not beside this checkout")
def test_real_prose(tmp_path: Path) -> None:
    cfg = tiny_config(
        tmp_path,
        f"data.files=['{CORPUS / 'validation-*.jsonl.gz'}']",
        "data.tokenizer_vocab=500",
        "data.tokenizer_lines=300",
        "data.validation_fraction=0.05",
        "model.vocab_size=600",
    )
    corpus = open_corpus(cfg)
    assert corpus.documents("train") > 10 * corpus.documents("validation") > 0
    window = corpus.indexed("train").get(np.arange(1))[0]
    assert len(corpus.tokenizer.decode(window)) > 100
