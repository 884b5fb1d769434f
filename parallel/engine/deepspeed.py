"""Builds the DeepSpeed engine from tagged parameters: the one place that configures and initialises DeepSpeed."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore

from conf.optimizers import OPTIMIZERS
from conf.schema import RunConfig
from parallel.engine.expert_groups import (
    MpuAdapter,
    ProcessGroups,
    expert_group_name,
    expert_marker,
    mark_parameters,
    register_expert_groups,
)
from parallel.engine.protocol import Engine, ModuleT, compute_dtype
from parallel.engine.zero import ZeroEngine
from parallel.engine.zero0 import MastersEngine, ReducedMasters
from parallel.layers.sharding import tagged_parameters
from parallel.mesh.axes import Mesh
from parallel.optim.kinds import ParamGroups, optimizer_kind
from parallel.optim.parameters import OptimGroup, optim_groups

BUCKET_ELEMENTS = 2**25  # gradients reduced at once; DeepSpeed's default allocates 2 GB however small the model


def build_engine(module: ModuleT, cfg: RunConfig, mesh: Mesh) -> Engine[ModuleT]:
    """The engine of `cfg.parallel.zero` around a module on its device, cast (`cast_module`), parameters tagged.

    Uses the default process group; in a single process without one it makes a group of one rank, because DeepSpeed
    insists. Replaces DeepSpeed's global expert groups by those of `mesh`.
    """
    _check(module, cfg)
    prepare_process(on_gpu=next(module.parameters()).is_cuda)
    process_groups = ProcessGroups(mesh)
    has_experts = mark_parameters(module, mesh)
    if has_experts:
        register_expert_groups(process_groups)
    found = optim_groups(module, cfg.optim.weight_decay)
    kind = optimizer_kind(cfg.optim.name)
    if zero_stage(cfg, mesh) == 0:
        optimizer = ReducedMasters(
            found,
            lambda groups: kind.build(groups, cfg.optim, mesh),
            mesh,
            clip_norm=cfg.optim.clip_norm,
            scales_gradients=kind.scales_gradients,
        )
        engine = _initialize(module, optimizer, cfg, process_groups, has_experts=has_experts)
        return MastersEngine(module, engine, optimizer, kind, accumulation=cfg.train.accumulation)
    optimizer = kind.build(_zero_groups(found, mesh), cfg.optim, mesh)
    engine = _initialize(module, optimizer, cfg, process_groups, has_experts=has_experts)
    return ZeroEngine(module, engine, mesh, kind, accumulation=cfg.train.accumulation)


def zero_stage(cfg: RunConfig, mesh: Mesh) -> int:
    """The stage that is run: where no parameter has copies there is nothing to share out, and 0 makes fewer passes."""
    return cfg.parallel.zero if mesh.has_replicas else 0


def _check(module: nn.Module, cfg: RunConfig) -> None:
    assert cfg.parallel.zero in OPTIMIZERS[cfg.optim.name].zero, "conf.rules refuses this stage"
    dtype = compute_dtype(cfg.train.precision)
    for name, parameter, spec in tagged_parameters(module):
        wanted = torch.float32 if spec.keep_fp32 else dtype
        assert parameter.dtype == wanted, f"{name} is {parameter.dtype}, not {wanted}: call cast_module first"
        assert parameter.requires_grad, f"{name} is frozen, and its state would be missing from checkpoints"


def prepare_process(*, on_gpu: bool) -> None:
    """What DeepSpeed reads from its surroundings: accelerator, local rank, process group; its noise turned off."""
    if not on_gpu:  # also on a machine with GPUs, when the run was put on gloo and CPU, whatever was set for others
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", str(torch.cuda.current_device()) if on_gpu else "0")
    if not dist.is_initialized():
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    import deepspeed.ops
    from deepspeed.utils import logger

    # An empty table: no shared-memory operator is compiled (40-65 s, not needed), no compiler is probed.
    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})
    logger.setLevel(logging.WARNING)


def _zero_groups(found: list[OptimGroup], mesh: Mesh) -> ParamGroups:
    """Parameter groups as DeepSpeed wants them: expert groups carry `moe` and the name of their process group.

    bf16 groups come first: DeepSpeed takes the dtype of the first group for that of all, and sums micro-batches in
    fp32 apart from `.grad` only where it is lower than fp32 (ADR 005).
    """
    groups: ParamGroups = []
    for g in sorted(found, key=lambda g: g.dtype == torch.float32):
        name = expert_group_name(mesh) if g.is_expert else f"dense{len(groups)}"
        groups.append({"params": list(g.params), "weight_decay": g.weight_decay, "name": name, "moe": g.is_expert})
    return groups


def _initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, cfg: RunConfig, groups: ProcessGroups, *, has_experts: bool
) -> Any:
    import deepspeed

    arguments = {
        "model": module,
        "optimizer": optimizer,
        "config": _deepspeed_config(module, cfg, groups.mesh),
        "mpu": MpuAdapter(groups),
        "dist_init_required": False,
    }
    if not has_experts:
        return deepspeed.initialize(**arguments)[0]
    with expert_marker(module, cfg.moe.num_experts):
        return deepspeed.initialize(**arguments)[0]


def _deepspeed_config(module: nn.Module, cfg: RunConfig, mesh: Mesh) -> dict[str, Any]:
    """DeepSpeed's own `bf16` stays off: it would cast router and norm weights, which we keep in fp32."""
    elements = sum(p.numel() for p in module.parameters())
    bucket = min(BUCKET_ELEMENTS, elements + elements % 2)
    return {
        "train_micro_batch_size_per_gpu": 1,  # unused but required
        "gradient_accumulation_steps": cfg.train.accumulation,
        "gradient_clipping": cfg.optim.clip_norm if zero_stage(cfg, mesh) else 0.0,
        "zero_optimization": {
            "stage": zero_stage(cfg, mesh),
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": False,
            "round_robin_gradients": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "zero_allow_untested_optimizer": True,  # which stages an optimizer can be sharded at is in conf.optimizers
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},  # it would sync the device every step
    }
