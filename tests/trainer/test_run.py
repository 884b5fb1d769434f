"""What a run knows of its earlier attempts."""

from trainer.run import logged_loss


def test_the_first_loss_is_read_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert logged_loss(path, step=0) is None
    path.write_text('{"step": 0, "eval/loss": 7.5}\n{"step": 1, "train/loss": 7.0}\n{"step": 1, "eval/loss": 6.0}\n')
    assert logged_loss(path, step=0) == 7.5
    assert logged_loss(path, step=1) == 6.0
    assert logged_loss(path, step=2) is None
