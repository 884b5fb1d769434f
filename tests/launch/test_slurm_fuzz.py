"""Values that a shell or Slurm could take for more than text, in every field of a configuration that takes text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError, ConfigErrors
from conf.reading.fields import leaf_types
from conf.reading.meanings import is_free_text
from conf.schema import RunConfig
from launch import slurm
from launch.cli import main
from launch.slurm import run_folder, script_of_run
from tests.launch.shells import Shell, sbatch_options

FIELDS = [field for field in leaf_types() if is_free_text(field)]
HOSTILE = (
    "$(touch ran)`touch ran`",
    "';touch ran;'",
    """it's; "touch ran; '""",
    'say "$(touch ran)',
    "a b && touch ran || touch ran; touch ran # | touch ran > ran & touch ran",
    "-x --output=ran --wrap=touch",
    "%j %x %% >ran",
    "a\\$(touch ran)\\",
    "!! ~ * ? [a] {b,c} $HOME $$ $#",
    "caf\u00e9 \u4e16\u754c \U0001f600",
)
# Which source reads the fields of text; under another one they are refused. With a container and without one.
SOURCES = (["data=text", "data.files=a.txt"], ["data=c4", "launch.slurm_container=null"])

READ_ELSEWHERE = {"data.files", "data.hub_path", "data.hub_files"}
OF_A_FORM = {"launch.rdzv_endpoint", "launch.slurm_time", "logging.wandb_project", "model.preset"}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    made = Shell(tmp_path)
    monkeypatch.setattr(sys, "executable", str(made.bin / "python"))
    return made


def script_with(settings: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str], set[str]]:
    """The script of as many of `settings` as are accepted together, these, and the fields that were refused."""
    refused: set[str] = set()
    for _ in range(6):  # rules come in a few stages
        kept = [word for word in settings if word.partition("=")[0] not in refused]
        try:
            assert script_of_run(kept) == 0
            return capsys.readouterr().out, kept, refused
        except (ConfigError, ConfigErrors) as error:
            errors = error.errors if isinstance(error, ConfigErrors) else (error,)
            refused |= {each.field for each in errors}
    pytest.fail(f"{refused} were left out, and it is refused still")


@pytest.mark.parametrize(
    ("hostile", "source"),
    [
        pytest.param(text, source, marks=pytest.mark.slow if number % 5 else ())
        for source, texts in zip(SOURCES, (HOSTILE, HOSTILE[:4]), strict=True)
        for number, text in enumerate(texts)
    ],
)
def test_no_text_is_more_than_text(
    hostile: str, source: list[str], shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    script, kept, refused = script_with([*source, *with_texts(hostile, source)], capsys)
    assert refused <= OF_A_FORM | READ_ELSEWHERE | ({"runs_dir"} if set(hostile) & set("\\,:") else set())
    done = shell.run(script)
    assert done.returncode == 0, done.stderr
    assert not list(shell.folder.rglob("ran")), f"{hostile} was run"
    (words,) = shell.called("srun")
    sent = words[words.index("trainer.main") + 1 :]
    assert [word for word in sent if word != "launch=slurm" and not word.startswith("name=")] == kept
    assert shell.called("python") == [words[words.index("-m") :]]
    cfg = compose(sent, files="unchecked")
    check_directives(script, cfg)
    folder = str(run_folder(cfg))
    assert f"--log-dir={folder}/ranks-77" in words
    assert "--rdzv-endpoint=first-node:10077" in words
    here = str(shell.folder)
    options = [word for word in words if word.startswith("--container")]
    assert options == [] if cfg.launch.slurm_container is None else [
        f"--container-image={cfg.launch.slurm_container}", f"--container-mounts={here}:{here},{folder}:{folder}",
        f"--container-workdir={here}",
    ]  # fmt: skip


def with_texts(text: str, source: list[str]) -> list[str]:
    """Every field that takes text set to it, but those that `source` sets."""
    taken = {"name", *(word.partition("=")[0] for word in source)}
    return [f"{field}={text}" for field in FIELDS if field not in taken]


def check_directives(script: str, cfg: RunConfig) -> None:
    """What `sbatch` reads is what was typed, and there is nothing besides."""
    options = sbatch_options(script)
    assert set(options) - {"partition", "account"} == {
        "job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "time", "output", "open-mode",
        "signal", "requeue",
    }  # fmt: skip
    assert options["job-name"] == f"pointsman-{cfg.name}"
    assert options.get("partition") == cfg.launch.slurm_partition
    assert options.get("account") == cfg.launch.slurm_account
    assert options["output"].replace("%%", "%") == f"{run_folder(cfg)}/slurm-%j.out"


def test_every_text_field_takes_a_text(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the test above would look at none."""
    taken: set[str] = set()
    for source in SOURCES:
        settings = [*source, "name=a-b", *with_texts("a-b", source)]
        taken |= {word.partition("=")[0] for word in script_with(settings, capsys)[1]}
    # of a form of their own: host:port, a time
    assert set(FIELDS) - taken == {"launch.rdzv_endpoint", "launch.slurm_time"}


