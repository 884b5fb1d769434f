"""The run that every layout is compared with: one process, the whole batch at once, plain torch, no engine, no ranks.

Each step leaves its files (`step_file`). Shape suffixes: B rows of the global batch, L encoder length,
T decoder length; routing as in `record`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from conf.schema import RunConfig, Stack
from measure.verify.observe.batches import global_rows
from measure.verify.observe.numbers import StepNumbers, Tally
from measure.verify.observe.record import Decision, Recorder
from measure.verify.observe.trace import Tracer
from measure.verify.reference.optim import build_reference
from measure.verify.reference.step_file import GRADIENT, INITIAL, LOGITS, PARAMETER, SLOTS, TOKENS, write_step
from model.build import build_model
from model.init import init_key, initial_masters
from model.losses import LossScale, micro_batch_loss
from model.t5.model import SwitchTransformer
from parallel.layers.sharding import spec_of
from parallel.mesh.axes import single_process
from parallel.rng import NoiseKey

NOTHING = StepNumbers(loss=0.0, entered=0.0, aux=0.0, z=0.0, layer_aux={}, layer_z={})


def run_reference(cfg: RunConfig, *, steps: int, dtype: torch.dtype, device: torch.device, folder: Path) -> None:
    """Train `steps` steps and write them to `folder`. fp64: forward and backward alone, the weights stay.

    `cfg` is a layout of one rank, without accumulation and without recomputation.
    """
    module = build_model(cfg, single_process(), device=device, dtype=dtype)
    recorder, tracer = Recorder(module, cfg, single_process(), None), Tracer(module)
    parameters = dict(module.named_parameters())
    masters, optimizer = None, None
    if dtype != torch.float64:
        masters = _masters(module, cfg)
        optimizer = build_reference(cfg.optim, masters, {name: spec_of(p).decay for name, p in parameters.items()})
    held = parameters if masters is None else masters
    write_step(folder, INITIAL, {f"{PARAMETER}/{n}": p.detach() for n, p in held.items()}, NOTHING, 0.0)
    for step in range(steps):
        numbers = _forward_backward(module, cfg, step, device)
        tensors = {f"{GRADIENT}/{n}": _gradient(p, dtype) for n, p in parameters.items()}
        norm = torch.stack([g.double().square().sum() for g in tensors.values()]).sum().sqrt()
        if masters is not None and optimizer is not None:
            _update(cfg, parameters, masters, optimizer, float(norm))
            tensors |= {f"{PARAMETER}/{name}": p.detach() for name, p in masters.items()}
            tensors |= dict(_moments(masters, optimizer))
        tensors |= _routing(recorder.take())
        module.zero_grad()
        write_step(folder, step, tensors, numbers, float(norm), tracer.take())


def _forward_backward(module: SwitchTransformer, cfg: RunConfig, step: int, device: torch.device) -> StepNumbers:
    encoder_BL, targets_BT = (torch.from_numpy(array).to(device) for array in global_rows(cfg, step))
    rows_B = torch.arange(cfg.train.global_batch, device=device)
    noise = NoiseKey(seed=cfg.seed, step=step, rows_B=rows_B)
    output = module(encoder_BL, targets_BT, mode="train", noise=noise)
    targets = int((targets_BT != 0).sum())
    seen: dict[Stack, float | Tensor] = {"encoder": int((encoder_BL != 0).sum()), "decoder": targets}
    scale = LossScale(target_tokens=targets, router_tokens=seen, replicas=1)
    parts = micro_batch_loss(output, scale, cfg.moe)
    parts.total.backward()
    tally = Tally(cfg)
    tally.add(output, targets_BT, parts)
    # Totals straight from the loss, not through what adds up micro-batches.
    totals = {"loss": float(parts.ce), "entered": float(parts.ce), "aux": float(parts.aux), "z": float(parts.z)}
    return replace(tally.numbers(single_process()), **totals)


def _gradient(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """In fp32, or fp64 in an fp64 model; a parameter that backward does not reach has none, which is a zero."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.zeros_like(parameter, dtype=wide) if parameter.grad is None else parameter.grad.to(wide)


def _masters(module: nn.Module, cfg: RunConfig) -> dict[str, nn.Parameter]:
    """fp32 weights: the parameters themselves, or unrounded initial values where they are of lower precision."""
    exact = initial_masters(module, single_process(), init_key(cfg))
    masters: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        if parameter.dtype == torch.float32:
            masters[name] = parameter
        else:
            drawn = exact(name, "master")
            assert drawn is not None
            masters[name] = nn.Parameter(drawn.to(parameter.device))
    return masters


def _update(
    cfg: RunConfig, parameters: dict[str, Any], masters: dict[str, nn.Parameter], optimizer: Optimizer, norm: float
) -> None:
    """Clip, step, round."""
    shrink = min(1.0, cfg.optim.clip_norm / (norm + 1e-6)) if cfg.optim.clip_norm > 0 else 1.0
    for name, master in masters.items():
        master.grad = _gradient(parameters[name], torch.float32) * shrink
    for group in optimizer.param_groups:
        group["lr"] = cfg.schedule.lr
    optimizer.step()
    with torch.no_grad():
        for name, master in masters.items():
            if master is not parameters[name]:
                parameters[name].copy_(master)


def _moments(masters: dict[str, nn.Parameter], optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, master in masters.items():
        for kind, value in optimizer.state[master].items():
            if kind != "step":
                yield f"{kind}/{name}", value


def _routing(decisions: list[Decision]) -> dict[str, Tensor]:
    """One call per layer with all groups in order."""
    found: dict[str, Tensor] = {}
    for decision in decisions:
        assert f"{SLOTS}/{decision.layer}" not in found, f"{decision.layer} was called twice"
        found[f"{SLOTS}/{decision.layer}"] = decision.slots_GSK
        found[f"{TOKENS}/{decision.layer}"] = decision.tokens_GEC
        found[f"{LOGITS}/{decision.layer}"] = decision.logits_GSE
    return found
