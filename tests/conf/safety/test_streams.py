"""What a process prints, and the traceback it ends with, hold no secret."""

import subprocess
import sys

from launch.identity import ROOT

CODE = """
import logging, sys, warnings
from conf.safety.streams import redact_streams
redact_streams(); redact_streams()
logging.warning("log c4n4ry-value")
warnings.warn("warning c4n4ry-value")
print("caf\\u00e9 c4n4ry-value", flush=True)
sys.stderr.writelines(["lines c4n4ry-value\\n"])
sys.__stdout__.write("the old stream shares the buffer\\n")
assert sys.stdout.isatty() is False and sys.stdout.encoding == sys.__stdout__.encoding
raise ValueError("error c4n4ry-value")
"""


def test_nothing_that_is_printed_holds_a_secret(monkeypatch):
    monkeypatch.setenv("GITHUB_PAT", "c4n4ry-value")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 1
    assert done.stdout == "caf\u00e9 [redacted]\nthe old stream shares the buffer\n"
    assert "c4n4ry" not in done.stderr
    for word in ("log", "warning", "lines", "ValueError: error"):
        assert f"{word} [redacted]" in done.stderr
