"""Our side: the configured model in its engine, its dense twin, and the matrix products of its step alone.

Shape suffixes: N tokens, L, M lengths of queries and keys, H heads, K width of a head, E experts, R rows of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from conf.derived.estimate import padded_vocab_size
from conf.derived.groups import micro_batch_size, slots_per_token
from conf.derived.layers import Layer, layer_names, stacks
from conf.schema import RunConfig
from data.batch import StepBatch
from data.tasks.task import target_kinds
from data.text.vocabulary import appended
from measure.speed.peers.side import Side
from measure.speed.step import step_work, synthetic_batch
from measure.speed.timing import Work
from parallel.engine.protocol import compute_dtype
from parallel.mesh.axes import single_process
from trainer.report.metrics import Meter
from trainer.session import build_initialised
from trainer.step import count_tokens, run_micro_batches


def own_side(cfg: RunConfig, device: torch.device, *, name: str) -> Side:
    """The model as it is trained: token counts, losses, meters, and in `step` finite check, clipping and update."""
    mesh = single_process()
    engine = build_initialised(cfg, mesh, device)
    batch = batch_of(cfg)
    vocabulary = appended(cfg.data.tokenizer_vocab, cfg.data.sentinels)

    def passes() -> object:
        meter = Meter(kinds=target_kinds(cfg.data, vocabulary), layer_names=layer_names(cfg))
        counts = count_tokens(batch, mesh)
        engine.module.count_routing(False)
        run_micro_batches(engine, batch, counts, meter, cfg=cfg, mesh=mesh, device=device)
        return engine.discard_gradients()

    return Side(name=name, passes=passes, step=step_work(cfg, mesh, device, engine=engine))


def eager(side: Side, *, name: str) -> Side:
    """The same model without what was compiled of it."""

    def without(work: Work) -> Work:
        def run() -> object:
            with torch.compiler.set_stance("force_eager"):
                return work()

        return run

    return Side(name=name, passes=without(side.passes), step=without(side.step) if side.step else None)


def batch_of(cfg: RunConfig) -> StepBatch:
    """The batch that all sides of a shape get."""
    return synthetic_batch(cfg, dp_rank=0)


class Product(NamedTuple):
    """`times` products of `batch` matrices [m, k] x [k, n]; of tied or shared weights each use is one."""

    name: str
    times: int
    batch: int
    m: int
    k: int
    n: int
    wide: bool = False  # in fp32 whatever the precision: the router's

    @property
    def flops(self) -> int:
        """Of the forward products."""
        return 2 * self.times * self.batch * self.m * self.k * self.n


def products(cfg: RunConfig) -> Iterator[Product]:
    """The matrix products of a forward pass, expert buffers with all their slots."""
    model, B = cfg.model, micro_batch_size(cfg) * cfg.train.accumulation
    inner, length = model.num_heads * model.d_kv, {"encoder": cfg.data.encoder_length}
    length["decoder"] = cfg.data.decoder_length
    for stack, plan in stacks(model, cfg.moe).items():
        L = length[stack]
        N = B * L
        for layer in plan:
            for kind in layer.attention:
                M = L if kind == "self" else length["encoder"]
                yield Product("queries and output", 2, 1, N, model.d_model, inner)
                yield Product("keys and values", 2, 1, B * M, model.d_model, inner)
                yield Product("scores and weighted values", 2, B * model.num_heads, L, model.d_kv, M)
            yield from _feed_forward(cfg, layer, tokens=N)
    yield Product("logits", 1, 1, B * length["decoder"], model.d_model, padded_vocab_size(model.vocab_size))


def _feed_forward(cfg: RunConfig, layer: Layer, *, tokens: int) -> Iterator[Product]:
    model, matrices = cfg.model, 3 if layer.feed_forward.startswith("gated") else 2
    if not layer.experts:
        yield Product("feed-forward", matrices, 1, tokens, model.d_model, model.d_ff)
        return
    rows = round(tokens * slots_per_token(cfg, layer.stack, train=True) / layer.experts)
    yield Product("router", 1, 1, tokens, model.d_model, layer.experts, wide=True)
    yield Product("experts", matrices, layer.experts, rows, model.d_model, model.d_ff)


def floor_side(cfg: RunConfig, device: torch.device, *, of: str = "ours") -> Side:
    """Every matrix product of a step, forward and both of backward, into memory that is there already."""
    dtype = compute_dtype(cfg.train.precision)
    works = [_products_work(product, torch.float32 if product.wide else dtype, device) for product in products(cfg)]

    def passes() -> object:
        for work in works:
            work()
        return None

    return Side(name=f"the matrix products of {of} alone (the floor)", passes=passes)


def _products_work(product: Product, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    def make(rows: int, columns: int) -> Tensor:
        # Shared by nothing: each operand is read from memory, as in a step.
        return torch.randn(product.batch, rows, columns, device=device, dtype=dtype)

    m, k, n = product.m, product.k, product.n
    operands = [(make(m, k), make(k, n), make(m, n), make(m, k), make(k, n)) for _ in range(product.times)]

    def work() -> None:
        for x, w, y, dx, dw in operands:
            torch.bmm(x, w, out=y)
            torch.bmm(y, w.transpose(1, 2), out=dx)
            torch.bmm(x.transpose(1, 2), y, out=dw)

    return work
