"""What `bench peers` and `bench generation` hold against each other is the same work; their times are not judged."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from conf.compose import compose
from conf.derived.estimate import count_params, flops_per_sequence, padded_vocab_size
from conf.derived.groups import slots_per_token
from conf.derived.layers import stacks
from launch import cli
from measure.speed import bench, layer, setup
from measure.speed.bench import BENCHMARKS, Benchmark
from measure.speed.peers import generation
from measure.speed.peers import run as peers
from measure.speed.peers.library import library_model, library_sides
from measure.speed.peers.own import floor_side, own_side, products
from measure.speed.setup import Settings
from model.t5.model import SwitchTransformer
from parallel.mesh.axes import single_process

TINY = (
    "model=small_bench",
    "moe.group_sequences=8",
    "model.vocab_size=250",
    "data.tokenizer_vocab=200",
    "data.sentinels=50",
    "model.d_model=32",
    "model.d_ff=64",
    "model.d_kv=8",
    "data.encoder_length=24",
    "data.decoder_length=8",
    "moe.num_experts=4",
    "launch.nproc=1",
    "parallel.ep=1",
)
CPU = torch.device("cpu")


def tiny(*more: str) -> Settings:
    words = (*TINY, *more)
    return Settings(cfg=compose(words, world=(1, 1)), overrides=words, device=CPU, rounds=1, threads=1)


@pytest.mark.parametrize(
    "settings",
    [
        ("moe=dense",),
        ("moe=dense", "model.ffn=gated_gelu", "model.tie_embeddings=false"),
        (),
        ("moe.capacity=dropless",),
    ],
    ids=str,
)
def test_the_floor_has_the_products_of_the_step_and_the_slots_that_stay_empty(settings):
    cfg = tiny(*settings).cfg
    counted = sum(product.flops for product in products(cfg)) * 3
    empty = 0.0
    for stack, plan in stacks(cfg.model, cfg.moe).items():
        sparse, length = sum(each.experts > 0 for each in plan), cfg.data.encoder_length
        tokens = cfg.train.global_batch * (length if stack == "encoder" else cfg.data.decoder_length)
        spare = slots_per_token(cfg, stack, train=True) - 1
        empty += sparse * tokens * spare * 3 * 2 * 2 * cfg.model.d_model * cfg.model.d_ff
    assert counted == pytest.approx(flops_per_sequence(cfg) * cfg.train.global_batch + empty)
    floor_side(cfg, CPU).passes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_our_passes_leave_no_gradient_and_a_step_at_rate_0_no_change(precision, monkeypatch):
    built = []
    right = peers.own_side.__globals__["build_initialised"]
    monkeypatch.setitem(own_side.__globals__, "build_initialised", lambda *a: built.append(right(*a)) or built[-1])
    side = own_side(tiny(f"train.precision={precision}").cfg, CPU, name="ours")
    module = built[0].module
    before = [weight.clone() for weight in module.parameters()]
    side.passes()
    assert all(weight.grad is None for weight in module.parameters())
    assert side.step is not None
    side.step()
    assert built[0].steps_taken == 1
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_what_is_not_set_is_gone_through():
    def shapes(*words: str) -> list[tuple[str, int, str]]:
        settings = Settings(cfg=compose(()), overrides=words, device=CPU, rounds=1, threads=1)
        found = [case.cfg for case in peers.cases(settings)]
        return [(cfg.model.preset, cfg.moe.num_experts, cfg.train.precision) for cfg in found]

    assert shapes() == [("small_bench", n, p) for p in ("fp32", "bf16") for n in (8, 32, 128)]
    assert shapes("train.precision=bf16", "moe.num_experts=16") == [("small_bench", 16, "bf16")]
    assert shapes("model=small", "train.precision=fp32")[0] == ("small", 8, "fp32")


def test_without_the_library_the_rest_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    rows = list(peers.run(tiny(), single_process()))
    assert {(row.case.split(",")[0], row.peer) for row in rows} == {
        ("forward and backward", "the matrix products of ours alone (the floor)"),
        ("forward and backward", "the matrix products of ours, dropless alone (the floor)"),
        ("forward and backward", "our dense twin"),
        ("whole step", "our dense twin"),
    }
    assert {row.case.rpartition(": ")[2] for row in rows} == {"ours", "ours, dropless"}


def test_a_compiled_run_is_timed_with_and_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    compiled = []
    monkeypatch.setattr(
        SwitchTransformer, "compile_steps", lambda self, compiler, whole: compiled.append(whole), raising=True
    )
    rows = list(peers.run(tiny("train.compile=model"), single_process()))
    assert compiled == [True] * 3
    names = {"ours", "ours, compiled", "ours, dropless", "ours, dropless, compiled"}
    assert {row.case.rpartition(": ")[2] for row in rows} == names


def test_generation_writes_as_many_tokens_as_it_says(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(generation, "EXPERTS", (2, 4))
    monkeypatch.setattr(generation, "BATCHES", (1, 3))
    monkeypatch.setattr(generation, "TOKENS", 5)
    lengths = []
    right = generation.generate

    def counted(*args, **settings):
        result = right(*args, **settings)
        lengths.extend(result.lengths_B.tolist())
        return result

    monkeypatch.setattr(generation, "generate", counted)
    rows = list(generation.run(tiny(), single_process()))
    assert set(lengths) == {generation.TOKENS}
    assert [(row.case, row.peer) for row in rows] == [
        (f"{mode}, batch {batch}, 4 experts", "2 experts") for mode in ("greedy", "beam") for batch in (1, 3)
    ]


def test_deepspeeds_layer_is_a_peer(monkeypatch):
    monkeypatch.setattr(setup, "SEQUENCES", {"cpu": 2})
    monkeypatch.setattr(setup, "SEQUENCE_TOKENS", 32)
    monkeypatch.setattr(layer, "EXPERTS", {"cpu": (4,)})
    monkeypatch.setitem(sys.modules, "st_moe_pytorch", None)
    rows = list(layer.run(replace(tiny(), rounds=1)))
    assert [row.peer for row in rows] == ["dense layer", "loop over experts", "DeepSpeed's MoE"]
    gated = list(layer.run(replace(tiny("model.ffn=gated_gelu"), rounds=1)))
    assert [row.peer for row in gated] == ["dense layer", "loop over experts"], "theirs would be other work"


@pytest.mark.slow
@pytest.mark.parametrize("dense", [(), ("moe=dense",)], ids=["Switch", "T5"])
def test_the_librarys_model_has_our_parameters(dense):
    pytest.importorskip("transformers")
    cfg = tiny(*dense).cfg
    theirs = sum(weight.numel() for weight in library_model(cfg).parameters())
    padding = (padded_vocab_size(cfg.model.vocab_size) - cfg.model.vocab_size) * cfg.model.d_model
    assert theirs == count_params(cfg.model, cfg.moe).total - padding
    names = [side.name for side in library_sides(cfg, CPU)]
    assert names == [f"Hugging Face {'T5' if dense else 'Switch'}"]
    for side in library_sides(tiny(*dense, "train.precision=bf16").cfg, CPU):
        side.passes()
        assert side.step is not None
        side.step()


def test_what_is_not_installed_is_named_before_anything_is_measured(monkeypatch, capsys):
    for package in ("transformers", "st_moe_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    ran: list[str] = []
    monkeypatch.setattr(
        bench,
        "BENCHMARKS",
        {
            name: Benchmark(about="", run=lambda _, name=name: ran.append(name) or (), dear=each.dear)
            for name, each in BENCHMARKS.items()
        },
    )
    assert cli.run(["bench", "peers", "layer"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "is not installed" in line]
    assert said == [
        f"{package} is not installed, and is left out: pip install 'pointsman[bench]'"
        for package in ("transformers", "st_moe_pytorch")
    ]
    assert sorted(ran) == ["layer", "peers"]
    ran.clear()
    assert cli.run(["bench"]) == 0
    assert {"peers", "generation"}.isdisjoint(ran), "what takes many minutes is asked for by name"
    assert {"step", "layer", "start"} <= set(ran)
