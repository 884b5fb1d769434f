"""Package names: ours are found from anywhere, foreign ones of the same name are refused, plain folders do no harm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.identity import PACKAGES, ROOT

CHECK = "from launch.identity import check_packages; check_packages()"


def python(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in `cwd`, which is first on its path, as with `python -m` and torchrun."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=60
    )


def test_every_package_imports_from_another_directory(tmp_path: Path) -> None:
    lines = "".join(f"import {name}; print({name}.__path__[0]);" for name in PACKAGES)
    done = python(lines, tmp_path)
    assert done.stdout.split() == [str(ROOT / name) for name in PACKAGES], done.stderr


def test_check_imports_none_of_the_packages_it_checks(tmp_path: Path) -> None:
    done = python(f"{CHECK}; import sys; print([n for n in {PACKAGES!r} if n in sys.modules])", tmp_path)
    assert done.stdout.strip() == "['launch']", done.stderr


@pytest.mark.parametrize("name", ["data", "model", "parallel", "trainer", "conf", "measure"])
def test_foreign_package_in_working_directory_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = python(CHECK, tmp_path)
    check_refusal(done, tmp_path / name)


@pytest.mark.parametrize("name", ["data", "model", "parallel", "conf", "launch"])
@pytest.mark.parametrize("door", ["trainer.main", "torch.distributed.run"])
def test_every_door_names_the_foreign_package_in_the_working_directory(tmp_path: Path, name: str, door: str) -> None:
    if door == "torch.distributed.run" and name != "model":
        pytest.skip("torchrun starts the door beside it; it costs seconds, so one name will do")
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    words = ["-m", "trainer.main"] if door == "trainer.main" else ["-m", door, "--standalone", "-m", "trainer.main"]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, *words, "train.steps=1"], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    message = next(line for line in done.stderr.splitlines() if line.startswith("error: package"))
    assert str(tmp_path / name) in message
    assert str(ROOT / name) in message
    assert "ModuleNotFoundError" not in done.stderr


def check_refusal(done: subprocess.CompletedProcess[str], foreign: Path) -> None:
    assert done.returncode == 2
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(f"error: package '{foreign.name}': got {foreign}")
    assert str(ROOT / foreign.name) in message
    assert "another working directory" in message


def test_foreign_module_on_pythonpath_is_named(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.py").touch()
    done = python(CHECK, tmp_path, PYTHONPATH=str(tmp_path / "elsewhere"))
    assert f"got {tmp_path / 'elsewhere' / 'model.py'}" in done.stderr
    assert "remove it from PYTHONPATH" in done.stderr


@pytest.mark.parametrize("name", ["data", "conf", "trainer"])
def test_plain_folder_does_not_hide_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "text.txt").write_text("some text\n")
    done = python(f"{CHECK}; import {name}; print({name}.__path__[0])", tmp_path)
    assert done.stdout.strip() == str(ROOT / name), done.stderr
