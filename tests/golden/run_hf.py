"""Recorded runs of Hugging Face Switch and T5 against the models that `import-hf` makes of their checkpoints.

A recording of 5.x is compared under the semantics `hf`, one of 4.x under `hf_4`. The file of the later version holds
only what differs; the rest is read from the file it names as equal. fp32 cases run in fp32,
bf16 cases with every weight rounded to bf16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from conf.compose import compose
from conf.derived.layers import stacks
from conf.schema import Stack
from model.build import build_model
from model.contract import ModelOutput
from model.hf.config import sparse_step
from model.hf.convert import EMBEDDING, ToTheirs
from model.hf.names import COPIES, pairs
from model.losses import LossParts, LossScale, micro_batch_loss
from model.moe.layer import MoeLayer
from model.moe.types import Routing
from model.t5.model import SwitchTransformer
from parallel.mesh.axes import single_process
from tests.golden.compare import Case, Comparison, Unsupported, close, exact, runner, scalar, unknown
from tests.golden.hf_experts import Watch, absent_gradients, idle_experts
from tests.golden.reader import read_manifest, whole_file
from tests.model.moe.build import layer_of
from trainer.commands.import_hf import Import, open_import

STACKS: tuple[Stack, ...] = ("encoder", "decoder")
SUBLAYER = {"encoder": 1, "decoder": 2}  # the library's number of the feed-forward sublayer
SCALARS = (
    "loss", "encoder_z_loss", "encoder_aux_loss", "decoder_z_loss", "decoder_aux_loss", "loss_lm_only",
    "loss_default_call", "sparse_modules", "no_grad_parameters", "grad_norms",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Largest errors of one precision, relative to the largest value of an array."""

    dtype: torch.dtype
    output: float
    loss: float
    grad: float


LIMITS = {
    "": Limits(dtype=torch.float32, output=1e-5, loss=5e-6, grad=5e-5),
    "bf16": Limits(dtype=torch.bfloat16, output=2e-2, loss=1e-2, grad=float("nan")),
}


@runner("hf_switch")
def compare_hf_switch(folder: Path) -> Iterator[Case]:
    """Every model, layer case and table of a folder of Switch recordings."""
    yield from _models(folder)
    manifest = read_manifest(folder)
    for case in manifest.get("layer_cases", []):
        yield f"layer {case['case']}", _layer_case(folder, case)
    for table in manifest.get("tables", []):
        yield table["file"], _layout_table(folder, table["file"])


@runner("hf_t5")
def compare_hf_t5(folder: Path) -> Iterator[Case]:
    """Every model of a folder of T5 recordings."""
    yield from _models(folder)


def _models(folder: Path) -> Iterator[Case]:
    for case in read_manifest(folder)["cases"]:
        for version in case["outputs"]:
            yield f"{case['case']} {version}", _model(folder, case, version)


def _model(folder: Path, case: dict[str, Any], version: str) -> Iterator[Comparison]:
    """One version's run of a model, from files that are checked first."""
    for entry in case["files"]:
        whole_file(folder / entry["file"], entry["bytes"], entry["sha256"])
    inputs = load((folder / case["case"] / "inputs.safetensors").read_bytes())
    arrays, scalars = _recorded(folder, case, version)
    yield from Recorded(folder / case["case"], version, inputs, arrays, scalars).compare()


