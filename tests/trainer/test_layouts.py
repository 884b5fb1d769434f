"""The same run at every layout: losses and gradient norms of a few steps equal one process without any engine.

Jitter and dropout are on, padding is very uneven, experts drop tokens. One rank launch trains several layouts in turn.
"""

import pytest
import torch

from conf.compose import compose
from conf.derived.layers import layer_names
from conf.errors import NonFiniteError
from data.batch import StepBatch
from data.tasks.task import text_kind
from data.text.vocabulary import appended
from measure.verify.observe.batches import global_rows, step_batch
from model.build import build_model
from model.t5.model import SwitchTransformer
from parallel.layers.sharding import spec_of
from parallel.mesh.axes import single_process
from parallel.mesh.groups import init_groups
from parallel.rng import NoiseKey
from tests.harness import run_ranks
from trainer.report.metrics import Meter
from trainer.session import build_initialised
from trainer.step import train_step

STEPS = 4
LR = 1e-2
TINY = (
    "model.vocab_size=250",
    "data.tokenizer_vocab=200",
    "data.sentinels=50",
    "model.d_model=32",
    "model.d_ff=64",
    "model.d_kv=8",
    "model.num_heads=4",
    "model.dropout=0.1",
    "moe.num_experts=4",
    "moe.jitter=0.1",
    "moe.capacity_factor=1.0",
    "moe.z_loss_weight=0.1",
    "moe.expert_dropout=0.2",
    "moe.group_sequences=2",
    "data.encoder_length=24",
    "train.global_batch=16",
    "optim.clip_norm=1.0",
    "optim.weight_decay=0.1",
)
# name -> (world, overrides): the five layouts of the paper's section 5, and experts that are whole under tp.
LAYOUTS = {
    "one": (1, ("parallel.tp=1", "parallel.ep=1")),
    "data": (2, ("parallel.tp=1", "parallel.ep=1")),
    "model": (2, ("parallel.tp=2", "parallel.ep=1")),
    "expert": (2, ("parallel.tp=1", "parallel.ep=2")),
    "model+data": (4, ("parallel.tp=2", "parallel.ep=1")),
    "expert+data": (4, ("parallel.tp=1", "parallel.ep=2")),
    "expert4": (4, ("parallel.tp=1", "parallel.ep=4")),
    "expert+model+data": (4, ("parallel.tp=2", "parallel.ep=2")),
    "whole experts": (4, ("parallel.tp=2", "parallel.ep=2", "parallel.etp=1")),
    "experts over tensor ranks": (4, ("parallel.tp=2", "parallel.ep=4", "parallel.etp=1")),
}


def config(layout, *overrides):
    world, axes = LAYOUTS[layout]
    return compose([*TINY, *axes, *overrides, f"launch.nproc={world}"])


def oracle(cfg) -> list[tuple[float, float]]:
    """(cross-entropy, gradient norm) per step: the whole batch at once, plain torch, no engine, no micro-batches."""
    module = build_model(cfg, single_process(), device=torch.device("cpu"), dtype=torch.float32)
    decay = [p for p in module.parameters() if spec_of(p).decay]
    rest = [p for p in module.parameters() if not spec_of(p).decay]
    betas = (cfg.optim.beta1, cfg.optim.beta2)
    groups = [{"params": decay, "weight_decay": cfg.optim.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=betas, eps=cfg.optim.epsilon)
    history = []
    for step in range(STEPS):
        encoder, targets = (torch.from_numpy(array) for array in global_rows(cfg, step))
        noise = NoiseKey(seed=cfg.seed, step=step, rows_B=torch.arange(cfg.train.global_batch))
        output = module(encoder, targets, mode="train", noise=noise)
        loss = output.token_loss_BT.sum() / (targets != 0).sum()
        ce = loss.item()
        for routing, real in ((output.routing["encoder"], encoder), (output.routing["decoder"], targets)):
            for layer in routing:
                loss = loss + cfg.moe.aux_loss_weight * layer.aux_loss / layer.stats.groups
                z_weight = cfg.moe.aux_loss_weight * cfg.moe.z_loss_weight
                loss = loss + z_weight * layer.z_sum / (real != 0).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), cfg.optim.clip_norm)
        optimizer.step()
        history.append((ce, norm.item()))
    return history


