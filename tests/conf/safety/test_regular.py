"""Files are read, and whatever is none is an error at once."""

import os

import pytest

from conf.safety.regular import read_regular


def test_a_file_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"x\r\n\xff")
    assert read_regular(tmp_path / "a") == b"x\r\n\xff"
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link", most=4) == b"x\r\n\xff"


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, reason in (("fifo", "no regular file"), (".", "directory"), ("gone", "No such file")):
        with pytest.raises(OSError, match=reason):
            read_regular(tmp_path / path)
    with pytest.raises(OSError, match="no regular file"):
        read_regular("/dev/zero")


def test_a_file_may_be_too_large(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 5)
    with pytest.raises(OSError, match="5 bytes, and 4 are the most"):
        read_regular(tmp_path / "a", most=4)
