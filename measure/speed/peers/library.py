"""The other side: Switch and T5 of Hugging Face Transformers, made from the configuration that our export writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from conf.derived.layers import is_dense
from conf.schema import RunConfig
from data.batch import PAD_ID
from measure.speed.peers.own import batch_of
from measure.speed.peers.side import Side, absence
from model.hf.config import CLASSES, to_document
from model.hf.names import Kind

PACKAGE = "transformers"
IGNORED = -100  # the library's target that no loss is computed of


def library_sides(cfg: RunConfig, device: torch.device) -> Iterator[Side]:
    """The library's model at the configured precision: in bf16 both under autocast and with everything cast.

    Its loss is the cross-entropy alone; experts take at most their capacity of one sequence. None where the library is
    not installed.
    """
    if absence(PACKAGE) is not None:
        return
    name = "Hugging Face " + ("T5" if is_dense(cfg) else "Switch")
    if cfg.train.precision == "fp32":
        ways = {"": torch.float32}
    else:
        ways = {", autocast": torch.float32, ", all in bf16": torch.bfloat16}
    for way, dtype in ways.items():
        model = library_model(cfg).to(device, dtype)
        casting = way == ", autocast"
        yield _side(model, cfg, device, name=name + way, autocast=casting)
        if cfg.train.compile != "off":
            yield _side(model, cfg, device, name=f"{name}{way}, compiled", autocast=casting, compiled=True)


def library_model(cfg: RunConfig) -> Any:
    """The library's model of the configuration with its own initial weights, in training mode."""
    kind: Kind = "t5" if is_dense(cfg) else "switch_transformers"
    document = to_document(cfg, kind=kind, dtype=torch.float32, copies_head=False)
    model_class = getattr(import_module(PACKAGE), CLASSES[kind])
    return model_class(model_class.config_class(**document)).train()


def _side(
    model: Any, cfg: RunConfig, device: torch.device, *, name: str, autocast: bool, compiled: bool = False
) -> Side:
    pairs = [
        (torch.from_numpy(micro.inputs_BL).to(device), _labels(torch.from_numpy(micro.targets_BT)).to(device))
        for micro in batch_of(cfg).micro
    ]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(cfg.optim.beta1, cfg.optim.beta2), weight_decay=0.0, fused=True
    )
    forward: Callable[..., Any] = torch.compile(model) if compiled else model

    def backward() -> None:
        for inputs, labels in pairs:
            with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
                loss = forward(input_ids=inputs, labels=labels).loss / len(pairs)
            loss.backward()

    def passes() -> object:
        backward()
        return optimizer.zero_grad()

    def step() -> object:
        backward()
        if cfg.optim.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.clip_norm)
        optimizer.step()
        return optimizer.zero_grad()

    return Side(name=name, passes=passes, step=step)


def _labels(targets_BT: Tensor) -> Tensor:
    return targets_BT.masked_fill(targets_BT == PAD_ID, IGNORED)
