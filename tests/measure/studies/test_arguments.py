"""Options that the studies share: what they refuse, and the line that says how a page was made."""

from pathlib import Path

import pytest

from conf.errors import ConfigError
from launch import cli
from measure.studies.arguments import check_study, common_overrides, provenance
from measure.studies.headline.cells import Headline
from measure.studies.headline.command import command as headline
from measure.studies.precision.cells import PrecisionStudy
from measure.studies.precision.command import command as precision


def parsed(*words, study=Headline, command=headline):
    """The study that the words ask for; of its function's parameters, the files of --config are read before."""
    params = command.make_context("study", list(words)).params
    return study(**{name: value for name, value in params.items() if name != "config"})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--steps", "0"], "--steps"),
        (["--eval-every", "0"], "--eval-every"),
        (["--at-once", "0"], "--at-once"),
        (["--seeds", "1", "1"], "--seeds"),
        (["seed=3"], "seed"),
        (["train.steps=3"], r"train\.steps"),
        (["logging.wandb=online"], r"logging\.wandb"),
    ],
)
def test_what_makes_no_study_is_refused(words, named):
    with pytest.raises(ConfigError, match=f"^{named}: "):
        check_study(parsed(*words), owned=())


@pytest.mark.parametrize("study", ["headline", "precision"])
def test_what_a_study_varies_cannot_be_set(study):
    with pytest.raises(ConfigError, match=r"^moe\.sparse_every: got 0; needs experts"):
        cli.run(["study", study, "moe=dense"])


@pytest.mark.parametrize("sizes", [["1", "2"], ["2", "2"]])
def test_sizes_are_different_and_have_experts_to_choose_from(sizes):
    with pytest.raises(ConfigError, match=r"^--experts: "):
        cli.run(["study", "headline", "--experts", *sizes])


def test_settings_stand_anywhere_among_the_options():
    study = parsed(
        "--out", "x", "model=small", "--seeds", "1", "2", "seed.x=1", "--experts", "4", "--steps", "10", "moe=hf"
    )
    assert study.overrides == ("model=small", "seed.x=1", "moe=hf")
    assert (study.seeds, study.experts, study.steps, study.out) == ((1, 2), (4,), 10, Path("x"))


def test_the_users_settings_reach_every_run():
    lines = common_overrides(parsed("data=text", "--steps", "40", "--eval-every", "8"), seed=3)
    assert {"data=text", "seed=3", "train.steps=40", "train.eval_every=8", "launch.nproc=1"} <= set(lines)


def test_a_page_names_its_command_but_no_folder():
    words = ["data.files=/home/somebody/text.txt", "model.d_model=32", "--steps", "40", "--experts", "2", "4"]
    words += ["--out", "/home/somebody/runs", "--markdown", "page.md", "--at-once", "1"]
    line = provenance("headline", parsed(*words), Headline(), where="CPU")
    assert line.startswith("Made by `pointsman study headline --experts 2 4 --steps 40 model.d_model=32` at commit `")
    assert line.endswith("; timed on CPU.")
    assert "/home" not in line


def test_defaults_are_not_repeated():
    study = parsed(study=PrecisionStudy, command=precision)
    assert study == PrecisionStudy()
    line = provenance("precision", study, PrecisionStudy(), where="CPU")
    assert line.startswith("Made by `pointsman study precision` at")
    assert study.out == Path("runs/precision")
