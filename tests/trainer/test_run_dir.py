"""What a run's folder holds, and that it says how the run stands."""

import json

import pytest

from conf import compose
from conf.errors import SetupError
from conf.reading.setting_files import read_settings
from parallel.mesh.axes import single_process
from trainer.checkpoint.store import CheckpointStore
from trainer.run_dir import RunDir, discard_unstarted, open_run_dir, write_config, write_status


def test_status_is_replaced_whole(tmp_path):
    run = RunDir(root=tmp_path)
    write_status(run, "running", step=0)
    write_status(run, "failed", step=7, reason="NonFiniteError: step 8")
    status = json.loads(run.status.read_text())
    assert (status["ending"], status["step"], status["reason"]) == ("failed", 7, "NonFiniteError: step 8")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_reason_of_a_failure_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_PAT", "c4n4ry-value")
    run = RunDir(root=tmp_path)
    write_status(run, "failed", step=1, reason='OSError: "c4n4ry-value" at https://me:c4n4ry@host')
    assert json.loads(run.status.read_text())["reason"] == 'OSError: "[redacted]" at https://[redacted]@host'


def test_an_older_configuration_is_kept_beside_the_new_one(tmp_path):
    run = RunDir(root=tmp_path)
    for steps in (10, 10, 20):
        write_config(run, compose.compose([f"train.steps={steps}"]), [f"train.steps={steps}"])
    assert compose.load(run.config).train.steps == 20
    assert read_settings(run.overrides) == ["train.steps=20"]
    older = [path for path in tmp_path.iterdir() if path.name.startswith("config.before-")]
    assert [compose.load(path).train.steps for path in older] == [10]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(SetupError, match=r"runs.*try runs_dir"):
        open_run_dir(compose.compose(["name=x", f"runs_dir={tmp_path}/runs"]), single_process())


def test_a_start_that_fails_leaves_no_folder_but_one_that_began_or_holds_other_files_stays(tmp_path):
    cfg = compose.compose(["name=x", f"runs_dir={tmp_path}"])
    for left in (None, "config.yaml", "notes.txt"):
        run = open_run_dir(cfg, single_process())
        store = CheckpointStore(run.checkpoints, single_process())
        if left is not None:
            (run.root / left).write_text("")
        discard_unstarted(run)
        store.close()
        assert run.root.exists() is (left is not None)
        if left is not None:
            (run.root / left).unlink()
