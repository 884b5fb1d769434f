"""Batches: the same rows for every layout and number of workers, resumable, disjoint, padded, and safe to stop."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conf.errors import ConfigError, DataError
from conf.schema import RunConfig
from conf.tasks.span_corruption import span_lengths
from data.children import Child
from data.corpus import open_corpus
from data.loader import build_loader
from data.tasks.task import target_kinds
from data.text.vocabulary import appended
from tests.data.helpers import same, stacked, steps, text_config


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return text_config(tmp_path_factory.mktemp("loader"))


def with_train(cfg: RunConfig, **changes: object) -> RunConfig:
    return replace(cfg, train=replace(cfg.train, **changes))


def with_data(cfg: RunConfig, **changes: object) -> RunConfig:
    return replace(cfg, data=replace(cfg.data, **changes))


def test_ranks_and_micro_batches_are_slices_of_one_process(cfg: RunConfig) -> None:
    whole = [stacked(batch) for batch in steps(cfg, 3)]
    for dp_size, accumulation in ((2, 1), (4, 2), (1, 4), (8, 1)):
        micro = 8 // dp_size // accumulation
        for dp_rank in range(dp_size):
            got = steps(with_train(cfg, accumulation=accumulation), 3, dp_rank=dp_rank, dp_size=dp_size)
            for batch, all_rows in zip(got, whole, strict=True):
                assert len(batch.micro) == accumulation
                for a, one in enumerate(batch.micro):
                    expected = [(dp_rank * accumulation + a) * micro + i for i in range(micro)]
                    assert one.rows_B.tolist() == expected
                    assert np.array_equal(one.inputs_BL, all_rows["inputs_BL"][expected])
                    assert np.array_equal(one.targets_BT, all_rows["targets_BT"][expected])


def test_one_epoch_shows_every_window_once(cfg: RunConfig) -> None:
    corpus = open_corpus(cfg)
    count = corpus.windows("train")
    batches = steps(cfg, count // 8)
    seen = np.concatenate([stacked(batch)["inputs_BL"] for batch in batches])
    assert len(np.unique(seen, axis=0)) == len(seen) == count // 8 * 8
    assert batches[-1].epoch == pytest.approx(count // 8 * 8 / count)


def test_the_second_epoch_is_corrupted_anew(cfg: RunConfig) -> None:
    corpus = open_corpus(cfg)
    per_epoch = -(-corpus.windows("train") // 8)
    masks = [stacked(batch)["targets_BT"] for batch in steps(cfg, 2 * per_epoch)]
    flat = np.concatenate(masks)
    assert len(np.unique(flat, axis=0)) == len(flat)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(cfg: RunConfig, workers: int) -> None:
    alone, helped = steps(cfg, 7, start=2), steps(with_data(cfg, workers=workers), 7, start=2)
    assert [batch.step for batch in helped] == list(range(2, 9))
    assert all(same(stacked(a), stacked(b)) and a.epoch == b.epoch for a, b in zip(alone, helped, strict=True))


def test_resuming_continues_exactly(cfg: RunConfig) -> None:
    through, resumed = steps(cfg, 6), steps(cfg, 2, start=4)
    assert all(same(stacked(a), stacked(b)) for a, b in zip(through[4:], resumed, strict=True))


def test_shapes_and_padding(cfg: RunConfig) -> None:
    lengths = span_lengths(cfg.data)
    for packing in ("concat", "document"):
        (batch,) = steps(with_data(cfg, packing=packing), 1)
        one = batch.micro[0]
        assert one.inputs_BL.shape == (8, cfg.data.encoder_length)
        assert one.targets_BT.shape == (8, lengths.targets)
        assert one.inputs_BL.dtype == one.targets_BT.dtype == np.int64
        assert batch.real_targets == np.count_nonzero(one.targets_BT)
        full = packing == "concat"
        assert (np.count_nonzero(one.inputs_BL) == 8 * lengths.inputs) == full


def test_masks_by_hand(cfg: RunConfig) -> None:
    targets = np.array([[99, 5, 6, 98, 7, 1, 0]])
    masks = {name: kind.mask(targets).tolist() for name, kind in target_kinds(cfg.data, appended(90, 10)).items()}
    assert masks == {
        "text": [[False, True, True, False, True, False, False]],
        "sentinel": [[True, False, False, True, False, False, False]],
    }


def test_validation_is_the_same_every_time_and_apart_from_training(cfg: RunConfig) -> None:
    first, second = steps(cfg, 9, split="validation"), steps(cfg, 9, split="validation")
    assert len(first) == cfg.train.eval_batches
    assert all(same(stacked(a), stacked(b)) for a, b in zip(first, second, strict=True))


def test_rows_beyond_the_validation_text_are_padding_on_every_rank(cfg: RunConfig) -> None:
    count = open_corpus(cfg).windows("validation")
    large = with_train(cfg, global_batch=2 * count + 2, eval_batches=5)
    ranks = [steps(large, 9, split="validation", dp_rank=rank, dp_size=2) for rank in (0, 1)]
    assert [len(batches) for batches in ranks] == [1, 1]
    real = [np.count_nonzero(stacked(batches[0])["targets_BT"].any(axis=1)) for batches in ranks]
    assert real == [count, 0]
    assert ranks[1][0].real_inputs == 0


def test_shuffled_inputs_keep_the_tokens_and_the_targets(cfg: RunConfig) -> None:
    corpus = open_corpus(cfg)
    plain = steps(cfg, 1, split="validation")[0].micro[0]
    shuffled = next(build_loader(corpus, cfg, split="validation", dp_rank=0, dp_size=1, shuffled_inputs=True)).micro[0]
    assert np.array_equal(plain.targets_BT, shuffled.targets_BT)
    assert not np.array_equal(plain.inputs_BL, shuffled.inputs_BL)
    assert np.array_equal(np.sort(plain.inputs_BL, axis=1), np.sort(shuffled.inputs_BL, axis=1))


def test_unigram_model_matches_a_naive_count(cfg: RunConfig) -> None:
    corpus = open_corpus(cfg)
    (batch,) = steps(cfg, 1)
    targets = batch.micro[0].targets_BT
    tokens = np.concatenate([np.asarray(part) for part in corpus.indexed("train")._tokens]).tolist()
    total = len(tokens) + corpus.tokenizer.pieces
    text = [t for t in targets.ravel().tolist() if 1 < t < corpus.tokenizer.pieces]
    naive = -np.mean([np.log((tokens.count(t) + 1) / total) for t in text])
    assert corpus.unigram_nats(targets) == pytest.approx(naive, rel=1e-12)
    assert np.isnan(corpus.unigram_nats(np.zeros((2, 3), dtype=np.int64)))


def test_settings_that_cannot_work_are_refused(cfg: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size"):
        open_corpus(replace(cfg, model=replace(cfg.model, vocab_size=200)))
    with pytest.raises(DataError, match=r"validation split .* has no window"):
        open_corpus(with_data(cfg, validation_fraction=0.0))


def test_a_killed_worker_is_an_error_not_a_hang(cfg: RunConfig) -> None:
    with build_loader(open_corpus(cfg), with_data(cfg, workers=1), split="train", dp_rank=0, dp_size=1) as loader:
        next(loader)
        (child,) = loader._close.peek()[1].__self__._children  # the finaliser's bound method
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"background process \d+ ended .* -9"):
            collections.deque(loader, maxlen=0)


def test_an_exception_in_a_worker_carries_its_traceback() -> None:
    child = Child()
    try:
        with pytest.raises(DataError, match=r"(?s)TypeError.*Traceback.*in fold_key"):
            child.call("data.order:fold_key", "not a number")
        assert child.call("data.order:fold_key", 1, 2) > 0, "the process serves on"
    finally:
        child.close()


def test_workers_leave_when_their_parent_is_killed(cfg: RunConfig, tmp_path: Path) -> None:
    code = (
        "import sys, time; from data.children import Child; c = Child(); c.call('data.order:mix', 1);"
        "print(c.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_closing_ends_the_workers(cfg: RunConfig) -> None:
    loader = build_loader(open_corpus(cfg), with_data(cfg, workers=2), split="train", dp_rank=0, dp_size=1)
    next(loader)
    pids = [child.pid for child in loader._close.peek()[1].__self__._children]
    loader.close()
    assert not any(_alive(pid) for pid in pids)
    with pytest.raises(StopIteration):
        next(loader)
