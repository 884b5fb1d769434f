"""What a person sees while a run goes on."""

from conf.compose import compose
from trainer.report.progress import PlainView, SilentView, open_view

METRICS = {"train/loss": 3.5, "train/aux_loss": 0.01, "train/dropped": 0.05, "perf/tokens_per_second": 12345.0}


def test_plain_line_has_step_loss_aux_drops_speed_and_time_left(capsys):
    view = PlainView(100, 0, interval_s=0.0)
    view.update(50, METRICS)
    line = capsys.readouterr().out
    for part in ("step 50/100", "loss 3.500", "aux 0.0100", "dropped 5.0%", "12,345 tok/s", "left 0:"):
        assert part in line


def test_plain_lines_are_throttled_but_the_last_step_is_shown(capsys):
    view = PlainView(3, 0, interval_s=3600.0)
    for step in (1, 2, 3):
        view.update(step, METRICS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "3/3"]


def test_a_reader_that_is_gone_costs_no_step(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    view = PlainView(3, 0, interval_s=0.0)
    monkeypatch.setattr("sys.stdout", Closed())
    view.update(1, METRICS)
    view.say("eval at step 1")


def test_only_the_main_rank_draws():
    logging = compose(["logging.progress=plain"]).logging
    assert isinstance(open_view(logging, is_main=False, total_steps=1, start_step=0), SilentView)
    assert isinstance(open_view(logging, is_main=True, total_steps=1, start_step=0), PlainView)


def test_live_view_runs_on_a_terminal():
    logging = compose(["logging.progress=live"]).logging
    view = open_view(logging, is_main=True, total_steps=10, start_step=0)
    view.update(5, METRICS)
    view.say("eval at step 5")
    view.close()
