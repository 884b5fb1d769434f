"""Which checkpoint a path names, and the configuration of a run at one process."""

import pytest

from conf.compose import compose
from conf.derived.groups import micro_batch_size
from conf.errors import CheckpointError, ConfigError
from parallel.mesh.axes import single_process
from tests.trainer.checkpoint import toy
from trainer.loading import locate, single_process_config
from trainer.run_dir import RunDir


@pytest.fixture
def run(tmp_path):
    """A run folder with two checkpoints."""
    run = RunDir(root=tmp_path / "mine")
    toy.save_alone(run.checkpoints, 1, 2)
    run.config.write_text("")
    return run


def test_a_run_or_one_of_its_checkpoints(run):
    assert locate(run.root, single_process()) == (run, run.checkpoints / "step_00000002")
    older = run.checkpoints / "step_00000001"
    assert locate(older, single_process()) == (RunDir(root=run.root.resolve()), older)


def test_another_folder_is_refused_by_the_name_of_the_setting(tmp_path, run):
    with pytest.raises(ConfigError, match=r"train\.from_checkpoint.*run folder"):
        locate(tmp_path, single_process(), field="train.from_checkpoint")
    empty = RunDir(root=tmp_path / "empty")
    empty.root.mkdir()
    empty.config.write_text("")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        locate(empty.root, single_process())


def test_one_process_has_micro_batches_of_the_trained_size(tmp_path):
    cfg = compose(["launch.nproc=4", "parallel.tp=2", "parallel.ep=2", "train.global_batch=32", "train.accumulation=2"])
    alone = single_process_config(cfg, RunDir(root=tmp_path))
    assert micro_batch_size(alone) == micro_batch_size(cfg) == 8
    assert (alone.parallel.tp, alone.parallel.ep, alone.parallel.zero) == (1, 1, 0)
    assert alone.moe == cfg.moe  # routing groups stay what they were
