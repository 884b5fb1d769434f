"""Local files: every kind is read by one rule, and every fault names file, row and fix."""

from __future__ import annotations

import gzip
import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.compose import compose
from conf.errors import DataError
from data.sources.local import local_documents
from data.sources.splitting import SOFT_CHARS
from data.sources.texts import BadRows
from tests.data.helpers import write_jsonl

REFUSING = compose([]).data
SKIPPING = compose(["data.bad_rows=skip"]).data


def read(tmp_path: Path, *names: str, field: str = "text") -> list[str]:
    paths = [tmp_path / name for name in names]
    return list(BadRows(REFUSING).good(local_documents(paths, field=field)))


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


OK = b'{"text":"ok"}\n'
DEEP = b"[" * 100_000 + b"]" * 100_000


def with_pairs(values: list[object], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"n": range(len(values)), "text": pa.array(values, type=kind)})


def parquet(values: list[object], kind: pa.DataType | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(with_pairs(values, kind), sink)
    return sink.getvalue()


def twice() -> bytes:
    """Two columns of one name."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), sink)
    return sink.getvalue()


def flipped(content: bytes, at: bytes) -> bytes:
    place = content.rindex(at)
    return content[:place] + bytes([content[place] ^ 0x80]) + content[place + 1 :]


def checked_pages() -> bytes:
    """A file whose pages carry checksums, which pyarrow heeds where it is told to."""
    sink = io.BytesIO()
    table = pa.table({"text": ["one", "two", "three"]})
    pq.write_table(
        table, sink, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    return sink.getvalue()


def arrow() -> bytes:
    sink, table = io.BytesIO(), pa.table({"text": ["x"]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def not_utf8(kind: str) -> bytes:
    """A column of texts of which the second is not UTF-8."""
    offsets, content = struct.pack("<4i", 0, 2, 4, 6), b"ok\xff\xffok"
    column = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    sink, table = io.BytesIO(), pa.table({"text": column})
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


# One row of each is bad: file, row and reason; with data.bad_rows=skip the others, "ok", are read.
BAD_ROWS = [
    ("a.jsonl", 2 * OK + b"{bad\n" + OK, r"a\.jsonl: row 3: .* column 2: '\{bad'; fix or delete the row"),
    ("b.jsonl", b'{"body":"x","n":1}\n' + OK, r"b\.jsonl: row 1: has no field 'text' but \['body', 'n'\]"),
    ("c.jsonl", OK + b'{"text":null}\n', r"c\.jsonl: row 2: field 'text' is null"),
    ("d.jsonl", b'{"text":["x"]}\n' + OK, r"d\.jsonl: row 1: field 'text' is of type list"),
    ("e.jsonl", OK + b"[1]\n" + OK, r"e\.jsonl: row 2: not a JSON object"),
    ("f.jsonl", b"[1]\n" + OK, r"f\.jsonl: row 1: not a JSON object"),
    (
        "g.jsonl",
        OK + b'{"text": "cut \\ud83d here"}\n',
        r"g\.jsonl: row 2: .* half of a surrogate pair \(U\+D83D at",
    ),
    ("h.jsonl", OK + b'{"text": "\xe9"}\n', r"h\.jsonl: row 2: byte 0xe9 at position 11 is not UTF-8"),
    ("i.jsonl", OK + b'{"text": "x", "y": ' + DEEP + b"}\n", r"i\.jsonl: row 2: brackets are nested too deeply"),
    ("j.jsonl", b"\n" + OK + b"\r\n\n" + b'{"text": 5}\n', r"j\.jsonl: row 2 \(line 5\): field 'text' is of type int"),
    ("k.jsonl.gz", gzip.compress(OK + b"{\n" + OK), r"k\.jsonl\.gz: row 2: "),
    ("l.json", b'[{"text":"ok"},\n{"text":null}]', r"l\.json: row 2: field 'text' is null"),
    ("m.json", b"{bad\n" + OK, r"m\.json: row 1: "),
    ("n.jsonl", "".join(f'{{"text":"ok","u":"{c}"}}\n' for c in "\u2028\x85\x7f").encode() + b"{\n", r"row 4: "),
    ("o.parquet", parquet(["ok", None, "ok"]), r"o\.parquet: row 2: field 'text' is null"),
    ("p.parquet", not_utf8("parquet"), r"p\.parquet: row 2: byte 0xff at position 1 is not UTF-8"),
    ("q.arrow", not_utf8("arrow"), r"q\.arrow: row 2: byte 0xff at position 1 is not UTF-8"),
    ("r.txt", b"\xff\xff", r"r\.txt: cannot be read as UTF-8 text \(byte 0xff at position 1"),
    (
        "s.txt",
        "\u0414\u0430 \u043d\u0435\u0442".encode("utf-16-le"),
        r"s\.txt: .* \(byte 0x00 at position 6 is no text\); convert",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_ROWS, ids=[row[0] for row in BAD_ROWS])
def test_a_bad_row_is_refused_by_its_place_or_skipped_and_counted(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, name)
    bad = BadRows(SKIPPING)
    assert set(bad.good(local_documents([tmp_path / name], field="text"))) <= {"ok"}
    assert bad.count == 1
    assert re.search(message, bad.first)


CUT = gzip.compress(OK * 9_999, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfex\0", r"a\.txt: .* byte order mark of UTF-16"),
        ("b.jsonl", '{"text":"x"}'.encode("utf-16"), r"b\.jsonl: .* byte order mark of UTF-16"),
        (
            "b4.txt",
            "ok".encode("utf-32"),
            r"b4\.txt: .* byte order mark of UTF-32\); convert it with `iconv -f UTF-32 ",
        ),
        ("bb.txt", b"\0\0\xfe\xff\0\0\0x", r"bb\.txt: .* byte order mark of UTF-32"),
        (
            "bl.txt",
            "ok".encode("utf-16-le"),
            r"bl\.txt: .*begins as UTF-16LE does\); convert it with `iconv -f UTF-16LE ",
        ),
        ("bj.jsonl", '{"text":"x"}'.encode("utf-16-be"), r"bj\.jsonl: .*begins as UTF-16BE does"),
        ("bm.json", '[{"text":"x"}]'.encode("utf-32-le"), r"bm\.json: .*begins as UTF-32LE does"),
        ("bn.txt", "ok".encode("utf-32-be"), r"bn\.txt: .*begins as UTF-32BE does"),
        ("e1.parquet", checked_pages().replace(b"two", b"TWO"), r"e1\.parquet: cannot be read .*checksum.*; restore"),
        ("n2.arrow", flipped(arrow(), b"text"), r"n2\.arrow: cannot be read as arrow \(.*utf-8.*\); restore"),
        ("e2.parquet", twice(), r"e2\.parquet: has 2 columns 'text'; needs one"),
        ("c.parquet", b"junk", r"c\.parquet: cannot be read .*; restore the file"),
        ("d.parquet", parquet(["x"] * 9)[:-20], r"d\.parquet: cannot be read .*; restore the file"),
        ("e.parquet", parquet(["x"]).replace(b"text", b"body"), r"no column 'text' but \['body', 'n'\]"),
        ("f.jsonl.gz", CUT[:60], r"f\.jsonl\.gz: cannot be read .*restore the file"),
        ("g.jsonl.gz", CUT[:-8] + b"\0" * 8, r"g\.jsonl\.gz: cannot be read on after row 9999 .*CRC"),
        ("h.jsonl.gz", OK, r"h\.jsonl\.gz: cannot be read .*[Nn]ot a gzipped file"),
        ("i.txt.gz", CUT[:30] + b"\xff" * 30 + CUT[60:], r"i\.txt\.gz: cannot be read"),
        ("j.json", b'[{"text":"a"},{"text":', r"j\.json: row 2: .* at line 1"),
        ("k.json", b'[{"text":"a"} {"text":"b"}]', r"k\.json: row 1: no comma"),
        ("l.json", b'[{"text":"a"}] x', r"l\.json: there is more after the list"),
        ("m.json", DEEP, r"m\.json: row 1: brackets are nested too deeply"),
        ("n.arrow", b"junk", r"n\.arrow: cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_whatever_the_policy(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(BadRows(SKIPPING).good(local_documents([tmp_path / name], field="text")))


def test_marks_line_ends_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(mark + b"one\r\ntwo\rthree\x0cfour\n")
    (tmp_path / "b.jsonl").write_bytes(mark + b'{"text":"b"}\r\n{"text":"\xef\xbb\xbfc \xe2\x80\xa8 d"}')
    (tmp_path / "c.json").write_bytes(mark + b'[{"text":"e"}, "f"]')
    (tmp_path / "d.json").write_bytes(b'{\n "text": "g"\n}\n{"text":\n"h"}\n')
    (tmp_path / "e.jsonl").write_bytes(
        b'{"text":"i","n":1}\n{"n":{"a":[]},"text":"j"}\n{"text":"k","n":' + b"9" * 5_000 + b"}"
    )
    with gzip.open(tmp_path / "f.txt.gz", "wb") as handle:
        handle.write(mark + b"l")
    kinds = (pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    for number, kind in enumerate(kinds):
        (tmp_path / f"g{number}.parquet").write_bytes(parquet(["m", "n"], kind))
    names = ("a.txt", "b.jsonl", "c.json", "d.json", "e.jsonl", "f.txt.gz", "g0.parquet", "g1.parquet")
    assert read(tmp_path, *names) == ["one\ntwo\nthree\x0cfour\n", "b", "c \u2028 d", *"efghijklmnmn"]


def test_the_bad_file_among_several_texts_is_named(tmp_path: Path) -> None:
    for name, content in (("a.txt", b"fine"), ("b.txt", b"\xff\xff"), ("c.txt", b"fine")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"b\.txt: cannot be read as UTF-8"):
        read(tmp_path, "a.txt", "b.txt", "c.txt")


def test_reading_files_imports_neither_datasets_nor_torch(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", ["c0"])
    code = (
        "import sys, pathlib; import data.loader, data.prepare, data.sources.local as l;"
        f"assert list(l.local_documents([pathlib.Path({str(path)!r})], field='text')) == ['c0'];"
        "bad = {'datasets', 'pyarrow', 'torch', 'jax'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
