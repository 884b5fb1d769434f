"""Numbers and texts beyond what anybody means are refused, with the bound and its reason, before they cost anything."""

import time
from contextlib import suppress
from itertools import pairwise

import pytest

from conf.compose import compose
from conf.errors import ConfigError, ConfigErrors
from conf.reading.fields import leaf_types, without_none
from conf.rules.bounds import MOST
from conf.rules.ranges import divisors
from launch.describe import describe
from tests.conf.composed import composed

NUMBERS = {path: kind for path, full in leaf_types().items() if (kind := without_none(full)[0]) in (int, float)}
WHOLE = [path for path, kind in NUMBERS.items() if kind is int]
FRACTIONS = [path for path, kind in NUMBERS.items() if kind is float]


@pytest.mark.parametrize(
    ("paths", "value"), [(WHOLE, "9" * 400), (FRACTIONS, "9" * 400), (FRACTIONS, "1e300")], ids=str
)
def test_every_number_has_an_end(paths, value):
    with pytest.raises(ConfigErrors) as caught:
        compose([f"{path}={value}" for path in paths])
    assert {error.field for error in caught.value.errors} == set(paths)


def test_the_bounds_say_why():
    above = {path: most.value + 1 if path in WHOLE else 2 * most.value for path, most in MOST.items()}
    with pytest.raises(ConfigErrors) as caught:
        compose([f"{path}={value}" for path, value in above.items()])
    told = {error.field: error.needs for error in caught.value.errors}
    assert told == {path: f"at most {most.value:,}: {most.reason}" for path, most in MOST.items()}


@pytest.mark.parametrize(
    "settings",
    [
        "model.num_encoder_layers=4096 model.num_decoder_layers=4096",
        "data.encoder_length=65536 data.sentinels=30000 model.vocab_size=40000",
        "train.global_batch=1048576",
        "launch.nodes=65536 launch.nproc=1021 train.global_batch=1",
        "launch.nodes=65535 launch.nproc=1024 parallel.tp=7 parallel.ep=1",
        "launch.nodes=65535 launch.nproc=1021 parallel.ep=9007199254740992",
        "moe.num_experts=1048575 parallel.ep=2",
        "seed=9223372036854775807 data.seed=9223372036854775807",
    ],
)
def test_at_the_bounds_nothing_hangs(settings):
    composed()
    began = time.process_time()
    with suppress(ConfigError, ConfigErrors):
        describe(compose(settings.split()))
    assert time.process_time() - began < 2


def test_a_model_beyond_all_machines():
    with pytest.raises(ConfigError, match=r"^model: got '.*parameters'; needs a model of at most 1e\+15 parameters"):
        compose(["model.d_model=1000000000", "model.d_ff=1000000000"])


@pytest.mark.parametrize("name", ["x" * 201, "\u4e16" * 67])
def test_a_name_that_no_file_system_takes(name):
    with pytest.raises(ConfigError, match=r"^name: got .* at most 200 bytes"):
        compose([f"name={name}"])


def test_a_folder_that_would_be_called_like_a_secret(monkeypatch):
    monkeypatch.setenv("GITHUB_PAT", "c4n4ry-value")
    for field in ("name", "runs_dir"):
        with pytest.raises(ConfigError, match=rf"^{field}: got '\[redacted\]'; needs no secret"):
            compose([f"{field}=a-c4n4ry-value"])


def test_a_reference_that_comes_to_a_reference_is_refused(monkeypatch):
    monkeypatch.setenv("HOSTILE", "${oc.env:HOME}")
    with pytest.raises(ConfigError, match=r"^data\.text_field: got '\$\{oc\.env:HOME\}'; needs text without"):
        compose(["data.text_field=${oc.env:HOSTILE}"])
    monkeypatch.setenv("HOSTILE", "a\nb")
    with pytest.raises(ConfigError, match=r"^data\.text_field: got 'a\\nb'; needs text without control"):
        compose(["data.text_field=${oc.env:HOSTILE}"])


def test_settings_that_refer_to_each_other_many_times():
    fields = [
        "data.text_field",
        "data.hub_split",
        "logging.wandb_entity",
        "launch.slurm_account",
        "launch.slurm_partition",
    ]
    bomb = [f"{a}={'${' + b + '}'}{'${' + b + '}'}" for a, b in pairwise(fields)]
    with pytest.raises(ConfigErrors, match="at most one"):
        compose([*bomb, f"{fields[-1]}={'x' * 1000}"])
    assert compose(["data.text_field=${data.hub_split}x", "data.hub_split=y"]).data.text_field == "yx"
    with pytest.raises(ConfigError):
        compose(["data.text_field=${data.hub_split}", "data.hub_split=${data.text_field}"])


def test_divisors():
    for number in (1, 2, 12, 36, 97, 360):
        assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]
