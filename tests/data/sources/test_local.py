"""Local files through `datasets`: every kind is read, and every fault names file, row and fix."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import DataError
from data.files import expand_globs
from data.sources.local import local_documents
from data.sources.splitting import SOFT_CHARS
from tests.data.helpers import write_jsonl


def read(tmp_path: Path, *names: str, field: str = "text") -> list[str]:
    paths = [tmp_path / name for name in names]
    return list(local_documents(paths, field=field, cache_dir=tmp_path / "cache"))


def test_every_kind_in_the_order_given(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as handle:
        handle.write("zipped")
    write_jsonl(tmp_path / "c.jsonl", ["c0", "c1"])
    write_jsonl(tmp_path / "d.jsonl.gz", ["d0", "d1"])
    table = pa.table({"text": ["p0", "p1"], "n": [1, 2]})
    pq.write_table(table, tmp_path / "e.parquet")
    with pa.ipc.new_stream(tmp_path / "f.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "empty.jsonl").write_text("")
    names = ("f.arrow", "a.txt", "b.txt.gz", "c.jsonl", "empty.jsonl", "d.jsonl.gz", "e.parquet")
    assert read(tmp_path, *names) == ["p0", "p1", "one\n\ntwo\n", "zipped", "c0", "c1", "d0", "d1", "p0", "p1"]


def test_a_long_text_file_becomes_several_documents(tmp_path: Path) -> None:
    text = ("A line of prose.\n" * 20 + "\n") * 60
    (tmp_path / "book.txt").write_text(text)
    documents = read(tmp_path, "book.txt")
    assert "".join(documents) == text
    assert len(documents) == pytest.approx(len(text) / SOFT_CHARS, rel=0.3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text":"ok"}\n{"text":"ok"}\n{bad\n', r"a\.jsonl: row 3: .*'\{bad'; fix or delete the row"),
        ("b.jsonl", b'{"body":"x","n":1}\n', r"b\.jsonl: row 1: has no field 'text' but \['body', 'n'\]"),
        ("c.jsonl", b'{"text":"ok"}\n{"body":"x"}\n', r"c\.jsonl: row 2: field 'text' is null or missing"),
        ("d.jsonl", b'{"text":["x"]}\n', r"d\.jsonl: row 1: field 'text' is of type list"),
        ("e.txt", b"\xff\xfe", r"e\.txt: cannot be read as UTF-8 text"),
        ("f.parquet", b"junk", r"f\.parquet: cannot be read as parquet"),
        (
            "g.jsonl.gz",
            gzip.compress(b'{"text":"x"}\n' * 9_999, mtime=0)[:60],
            r"g\.jsonl\.gz: cannot be read .* restore the file",
        ),
        ("h.csv", b"text\n", r"h\.csv: do not know how to read"),
        ("i.parquet.gz", b"", r"do not know how to read"),
        ("j.jsonl", b'{"text":"ok"}\n[1]\n', r"j\.jsonl: row 2: not a JSON object"),
    ],
)
def test_faults_name_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, name)


def test_the_bad_file_among_several_texts_is_named(tmp_path: Path) -> None:
    for name, content in (("a.txt", b"fine"), ("b.txt", b"\xff\xff"), ("c.txt", b"fine")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"b\.txt: cannot be read as UTF-8"):
        read(tmp_path, "a.txt", "b.txt", "c.txt")


def test_globs_are_sorted_and_missing_ones_named(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text("x")
    found = expand_globs([str(tmp_path / "*.txt"), str(tmp_path / "a.txt")], field="data.files")
    assert [path.name for path in found] == ["a.txt", "b.txt"]
    with pytest.raises(DataError, match=r"data\.files: no file matches '.*nothing\*'"):
        expand_globs([str(tmp_path / "nothing*")], field="data.files")


def test_reading_through_datasets_does_not_import_torch(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", ["c0"])
    code = (
        "import sys, pathlib; import data.loader, data.prepare, data.sources.local as l;"
        "assert 'datasets' not in sys.modules;"
        f"assert list(l.local_documents([pathlib.Path({str(path)!r})], field='text', cache_dir=pathlib.Path("
        f"{str(tmp_path)!r}))) == ['c0']; bad = {{'torch', 'tensorflow', 'jax'}} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
