"""A toy with every kind of parameter an engine must handle, the naive one-process answer, and configs to run it.

Shape suffixes: N tokens, D width, F hidden, V rows of the table, E experts, C tokens an expert gets, X expert hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from conf.schema import RunConfig
from parallel.layers.sharding import ParamSpec, cast_module, tag
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from tests.settings import MOE, OPTIM, TRAIN, parallel_config

V, D, F, E, X, N = 11, 6, 8, 4, 10, 32  # odd sizes on purpose: ZeRO partitions end inside parameters
SHAPES = {
    "table": (V, D), "norm": (D,), "column": (F, D), "row": (D, F), "router": (E, D), "wi": (E, D, X), "wo": (E, X, D),
}  # fmt: skip
SPECS = {
    "table": ParamSpec(dims=("buckets", "embed")),
    "norm": ParamSpec(dims=("embed",), keep_fp32=True, decay=False),
    "column": ParamSpec(dims=("ff", "embed")),
    "row": ParamSpec(dims=("embed", "ff")),
    "router": ParamSpec(dims=("router_experts", "embed"), keep_fp32=True),
    "wi": ParamSpec(dims=("experts", "embed", "expert_ff")),
    "wo": ParamSpec(dims=("experts", "expert_ff", "embed")),
}


def logical_weights(seed: int = 0) -> dict[str, Tensor]:
    """Whole fp32 tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in SHAPES.items()}


def batch(step: int, micro: int) -> tuple[Tensor, Tensor]:
    """Token ids [N] and targets [N, D] of one logical micro-batch, the same in every process."""
    generator = torch.Generator().manual_seed(1000 + 10 * step + micro)
    return torch.randint(0, V, (N,), generator=generator), torch.randn(N, D, generator=generator)


