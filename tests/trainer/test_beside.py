"""What lies beside a checkpoint is compared with what the checkpoint says, and used where it agrees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from conf.compose import load as load_config
from conf.errors import ConfigError, ConfigErrors
from launch import cli
from tests.trainer.conftest import start
from trainer.commands.trained import load
from trainer.loading import load_run

COMMANDS = (
    ["eval", "RUN"], ["fill", "RUN", "a <mask>"], ["generate", "RUN", "a"], ["export-hf", "RUN", "OUT"],
)  # fmt: skip


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{old} is {text.count(old)} times in {file}"
    file.write_text(text.replace(old, new))


def refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What each command that reads the run says before it ends with 2; the library says the same."""
    said = []
    for words in COMMANDS:
        line = [word.replace("RUN", str(trained / "runs/mine")).replace("OUT", str(trained / "out")) for word in words]
        assert cli.main(line) == 2, words
        said.append(capsys.readouterr().err)
    assert not (trained / "out").exists()
    with pytest.raises((ConfigError, ConfigErrors)):
        load(trained / "runs/mine")
    return said


def test_an_edited_setting_is_refused_with_both_values(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = trained / "runs/mine/config.yaml"
    edit(file, "eval_capacity_factor: 2.0", "eval_capacity_factor: 0.2")
    for said in refused(trained, capsys):
        assert f"error: {file}: moe.eval_capacity_factor: got 0.2; needs 2.0, as " in said
        assert "step_00000002/state.json has it: the file was changed" in said
    assert start(trained, "train.steps=3") == 2
    said = capsys.readouterr().err
    assert "config.yaml: moe.eval_capacity_factor: got 0.2; needs 2.0" in said
    assert "eval_capacity_factor: 0.2" in file.read_text(), "a refused start leaves the folder as it was"


def test_what_is_typed_stays_allowed(trained: Path) -> None:
    run = trained / "runs/mine"
    assert load_run(run, overrides=["moe.eval_capacity_factor=0.5"]).cfg.moe.eval_capacity_factor == 0.5
    edit(run / "config.yaml", "eval_capacity_factor: 2.0", "eval_capacity_factor: 0.2")
    assert load_run(run, overrides=["moe.eval_capacity_factor=0.5"]).cfg.moe.eval_capacity_factor == 0.5


@pytest.mark.parametrize("override", ["data.tokenizer=other.model", "data.sentinels=10"])
def test_another_tokenizer_is_refused_and_not_passed_over(trained: Path, override: str) -> None:
    field = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{field}: got .*; needs the checkpoint's own"):
        load_run(trained / "runs/mine", overrides=[override])


def test_several_edits_are_told_together_and_training_asks_only_for_what_it_would_use(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trained / "runs/mine/config.yaml"
    edit(file, "lr: 0.004", "lr: 0.4")
    edit(file, "log_every: 1", "log_every: 7")
    said = refused(trained, capsys)[0]
    assert "schedule.lr: got 0.4; needs 0.004" in said
    assert "train.log_every: got 7; needs 1" in said
    assert start(trained, "train.steps=3", "schedule.lr=0.004") == 2
    said = capsys.readouterr().err
    assert "train.log_every: got 7; needs 1" in said
    assert "schedule.lr" not in said
    assert start(trained, "train.steps=3", "schedule.lr=0.004", "train.log_every=1") == 0
    assert load_config(file).schedule.lr == 0.004


def test_what_was_typed_since_the_checkpoint_is_no_edit(trained: Path) -> None:
    """A run that was continued with other settings and killed before its next save."""
    run = trained / "runs/mine"
    edit(run / "config.yaml", "lr: 0.004", "lr: 0.3")
    edit(run / "config.yaml", "steps: 2", "steps: 9")
    edit(run / "config.yaml", "name: wsd", "name: cosine")
    edit(run / "config.yaml", "min_lr_ratio: 0.0", "min_lr_ratio: 0.1")
    with (run / "overrides.yaml").open("a") as record:
        record.write("schedule.lr: 0.3\nschedule: cosine\n")
    edit(run / "overrides.yaml", "train.steps: '2'", "train.steps: '9'")
    assert load_run(run).cfg.schedule.lr == 0.004, "the checkpoint's"
    edit(run / "config.yaml", "lr: 0.3", "lr: 0.31")
    with pytest.raises(ConfigError, match=r"schedule\.lr: got 0\.31; needs 0\.004"):
        load_run(run)


def test_weights_bring_along_what_their_checkpoint_says(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "runs/mine"
    edit(run / "config.yaml", "capacity_factor: 1.25", "capacity_factor: 1.75")
    edit(run / "config.yaml", "lr: 0.004", "lr: 0.3")  # not taken along
    words = [f"train.from_checkpoint={run}", "name=other", "logging.wandb=off", "train.steps=1", "launch.nproc=1"]
    text = load_config(run / "config.yaml").data
    words += ["data=text", f"data.files={text.files[0]}", f"data.cache_dir={text.cache_dir}", "train.global_batch=4"]
    words += ["data.encoder_length=24", "data.workers=0"]
    assert start(trained, *words) == 2
    said = capsys.readouterr().err
    assert re.search(r"moe\.capacity_factor: got 1\.75; needs 1\.25, as .*step_00000002/state\.json", said)
    assert "schedule.lr" not in said
    assert start(trained, *words, "moe.capacity_factor=1.25") == 0


def swapped(model: bytes) -> bytes:
    """The same tokenizer with two pieces of equal length in each other's place."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    proto = pb.ModelProto.FromString(model)
    first, second = [p for p in proto.pieces if p.type == 1 and len(p.piece.encode()) == 3][:2]
    first.piece, second.piece = second.piece, first.piece
    return proto.SerializeToString()


def test_swapped_pieces_are_refused_with_both_fingerprints(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained / "runs/mine"
    before = load_run(run).tokenizer.fingerprint
    model = run / "tokenizer.model"
    changed = swapped(model.read_bytes())
    model.unlink()
    model.write_bytes(changed)
    for said in refused(trained, capsys):
        (found,) = re.findall(r"got 'a tokenizer of fingerprint ([0-9a-f]{64})'", said)
        assert found != before
        assert f"needs the one of {before} that" in said


def test_a_configuration_with_a_bad_byte_is_named_with_its_place(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trained / "runs/mine/config.yaml"
    content = file.read_bytes()
    file.write_bytes(content[:300] + b"\xff" + content[301:])
    line = content[:300].count(b"\n") + 1
    said = refused(trained, capsys)
    assert start(trained) == 2
    for each in [*said, capsys.readouterr().err]:
        assert f"mine/config.yaml: got '0xff at byte 300 (line {line})'; needs text in UTF-8; try restoring it" in each
    state = json.loads((trained / "runs/mine/checkpoints/step_00000002/state.json").read_text())
    file.write_text(json.dumps(state["config"]))  # as the hint says
    assert load_run(trained / "runs/mine").cfg == load_run(trained / "runs/mine/checkpoints/step_00000002").cfg


def test_a_checkpoint_is_enough_without_its_configuration_file(trained: Path) -> None:
    run = trained / "runs/mine"
    expected = load_run(run).cfg
    (run / "config.yaml").unlink()
    assert load_run(run / "checkpoints/step_00000002").cfg == expected


def test_a_record_that_the_configuration_contradicts_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what follows from other fields the record alone is read."""
    run = trained / "runs/mine"
    edit(run / "overrides.yaml", "train.eval_every: '1'", "train.eval_every: '3'")
    assert start(trained, "train.steps=3") == 2
    assert "overrides.yaml: train.eval_every: got 3; needs 1, as config.yaml beside it" in capsys.readouterr().err
    edit(run / "overrides.yaml", "train.eval_every: '3'", "train.eval_ever: '1'")
    assert start(trained, "train.steps=3") == 2
    assert "overrides.yaml: train.eval_ever: got '1'; needs the name of an existing field" in capsys.readouterr().err