@pytest.mark.parametrize("field", FIELDS)
def test_a_control_character_is_refused_by_the_name_of_the_field(
    field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for sign in ("\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x85", "\u2028", "\udcff"):
        assert main(["slurm", f"{field}=a{sign}#SBATCH --wrap=id"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"error: {field}: got "), printed.err
        assert "control characters" in printed.err


def test_a_name_with_blanks_stays_one_word(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    script, *_ = script_with(["name=a b"], capsys)
    assert sbatch_options(script)["job-name"] == "pointsman-a b"
    assert shell.run(script).returncode == 0
    assert shell.called("srun")[0][-1] == "name=a b"


@pytest.mark.parametrize("sign", [",", ":"])
def test_a_working_directory_that_cannot_be_mounted_ends_the_job(
    sign: str, shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *_ = script_with(["launch.slurm_container=image", "name=x"], capsys)
    (shell.folder / f"a{sign}b").mkdir()
    done = shell.run(script, cwd=shell.folder / f"a{sign}b")
    assert (done.returncode, shell.called("srun")) == (2, [])
    assert "cannot be mounted" in done.stderr


def test_folders_that_slurm_takes_for_syntax_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "name=x", f"runs_dir={tmp_path}/a\\b"]) == 2
    assert main(["slurm", "name=x", f"runs_dir={tmp_path}/a,b", "launch.slurm_container=image"]) == 2
    assert main(["slurm", "name=x", f"runs_dir={tmp_path}/a:b", "launch.slurm_container=image"]) == 2
    assert capsys.readouterr().err.count("error: runs_dir: got ") == 3
    assert main(["slurm", "name=x", f"runs_dir={tmp_path}/a,b:c"]) == 0


@pytest.mark.parametrize("file", ["a b.sbatch", "$(touch ran)", "-x", "it's"])
def test_the_command_that_is_printed_submits_that_file(
    file: str, shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slurm", "--write", file, "name=x"]) == 0
    shell.run(capsys.readouterr().out.split("submit it here with: ")[1])
    (words,) = shell.called("sbatch")
    assert [Path(word) for word in words] == [Path(file)]
    assert words[0][0] != "-"
    assert not list(shell.folder.rglob("ran"))


def test_submitting_hands_the_file_over_without_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    monkeypatch.setenv("PATH", f"{shell.bin}:/usr/bin:/bin")
    monkeypatch.setenv("NOTES", str(shell.notes))
    assert main(["slurm", "--submit", "name=x", "runs_dir=a$(touch ran)"]) == 0
    assert shell.called("sbatch") == [[str(tmp_path / "a$(touch ran)" / "x" / "train.sbatch")]]
    assert not list(tmp_path.rglob("ran"))


def test_stand_ins_and_the_reader_of_directives_see_what_they_look_for(shell: Shell) -> None:
    shell.run("srun --a=$(touch ran) python -m x 'a b'")
    assert (shell.folder / "ran").exists()
    assert shell.called("srun") == [["--a=", "python", "-m", "x", "a b"]]
    assert shell.called("python") == [["-m", "x", "a b"]]
    script = "#!/bin/bash\n#SBATCH --a=b\\ c --d='e f' --g=\\'h # --i=1\n\nls\n#SBATCH --j=k\n"
    assert sbatch_options(script) == {"a": "b c", "d": "e f", "g": "'h"}
    assert subprocess.run(["bash", "-n", "-c", slurm.TEMPLATE.read_text().replace("@", "x")]).returncode == 0