def train(cfg, *, poison_rank: int | None = None) -> list[tuple[float, float]]:
    """The same through the engine on this rank."""
    mesh = init_groups(cfg.parallel)
    device = torch.device("cpu")
    engine = build_initialised(cfg, mesh, device)
    history = []
    for step in range(STEPS):
        if poison_rank == mesh.world.rank and step == 2:
            _poison(engine.module)
        meter = Meter(kinds={"text": text_kind(appended(200, 0))}, layer_names=layer_names(cfg))
        batch: StepBatch = step_batch(cfg, step, dp_rank=mesh.dp.rank)
        _, norm = train_step(engine, batch, meter, lr=LR, stop=False, cfg=cfg, mesh=mesh, device=device)
        history.append((meter.reduce(mesh).loss, norm))
    return history


def _poison(module):
    """Make this rank's next loss NaN without touching a weight."""
    assert isinstance(module, SwitchTransformer)
    original = module.forward

    def forward(*args, **kwargs):
        module.forward = original
        output = original(*args, **kwargs)
        output.token_loss_BT.data.fill_(float("nan"))
        return output

    module.forward = forward


def _train_on_rank(rank, world, cases):
    return [train(config(layout, *overrides)) for layout, overrides in cases]


def check(world, cases):
    """Train every case and compare every rank's history with the oracle's."""
    results = run_ranks(_train_on_rank, world, cases, timeout_s=60, deadline_s=240)
    for index, (layout, overrides) in enumerate(cases):
        expected = oracle(config("one", *(o for o in overrides if not o.startswith(("parallel.", "train.acc")))))
        for rank, result in enumerate(results):
            for step, (ours, theirs) in enumerate(zip(result[index], expected, strict=True)):
                assert ours == pytest.approx(theirs, rel=1e-5), (layout, overrides, f"rank {rank}", f"step {step}")


def zero(stage):
    return f"parallel.zero={stage}"


def test_one_rank():
    check(1, [("one", (zero(stage),)) for stage in (0, 1, 2)] + [("one", (zero(1), "train.accumulation=4"))])


def test_two_ranks():
    check(
        2,
        [
            ("data", (zero(1),)),
            ("model", (zero(1),)),
            ("expert", (zero(0),)),
            ("expert", (zero(1), "train.accumulation=4")),
            ("expert", (zero(2), "train.activation_checkpointing=true")),
            ("data", (zero(0), "model.ffn=gated_gelu", "model.tie_embeddings=false")),
        ],
    )


@pytest.mark.slow
def test_four_ranks():
    check(
        4,
        [
            ("expert+model+data", (zero(0),)),
            ("expert+model+data", (zero(1),)),
            ("expert+model+data", (zero(2), "train.accumulation=2", "train.activation_checkpointing=true")),
            ("whole experts", (zero(1),)),
            ("experts over tensor ranks", (zero(2), "train.accumulation=2")),
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name, (world, _) in LAYOUTS.items() if world == 4])
def test_every_four_rank_layout(layout):
    check(4, [(layout, (zero(stage), f"train.accumulation={micro}")) for stage, micro in ((0, 2), (1, 1), (2, 2))])


def _poisoned(rank, world, layout, stage):
    from parallel.engine.deepspeed import build_engine  # noqa: F401 - the import that costs, before the clock matters

    try:
        train(config(layout, zero(stage)), poison_rank=1)
    except NonFiniteError as error:
        return str(error)
    return "trained on"


@pytest.mark.parametrize("stage", [0, 1])
def test_nan_on_one_rank_stops_all_before_the_update(stage):
    messages = run_ranks(_poisoned, 2, "expert", stage, timeout_s=60, deadline_s=120)
    assert all("step 3" in message and "no weight was changed" in message for message in messages), messages
