"""TensorBoard's event files hold the rows of metrics.jsonl under the same names."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.trainer.report.sinks.openings import opening
from trainer.report.log import RunLog

LOAD = {"router/encoder.1/load": [0.5, 0.5], "router/decoder.1/load": [1.0, 0.0]}


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_scalars_have_the_same_names_and_loads_are_one_image_for_each_stack(tmp_path):
    log = RunLog(opening(tmp_path, "logging.tensorboard=true"))
    log.write(0, {"eval/loss": 3.0, **LOAD})
    log.write(5, {"train/loss": 2.5, "train/router/encoder.1/entropy": 0.25})
    events = read(tmp_path / "tensorboard")  # before close: a run that is killed has what it wrote
    log.close()
    assert set(events.Tags()["scalars"]) == {"eval/loss", "train/loss", "train/router/encoder.1/entropy"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(5, 2.5)]
    assert set(events.Tags()["images"]) == {"router/encoder/load", "router/decoder/load"}
    assert "tensorboard --logdir" in "\n".join(log.where())


def test_a_continued_run_replaces_what_it_writes_again(tmp_path):
    for resume_step, values in ((0, {1: 1.0, 2: 2.0, 3: 3.0}), (2, {3: 30.0})):
        log = RunLog(opening(tmp_path, "logging.tensorboard=true", resume_step=resume_step))
        for step, value in values.items():
            log.write(step, {"train/loss": value})
        log.close()
    events = read(tmp_path / "tensorboard").Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_it_is_off_unless_asked_for(tmp_path):
    log = RunLog(opening(tmp_path))
    log.write(1, {"train/loss": 1.0})
    log.close()
    assert not (tmp_path / "tensorboard").exists()
