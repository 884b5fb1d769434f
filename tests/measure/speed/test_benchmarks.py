"""The benchmarks compare what they say they compare; their times are not judged here."""

import json
from dataclasses import replace

import pytest
import torch

from conf.compose import compose
from conf.derived.estimate import flops_per_token
from conf.derived.groups import micro_batch_size
from conf.errors import ConfigError
from launch import cli
from measure.speed import exchange, layer, router, setup, step, subnormals
from measure.speed.bench import BENCHMARKS, split_words
from measure.speed.setup import Settings
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks

TINY = ("model.d_model=16", "model.d_ff=32", "data.encoder_length=24", "train.global_batch=8", "moe.group_sequences=2")


@pytest.fixture(autouse=True)
def processor_settings():
    """The command sets switches of the process, which must not leak into other tests."""
    flushes, threads = subnormals._flushes(), torch.get_num_threads()
    yield
    torch.set_flush_denormal(flushes)
    torch.set_num_threads(threads)


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setattr(setup, "SEQUENCES", {"cpu": 2})
    monkeypatch.setattr(setup, "SEQUENCE_TOKENS", 32)
    monkeypatch.setattr(layer, "EXPERTS", {"cpu": (4,)})
    monkeypatch.setattr(router, "EXPERTS", {"cpu": (4,)})
    cpu = torch.device("cpu")
    return Settings(cfg=compose(TINY), overrides=TINY, device=cpu, rounds=1, threads=1)


@pytest.mark.parametrize("ffn", ["relu", "gated_gelu"])
def test_the_loop_over_experts_gives_the_layers_output_and_gradients(settings, ffn):
    case = setup.layer_case(replace(settings, cfg=compose([*TINY, f"model.ffn={ffn}"])), 4)
    inputs = [case.x_BLD, *case.layer.parameters()]
    ours, loop = (
        torch.autograd.grad([t for t in outputs if t.requires_grad], inputs, [torch.ones_like(t) for t in outputs])
        for outputs in (layer.layer_forward(case), layer.loop_forward(case))
    )
    for a, b in zip(ours, loop, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    case.layer.experts.wo.data[0] += 1.0
    broken = layer.loop_forward(case)
    case.layer.experts.wo.data[0] -= 1.0
    assert not torch.allclose(broken[0], layer.layer_forward(case)[0], atol=1e-3), "the check would see a difference"


def test_layer_and_router_name_every_comparison(settings):
    rows = [*layer.run(settings), *router.run(settings)]
    assert [(row.benchmark, row.peer) for row in rows[:2]] == [("layer", "dense layer"), ("layer", "loop over experts")]
    assert [row.case.split(",")[0] for row in rows if row.benchmark == "router"] == [
        "route",
        "dispatch",
        "experts",
        "combine",
    ]
    assert all(row.comparison.ours_seconds > 0 and row.comparison.peer_seconds > 0 for row in rows)


def test_subnormals_are_there_and_the_switch_is_put_back(settings, monkeypatch):
    monkeypatch.setattr(subnormals, "SHAPE", (1, 2, 64, 16))
    before = subnormals._flushes()
    (row,) = subnormals.run(settings)
    assert 0 < row.numbers["share of subnormal weights"] < 0.5
    assert subnormals._flushes() == before


def test_the_twin_has_the_same_operations_but_no_experts():
    overrides = (*TINY, "parallel.ep=2", "moe.num_experts=4")
    cfg, twin = compose(overrides), step.dense_twin(overrides, world=2)
    assert twin.model == cfg.model
    assert twin.train == cfg.train
    router_share = flops_per_token(cfg) / flops_per_token(twin)
    assert 1.0 < router_share < 1.02, "the router alone is more"


def test_synthetic_batches_are_full_and_differ_between_ranks():
    cfg = compose([*TINY, "train.accumulation=2"])
    batches = [step.synthetic_batch(cfg, dp_rank=rank) for rank in range(2)]
    rows = [int(row) for batch in batches for micro in batch.micro for row in micro.rows_B]
    assert rows == list(range(cfg.train.global_batch))
    for micro in batches[0].micro:
        assert micro.inputs_BL.shape == (micro_batch_size(cfg), 24)
        assert micro.real_inputs == micro.inputs_BL.size
        assert 2 <= micro.targets_BT.min() < micro.targets_BT.max() < cfg.model.vocab_size
    assert (batches[0].micro[0].targets_BT != batches[1].micro[0].targets_BT).any()


def _on_rank(rank, world):
    overrides = (*TINY, "model.vocab_size=250", "data.tokenizer_vocab=200", "data.sentinels=50", "moe.num_experts=4")
    cfg = compose(overrides, world=(world, world))
    mesh = init_groups(cfg.parallel)
    settings = Settings(cfg=cfg, overrides=overrides, device=torch.device("cpu"), rounds=2, threads=1)
    shapes = exchange.buffer_shapes(cfg, mesh)
    return [*step.run(settings, mesh), *exchange.run(settings, mesh)], shapes


def test_step_and_exchange_run_on_two_ranks():
    (rows, shapes), _ = run_ranks(_on_rank, 2, timeout_s=60, deadline_s=120)
    assert [row.benchmark for row in rows] == ["step", "exchange", "exchange"]
    assert rows[0].peer == "dense twin"
    assert rows[0].numbers["tokens/s"] > 0
    assert shapes["encoder"] == (4, 2, 15, 16), "2 groups of 48 tokens, 1.25 * 48 / 4 slots"
    assert rows[1].numbers["MiB"] == pytest.approx(4 * 2 * 15 * 16 * 4 / 2**20)


def test_words_are_benchmarks_or_settings():
    assert split_words(["router", "model.d_ff=8", "layer"]) == (["layer", "router"], ("model.d_ff=8",))
    with pytest.raises(ConfigError, match="stpe"):
        split_words(["stpe"])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("step", "moe=dense"), "moe.sparse_every"),
        (("exchange", "launch.nproc=1"), "parallel.ep"),
        (("layer", "--rounds", "0"), "--rounds"),
        (("layer", "--threads", "0"), "--threads"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(arguments, field):
    with pytest.raises(ConfigError) as caught:
        cli.run(["bench", *arguments])
    assert caught.value.field == field


def test_the_command_prints_and_writes_the_same_ratio(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subnormals, "SHAPE", (1, 2, 64, 16))
    page, table = tmp_path / "page.md", tmp_path / "rows.json"
    assert cli.run(["bench", "subnormals", "--rounds", "2", "--markdown", str(page), "--json", str(table)]) == 0
    printed, written = capsys.readouterr().out, page.read_text()
    ratio = f"{json.loads(table.read_text())['rows'][0]['ratio']:.3f}"
    assert ratio in printed
    assert ratio in written
    for word in ("command", "commit", "machine", "threads 1", BENCHMARKS["subnormals"].about):
        assert word in written
    assert str(tmp_path) not in written, "pages hold no paths"
