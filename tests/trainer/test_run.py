"""What a run knows of its earlier attempts."""

from types import SimpleNamespace

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from trainer.main import main
from trainer.run import _checkpoint_to_continue, logged_loss


def test_the_first_loss_is_read_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert logged_loss(path, step=0) is None
    path.write_text('{"step": 0, "eval/loss": 7.5}\n{"step": 1, "train/loss": 7.0}\n{"step": 1, "eval/loss": 6.0}\n')
    assert logged_loss(path, step=0) == 7.5
    assert logged_loss(path, step=1) == 6.0
    assert logged_loss(path, step=2) is None


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restart_goes_on_where_a_second_start_is_refused(variable, monkeypatch):
    def refuse():
        raise ConfigError("train.resume", got="never", needs="a run without checkpoints")

    store = SimpleNamespace(require_empty=refuse, latest_valid=lambda: None)
    cfg = compose(["train.resume=never"])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(variable, "0")
    with pytest.raises(ConfigError):
        _checkpoint_to_continue(cfg, store)
    monkeypatch.setenv(variable, "1")
    assert _checkpoint_to_continue(cfg, store) is None
    if variable.startswith("SLURM"):
        monkeypatch.delenv("SLURM_JOB_ID")  # the count was left behind: this is no job
        with pytest.raises(ConfigError):
            _checkpoint_to_continue(cfg, store)


def test_ranks_that_may_be_restarted_need_a_name(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main([]) == 2
    assert "error: name: got None; needs a name, by which ranks that are restarted" in capsys.readouterr().err