class Toy(nn.Module):
    """Table, norm, a column/row pair cut over tp, a router and experts cut over ep and etp.

    Token n goes to expert n % E. With whole experts (etp = 1 < tp) each tensor rank serves its share of the tokens.
    """

    def __init__(self, mesh: Mesh, dtype: torch.dtype, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.mesh = mesh
        for name, whole in weights.items():
            setattr(self, name, tag(nn.Parameter(take_shard(name, whole, mesh)), SPECS[name]))
        cast_module(self, dtype)

    def forward(self, ids_N: Tensor, targets_ND: Tensor) -> Tensor:
        """Mean squared error over the local tokens, fp32."""
        tp = self.mesh.tp
        x_ND = self.table[ids_N]
        h_ND = (x_ND.float() / x_ND.float().norm(dim=1, keepdim=True) * self.norm).to(x_ND.dtype)
        h_NF = torch.relu(collectives.copy_to(h_ND, tp) @ self.column.T)
        x_ND = x_ND + collectives.reduce_from(h_NF @ self.row.T, tp)
        x_ND = x_ND + self._experts(x_ND)
        return (x_ND.float() - targets_ND).square().mean()

    def _experts(self, x_ND: Tensor) -> Tensor:
        mesh = self.mesh
        shares = mesh.tp.size > 1 and mesh.etp.size == 1
        router_ED = self.router
        if shares:
            x_ND, router_ED = collectives.scatter_to(x_ND, mesh.tp), collectives.copy_to(router_ED, mesh.tp)
        gates_NE = torch.softmax(x_ND.float() @ router_ED.T, dim=-1)
        c = x_ND.shape[0] // E
        sent_ECD = x_ND.view(c, E, D).transpose(0, 1)
        got = collectives.all_to_all(sent_ECD.contiguous(), mesh.ep)  # [ep * E/ep, C, D]
        local = E // mesh.ep.size
        got_ECD = got.view(mesh.ep.size, local, c, D).transpose(0, 1).reshape(local, -1, D)
        hidden = torch.relu(torch.bmm(collectives.copy_to(got_ECD, mesh.etp), self.wi))
        out = collectives.reduce_from(torch.bmm(hidden, self.wo), mesh.etp)
        out = out.view(local, mesh.ep.size, c, D).transpose(0, 1).reshape(E, c, D)
        y_ND = collectives.all_to_all(out.contiguous(), mesh.ep).transpose(0, 1).reshape(-1, D)
        chosen_N = gates_NE.view(c, E, E).diagonal(dim1=1, dim2=2).reshape(-1)
        y_ND = (y_ND.float() * chosen_N[:, None]).to(x_ND.dtype)
        return collectives.gather_from(y_ND, mesh.tp) if shares else y_ND


def take_shard(name: str, whole: Tensor, mesh: Mesh) -> Tensor:
    """This rank's rectangle of a whole tensor."""
    cut_by = {"experts": mesh.ep, "expert_ff": mesh.etp, "ff": mesh.tp}
    for dim, logical in enumerate(SPECS[name].dims):
        if logical in cut_by:
            whole = whole.chunk(cut_by[logical].size, dim)[cut_by[logical].rank]
    return whole.clone()


def naive_loss(weights: dict[str, Tensor], ids: Tensor, targets: Tensor) -> Tensor:
    """Token by token, with whole weights: what every layout must compute."""
    total = torch.zeros((), dtype=targets.dtype)
    for n in range(len(ids)):
        x = weights["table"][ids[n]]
        h = x / x.norm() * weights["norm"]
        x = x + weights["row"] @ torch.relu(weights["column"] @ h)
        e = n % E
        gate = torch.softmax(weights["router"] @ x, dim=0)[e]
        x = x + gate * (torch.relu(x @ weights["wi"][e]) @ weights["wo"][e])
        total = total + (x - targets[n]).square().sum()
    return total / targets.numel()


@dataclass(frozen=True, kw_only=True)
class OracleStep:
    """What one step of the oracle gave: before the update, and the weights after it."""

    grads: dict[str, Tensor]
    norm: float
    weights: dict[str, Tensor]


def adamw(groups: list[dict], cfg: RunConfig, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, betas=(cfg.optim.beta1, cfg.optim.beta2), eps=cfg.optim.epsilon)


def oracle(cfg: RunConfig, steps: int, lr: float, *, shards: int, build=adamw) -> list[OracleStep]:
    """fp64 training in one process: the mean over `shards` x accumulation micro-batches, clip, the optimizer."""
    weights = {name: w.double().requires_grad_() for name, w in logical_weights().items()}
    decay = cfg.optim.weight_decay
    groups = [{"params": [w], "weight_decay": decay if SPECS[n].decay else 0.0} for n, w in weights.items()]
    optimizer = build(groups, cfg, lr)
    done = []
    for step in range(steps):
        optimizer.zero_grad()
        count = shards * cfg.train.accumulation
        for micro in range(count):
            ids, targets = batch(step, micro)
            (naive_loss(weights, ids, targets.double()) / count).backward()
        grads = {name: w.grad.clone() for name, w in weights.items()}
        norm = float(torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt())
        if cfg.optim.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(list(weights.values()), cfg.optim.clip_norm)
        optimizer.step()
        done.append(OracleStep(grads=grads, norm=norm, weights={n: w.detach().clone() for n, w in weights.items()}))
    return done


def run_config(
    *, zero: int, precision: str = "fp32", accumulation: int = 1, clip_norm: float = 0.0, tp: int = 1, ep: int = 1,
    etp: int | None = None, optimizer: str = "adamw",
) -> RunConfig:  # fmt: skip
    """A RunConfig with the sections an engine reads; the others are left out."""
    optim = replace(OPTIM, name=optimizer, clip_norm=clip_norm)
    moe = replace(MOE, num_experts=E, sparse_every=1, decoder_sparse_every=1)
    train = replace(TRAIN, accumulation=accumulation, precision=precision)
    parallel = parallel_config(tp, ep, etp, zero=zero)
    rest = dict.fromkeys(("model", "data", "schedule", "logging", "launch"))
    return RunConfig(
        name=None, runs_dir=".", seed=0, moe=moe, parallel=parallel, optim=optim, train=train, **rest
    )  # fmt: skip


def run_micro_batches(engine, mesh: Mesh, cfg: RunConfig, step: int) -> None:
    """This rank's micro-batches of a step."""
    for i in range(cfg.train.accumulation):
        ids, targets = batch(step, mesh.dp.rank * cfg.train.accumulation + i)
        engine.backward(engine.module(ids, targets))


def masters_of(engine) -> dict[str, Tensor]:
    """Masters that this rank owns."""
    return {s.name: s.value.clone() for s in engine.read_state() if s.kind == "master"}
