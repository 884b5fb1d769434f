"""The embedded corpus: there, in a fixed order, text only."""

from __future__ import annotations

from pathlib import Path

from data.sources.stdlib import stdlib_documents, stdlib_files, stdlib_root


def test_this_pythons_library_gives_documents() -> None:
    root = stdlib_root()
    files = stdlib_files(root)
    names = [path.relative_to(root).as_posix() for path in files]
    assert names == sorted(names)
    assert "argparse.py" in names
    assert not any("site-packages" in name or name.startswith("encodings/") for name in names)


def test_documents_of_a_small_library(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("def f():\n    return 'text'\n")
    (tmp_path / "a.py").write_text("class A:\n    pass\n")
    (tmp_path / "latin.py").write_bytes(b"name = '\xe9t\xe9'\n")
    (tmp_path / "table.py").write_text("T = [" + "0x10, " * 100 + "]\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "c.py").write_text("def c(): pass\n")
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'z': 'Last topic', 'y': 'First topic'}\n")
    assert list(stdlib_documents(tmp_path)) == [
        "class A:\n    pass\n",
        "def f():\n    return 'text'\n",
        "First topic",
        "Last topic",
    ]
