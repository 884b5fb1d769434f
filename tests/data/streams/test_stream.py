"""Streams through `datasets`: a pure function of (seed, lane, position), whatever the layout, workers and files."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conf.errors import ConfigError, DataError
from conf.schema import RunConfig
from data.corpus import open_corpus
from data.prepare import prepare_data
from data.sources.finite import is_validation
from data.streams.stream import lane_windows, stream_texts
from tests.data.helpers import same, sentences, stacked, steps, tiny_config, write_jsonl

DOCUMENTS = [sentences(3 + n % 7, seed=n) for n in range(80)]


def stream_config(tmp_path: Path, files: int, *overrides: str) -> RunConfig:
    """The C4 preset on `files` local gzip files with 80 documents in all."""
    for number in range(files):
        path = tmp_path / f"part-{number}.jsonl.gz"
        if not path.exists():
            write_jsonl(path, DOCUMENTS[number * 80 // files : (number + 1) * 80 // files])
    return tiny_config(
        tmp_path,
        "data=c4",
        f"data.hub_files=['{tmp_path / 'part-*.jsonl.gz'}']",
        "data.stream_lanes=4",
        "data.stream_window=8",
        *overrides,
    )


@pytest.fixture(scope="module", params=[1, 5], ids=["fewer files than lanes", "more files than lanes"])
def cfg(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    cfg = stream_config(tmp_path_factory.mktemp("stream"), request.param)
    prepare_data(cfg)
    return cfg


def test_layout_workers_and_resume_change_nothing(cfg: RunConfig) -> None:
    whole = [stacked(batch) for batch in steps(cfg, 5)]
    ranks = [[stacked(batch) for batch in steps(cfg, 5, dp_rank=rank, dp_size=2)] for rank in (0, 1)]
    for step, expected in enumerate(whole):
        joined = {name: np.concatenate([ranks[0][step][name], ranks[1][step][name]]) for name in expected}
        assert same(joined, expected)
    helped = steps(replace(cfg, data=replace(cfg.data, workers=2)), 2, start=3)
    assert [batch.step for batch in helped] == [3, 4]
    assert all(same(stacked(batch), expected) for batch, expected in zip(helped, whole[3:], strict=True))


def test_lanes_share_out_the_training_documents(cfg: RunConfig) -> None:
    """With windows that hold one document each, the first pass of all lanes shows every training document once."""
    corpus = open_corpus(cfg)
    data = replace(cfg.data, packing="document", stream_window=1)
    seen: list[str] = []
    for lane in range(4):
        for window in lane_windows(data, corpus.tokenizer, lane=lane, raw=100_000, start=0):
            if window.epoch == 1:
                break
            seen.append(corpus.tokenizer.decode(window.tokens))
    expected = [text for text in DOCUMENTS if not is_validation(text, data.validation_fraction)]
    assert sorted(seen) == sorted(expected)
    assert list(stream_texts(data)) == expected


def test_blocks_hold_the_same_windows_in_a_keyed_order(cfg: RunConfig) -> None:
    tokenizer = open_corpus(cfg).tokenizer

    def first(data, count: int) -> list[tuple[int, ...]]:
        lane = lane_windows(data, tokenizer, lane=1, raw=20, start=0)
        return [tuple(window.tokens.tolist()) for _, window in zip(range(count), lane, strict=False)]

    plain, shuffled = first(replace(cfg.data, stream_window=1), 16), first(cfg.data, 16)
    assert plain != shuffled
    assert sorted(plain[:8]) == sorted(shuffled[:8])
    assert sorted(plain[8:]) == sorted(shuffled[8:])


def test_validation_is_held_out_and_fixed(cfg: RunConfig) -> None:
    corpus = open_corpus(cfg)
    assert corpus.windows("train") is None
    assert 0 < corpus.windows("validation") <= 16
    text = "".join(document for document in DOCUMENTS if is_validation(document, 0.2))
    joined = "".join(corpus.tokenizer.decode(window) for window in corpus.validation_stream)
    assert text.startswith(joined)
    first, second = steps(cfg, 3, split="validation"), steps(cfg, 3, split="validation")
    assert all(same(stacked(a), stacked(b)) for a, b in zip(first, second, strict=True))


def test_unigram_model_of_a_stream_is_finite(cfg: RunConfig) -> None:
    (batch,) = steps(cfg, 1)
    assert 1.0 < open_corpus(cfg).unigram_nats(batch.micro[0].targets_BT) < np.log(120)


def test_bad_rows_and_settings_are_named(tmp_path: Path) -> None:
    cfg = stream_config(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"data\.stream_lanes: got 4; needs a divisor of train\.global_batch = 6"):
        steps(replace(cfg, train=replace(cfg.train, global_batch=6)), 1)
    (tmp_path / "part-2.jsonl").write_text('{"text": "fine"}\n{"text": broken}\n')
    broken = replace(cfg, data=replace(cfg.data, hub_files=(str(tmp_path / "part-*"),)))
    with pytest.raises(DataError, match=r"part-2\.jsonl: row 2: .*broken"):
        list(stream_texts(broken.data))
    wrong = replace(cfg, data=replace(cfg.data, text_field="body"))
    with pytest.raises(DataError, match=r"part-0\.jsonl\.gz: row 1: has no field 'body' but \['id', 'text'\]"):
        list(stream_texts(wrong.data))


def test_bad_rows_are_skipped_counted_and_told_wherever_a_stream_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the tokenizer's sample, in validation and in the lane they belong to; the other rows keep their lanes."""
    cfg = stream_config(tmp_path, 1, "data.packing=document", "data.stream_window=1")
    whole = {lane: first_pass(cfg, lane) for lane in range(4)}
    rows = ['{"text": null}' if n in (1, 2, 9) else json.dumps({"text": text}) for n, text in enumerate(DOCUMENTS)]
    (tmp_path / "bad.jsonl").write_text("\n".join(rows))
    data = replace(cfg.data, hub_files=(str(tmp_path / "bad.jsonl"),), tokenizer=tokenizer_file(cfg, tmp_path))
    with pytest.raises(DataError, match=r"bad\.jsonl: row 2: field 'text' is null"):
        list(stream_texts(data))
    cfg = replace(cfg, data=replace(data, bad_rows="skip"))
    for lane in range(4):
        bad = {DOCUMENTS[n] for n in (1, 2, 9) if n % 4 == lane}
        assert first_pass(cfg, lane) == [text for text in whole[lane] if text not in bad]
    told = capsys.readouterr().err
    assert "note: data.bad_rows=skip: 1 bad row skipped; the first is " in told
    counts = [told.count(f"bad.jsonl: row {row}: field 'text' is null") for row in (2, 3, 10)]
    assert counts == [2, 1, 0], "validation and each lane tell the first of theirs; row 10 is the second of a lane"
    list(stream_texts(cfg.data))
    assert "bad.jsonl: row 2" in capsys.readouterr().err


def tokenizer_file(cfg: RunConfig, tmp_path: Path) -> str:
    path = tmp_path / "its.model"
    path.write_bytes(open_corpus(cfg).tokenizer.model)
    return str(path)


def first_pass(cfg: RunConfig, lane: int) -> list[str]:
    tokenizer = open_corpus(cfg).tokenizer
    windows = lane_windows(cfg.data, tokenizer, lane=lane, raw=100_000, start=0)
    return [tokenizer.decode(window.tokens) for window in itertools.takewhile(lambda w: w.epoch == 0, windows)]
