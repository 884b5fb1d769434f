"""The closing lines say what was measured, also when it is bad."""

import shlex

from trainer.report.metrics import Report
from trainer.report.summary import learning_lines, where_lines
from trainer.run_dir import RunDir

COMMAND = ("fill spans", "fill", "a <mask>")


def report(loss, text):
    return Report(loss=loss, aux_loss=0.0, z_loss=0.0, by_kind={"text": text, "sentinel": 1.0}, tokens=1.0, layers=())


def test_three_measures():
    text = "\n".join(
        learning_lines(first_loss=8.0, last=report(4.0, 5.0), unigram_nats=6.5, shuffled=report(4.5, 5.25))
    )
    assert "8.000 -> 4.000 nats per token (down 50%)" in text
    assert "6.500 on the text tokens: the model is 1.500 nats better" in text
    assert "worth +0.250 nats" in text


def test_a_model_below_the_yardstick_is_called_worse():
    text = "\n".join(learning_lines(first_loss=None, last=report(7.0, 7.0), unigram_nats=6.5, shuffled=report(7, 6.5)))
    assert "0.500 nats WORSE" in text
    assert "worth -0.500 nats" in text
    assert "->" not in text


def test_where_everything_is(tmp_path):
    lines = where_lines(RunDir(root=tmp_path), ["  W&B  here"], checkpoints=["step_00000004"], command=COMMAND)
    assert "  W&B  here" in lines
    assert "(step_00000004)" in "\n".join(lines)
    assert "(none)" in "\n".join(where_lines(RunDir(root=tmp_path), [], checkpoints=[], command=COMMAND))


def test_the_commands_can_be_pasted(tmp_path):
    """Names with blanks are quoted, and a folder other than runs/ is named."""
    root = tmp_path / "my runs" / "a b"
    lines = where_lines(RunDir(root=root), [], checkpoints=[], command=COMMAND)
    words = [shlex.split(line)[1:] for line in lines[-3:]]
    assert ["pointsman", "eval", str(root)] in words
    assert ["spans", "pointsman", "fill", str(root), "a <mask>"] in words
    assert words[-1][-5:] == ["pointsman", "train", "name=a b", f"runs_dir={root.parent}", "train.steps=..."]