def _recorded(folder: Path, case: dict[str, Any], version: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays and scalars of a version, also those for which it names another version's as equal."""
    output = case["outputs"][version]
    arrays, scalars = load((folder / output["file"]).read_bytes()), dict(output["scalars"])
    arrays.pop("none", None)
    _, _, precision = version.partition("_")
    for key, same in output.items():
        if key.startswith("same_as_"):
            other = key.removeprefix("same_as_").removesuffix("_max_abs_diff")
            other = f"{other}_{precision}" if precision and not other.endswith(precision) else other
            theirs, _ = _recorded(folder, case, other)
            arrays |= {name: theirs[name] for name in same if name not in arrays}
    norms = scalars.get("grad_norms")
    if isinstance(norms, str):
        scalars["grad_norms"] = _recorded(folder, case, norms.removeprefix("as "))[1]["grad_norms"]
    return arrays, scalars


class Recorded:
    """One model under one version of the library, in one precision, and our run of it."""

    def __init__(
        self, path: Path, version: str, inputs: dict[str, Tensor], arrays: dict[str, Tensor], scalars: dict[str, Any]
    ) -> None:
        number, _, precision = version.partition("_")
        if precision not in LIMITS:
            raise Unsupported(f"{path}: outputs in {precision}; known: fp32 and bf16")
        self.limits, self.arrays, self.scalars = LIMITS[precision], arrays, scalars
        self.old = number.startswith("4.")
        self.source = open_import(path, overrides=[f"moe.semantics={'hf_4' if self.old else 'hf'}"])
        self.module = build(self.source, self.limits.dtype)
        self.tokens_BL = inputs["input_ids"].long()
        labels_BT = inputs["labels"].long()
        self.targets_BT = labels_BT.masked_fill(labels_BT == -100, 0)

    def compare(self) -> Iterator[Comparison]:
        """All arrays and scalars of the recording."""
        for name in self.scalars:
            if name not in SCALARS:
                yield unknown("scalar", name)
        watches = self._watch()
        states = {stack: hidden_states(self.module, stack, self._forward) for stack in STACKS}
        self.module.zero_grad()
        for watch in watches.values():
            watch.seen.clear()
        output = self._forward()
        parts = self._losses(output)
        if self.limits.dtype == torch.float32:
            parts.total.backward()
        with torch.no_grad():
            yield from self._outputs(states)
            yield from self._routing(watches)
            logits_BTV = self.module.logits(states["decoder"][-1].to(self.limits.dtype))
            # In half precision the library's loss is rounded as its logits are.
            half_ce = F.cross_entropy(
                logits_BTV.to(torch.bfloat16).flatten(0, 1), self.targets_BT.flatten(), ignore_index=0
            )
            yield from self._scalars(output, parts, half_ce)
            if self.limits.dtype == torch.float32:
                yield from self._gradients(idle_experts(watches))
            if "greedy" in self.arrays:
                recorded_BT = self.arrays["greedy"]
                ours_BT = greedy(self.module, self.tokens_BL, recorded_BT.shape[1] - 1)
                yield exact("greedy", ours_BT, recorded_BT[:, 1:])

    def _forward(self) -> ModelOutput:
        return self.module(self.tokens_BL, self.targets_BT, mode="train", noise=None)

    def _losses(self, output: ModelOutput) -> LossParts:
        tokens = (self.targets_BT != 0).sum()
        encoder = (self.tokens_BL != 0).sum()
        scale = LossScale(target_tokens=tokens, router_tokens={"encoder": encoder, "decoder": tokens}, replicas=1)
        return micro_batch_loss(output, scale, self.source.cfg.moe)

    def _watch(self) -> dict[str, Watch]:
        """A watch in every expert layer, by the library's name of its router."""
        watches = {}
        for stack in STACKS:
            for index, block in enumerate(getattr(self.module, stack).layers):
                if isinstance(block.ff, MoeLayer):
                    watch = block.ff.tap = Watch()
                    watches[f"{stack}.block.{index}.layer.{SUBLAYER[stack]}.mlp.router"] = watch
        return watches

    def _outputs(self, states: dict[Stack, Tensor]) -> Iterator[Comparison]:
        vocabulary, limit = self.source.cfg.model.vocab_size, self.limits.output
        made = {
            "logits": self.module.logits(states["decoder"][-1].to(self.limits.dtype))[..., :vocabulary],
            "encoder_last_hidden_state": states["encoder"][-1],
            "encoder_hidden_states": states["encoder"],
            "decoder_hidden_states": states["decoder"],
        }
        for name, recorded in self.arrays.items():
            if name in made:
                yield close(name, made[name], recorded, limit)
            elif name != "greedy" and name.partition(":")[0] not in ("router_logits", "dispatch", "gate", "grad"):
                yield unknown("array", name)

    def _routing(self, watches: dict[str, Watch]) -> Iterator[Comparison]:
        for name, recorded in self.arrays.items():
            what, _, module = name.partition(":")
            if what not in ("router_logits", "dispatch", "gate"):
                continue
            (routing,) = watches[module].seen
            yield _routed(name, what, routing, recorded, self.limits)

    def _scalars(self, output: ModelOutput, parts: LossParts, half_ce: Tensor) -> Iterator[Comparison]:
        moe, limit = self.source.cfg.moe, self.limits.loss
        experts = self.source.hf.kind == "switch_transformers"
        ce = parts.ce if self.limits.dtype == torch.float32 else half_ce
        total = ce.float() + parts.aux + parts.z
        made = {"loss": total, "loss_lm_only": ce, "loss_default_call": total if self.old else ce}
        for stack in STACKS if experts else ():
            kept = output.routing[stack]
            alone = replace(output, routing={other: kept if other == stack else () for other in STACKS})
            loss = self._losses(alone) if kept else parts
            made[f"{stack}_aux_loss"] = loss.aux / moe.aux_loss_weight
            made[f"{stack}_z_loss"] = loss.z / moe.z_loss_weight
        for name, recorded in self.scalars.items():
            if name in made:
                yield scalar(name, made[name], recorded, limit)
        if "sparse_modules" in self.scalars:
            yield exact("sparse_modules", sorted(self._watch()), sorted(self.scalars["sparse_modules"]))

    def _gradients(self, idle: tuple[str, ...]) -> Iterator[Comparison]:
        """Norms and gradients; the library's copies of the embedding share one gradient here.

        `idle`: beginnings of the names of experts without tokens.
        """
        grads = dict(self.module.named_parameters())
        cfg = self.source.cfg
        table = pairs(cfg.model, cfg.moe, self.source.hf.kind)

        def grad(name: str) -> Tensor:
            value = grads[name].grad
            assert value is not None, f"{name} has no gradient"
            return value

        theirs = ToTheirs(grad, table, cfg.model.vocab_size)
        names = [name for pair in table for name in pair.theirs]
        norms = self.scalars.get("grad_norms", {})
        split = any(name in norms for name in COPIES)
        if "no_grad_parameters" in self.scalars:
            # The library gives no gradient to an expert without tokens, nor to an embedding that only its copies use.
            none = {name for name in names if name.startswith(idle) or (split and name == EMBEDDING)}
            zero = {name for name in names if not theirs(name).any()}
            yield absent_gradients(none, zero, set(self.scalars["no_grad_parameters"]))
        widest = max(norms.values(), default=1.0)
        for name, recorded in norms.items():
            if name not in COPIES:
                error = abs(theirs(name).double().norm().item() - recorded) / widest
                yield Comparison(array=f"grad_norm {name}", error=error, limit=self.limits.grad)
        copies = [self.arrays[f"grad:{name}"] for name in COPIES if f"grad:{name}" in self.arrays]
        if len(copies) == len(COPIES):
            yield close("grad of both embeddings", theirs(EMBEDDING), sum(copies), self.limits.grad)  # type: ignore[arg-type]
        for name, recorded in self.arrays.items():
            what, _, parameter = name.partition(":")
            if what == "grad" and parameter not in COPIES:
                yield close(name, theirs(parameter), recorded, self.limits.grad)


def _routed(name: str, what: str, routing: Routing, recorded: Tensor, limits: Limits) -> Comparison:
    """One array about the decisions of a layer. Every sequence is a group, so [G, S] is [batch, length]."""
    _, E, C = routing.tokens_GEC.shape
    if what == "router_logits":
        return close(name, routing.logits_GSE, recorded, limits.output)
    if what == "dispatch":
        slot_GS = routing.slots_GSK[..., 0]
        experts_E = torch.arange(E)
        return exact(name, (slot_GS[..., None] // C == experts_E) & (slot_GS < E * C)[..., None], recorded)
    # Recorded before dropping, ours is 0 where dropped.
    kept_GS1 = routing.gates_GSK > 0
    return close(name, routing.gates_GSK, torch.where(kept_GS1, recorded, 0.0), limits.output)


def build(source: Import, dtype: torch.dtype) -> SwitchTransformer:
    """Our model with the imported weights, all of them rounded to `dtype` as the library's are."""
    module = build_model(source.cfg, single_process(), device="cpu", dtype=dtype)
    parameters = dict(module.named_parameters())
    if dtype != torch.float32:
        _round_as_the_library(module, dtype)
    with torch.no_grad():
        for name, value in source.tensors():
            parameters[name].copy_(value.to(dtype))
    return module


def _round_as_the_library(module: SwitchTransformer, dtype: torch.dtype) -> None:
    """Round in half precision where the library does: inside norms, and attention scores before the softmax.

    A router's decision can hang on one such rounding, and which of them is right is nobody's claim.
    """
    for stack in STACKS:
        part = getattr(module, stack)
        norms = [part.final_norm]
        for block in part.layers:
            norms += [child for name, child in block.named_children() if name.endswith("_norm")]
            for attention in (block.self_attention, block.cross_attention):
                if attention is not None:
                    attention._fused = attention._unfused
        for norm in norms:
            norm.register_forward_hook(lambda norm, args, out: _rounded_norm(norm, args[0], dtype))


def _rounded_norm(norm: Any, x_BLD: Tensor, dtype: torch.dtype) -> Tensor:
    """The library's norm in half precision: rounded before the weight is applied, and again after."""
    mean_BL1 = x_BLD.float().square().mean(-1, keepdim=True)
    return norm.weight.to(dtype) * (x_BLD * (mean_BL1 + norm.epsilon).rsqrt()).to(dtype)


def hidden_states(module: SwitchTransformer, stack: Stack, forward: Callable[[], Any]) -> Tensor:
    """Embedding, every block but the last, and the last after the final norm, as the library stacks them."""
    part, seen = getattr(module, stack), []
    hooks = [part.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    hooks += [layer.register_forward_hook(lambda _, args, out: seen.append(out.x_BLD)) for layer in part.layers[:-1]]
    hooks += [part.final_norm.register_forward_hook(lambda _, args, out: seen.append(out))]
    with torch.no_grad():
        forward()
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


@torch.no_grad()
def greedy(module: SwitchTransformer, tokens_BL: Tensor, steps: int) -> Tensor:
    """Greedy decoding as the library's: the encoder drops tokens over capacity, a step's single token is a group."""
    decoding = module.start_decoding(tokens_BL, copies=1, max_length=steps, mode="eval")
    last_B, ended_B = torch.zeros_like(tokens_BL[:, 0]), torch.zeros_like(tokens_BL[:, 0], dtype=torch.bool)
    chosen = []
    for _ in range(steps):
        last_B = decoding.next_logits(last_B).argmax(-1).masked_fill(ended_B, 0)
        ended_B = ended_B | (last_B == 1)
        chosen.append(last_B)
    return torch.stack(chosen, 1)


def _layer_case(folder: Path, case: dict[str, Any]) -> Iterator[Comparison]:
    """One sparse layer alone, in fp32 and in bf16."""
    path = folder / case["file"]
    arrays = load(whole_file(path, path.stat().st_size, case["sha256"]))
    config = case["config"]
    for suffix, limits in (("f32", LIMITS[""]), ("bf16", LIMITS["bf16"])):
        layer, watch = _layer(config, arrays, limits.dtype), Watch()
        layer.tap = watch
        x_BLD = arrays["x"].to(limits.dtype)
        with torch.no_grad():
            y_BLD, _ = layer(x_BLD, torch.ones(x_BLD.shape[:2], dtype=torch.bool), mode="eval", noise=None)
        (routing,) = watch.seen
        for what, name in (("router_logits", "logits"), ("dispatch", "dispatch"), ("gate", "gate")):
            yield _routed(f"{name}:{suffix}", what, routing, arrays[f"{name}:{suffix}"], limits)
        yield close(f"y:{suffix}", y_BLD, arrays[f"y:{suffix}"], limits.output)


def _layer(config: dict[str, Any], arrays: dict[str, Tensor], dtype: torch.dtype) -> MoeLayer:
    settings = {
        "model.ffn": "relu",
        "model.d_model": config["d_model"],
        "model.d_ff": config["d_ff"],
        "moe.num_experts": config["experts"],
        "moe.min_expert_capacity": config["expert_capacity"],
    }
    cfg = compose(["model=switch_base_8", "moe=hf", *(f"{key}={value}" for key, value in settings.items())])
    layer = layer_of(cfg.model, cfg.moe)
    with torch.no_grad():
        layer.router.weight.copy_(arrays["router_kernel"].T)  # fp32 in both recordings
        layer.experts.wi.copy_(arrays["wi"].to(dtype).transpose(1, 2))
        layer.experts.wo.copy_(arrays["wo"].to(dtype).transpose(1, 2))
    layer.experts.to(dtype)
    return layer


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table by column; the manifest of this folder gives no digests of its tables."""
    table = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def _layout_table(folder: Path, file: str) -> Iterator[Comparison]:
    """Sparse layers of each stack from the numbers in a config.json, row by row."""
    cfg = compose(["moe=hf"])
    for number, row in enumerate(_rows(folder / file)):
        depths = {"encoder": row["num_layers"], "decoder": row["num_decoder_layers"]}
        steps = {stack: sparse_step(folder, row, stack, depths[stack]) for stack in STACKS}
        model = replace(cfg.model, **{f"num_{stack}_layers": depth for stack, depth in depths.items()})
        plan = stacks(model, replace(cfg.moe, sparse_every=steps["encoder"], decoder_sparse_every=steps["decoder"]))
        for stack in STACKS:
            ours = [layer.index for layer in plan[stack] if layer.experts]
            yield exact(f"row {number} sparse_{stack}_indices", ours, row[f"sparse_{stack}_indices"])
