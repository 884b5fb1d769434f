"""What differs between the library and us for one checkpoint, in plain words: printed by import and export."""

from __future__ import annotations

from conf.derived.layers import stacks
from conf.routing.settings import capacity_rule
from conf.schema import RunConfig
from model.hf.config import EOS, HfConfig, sequence_capacity
from model.hf.convert import Tying, unread_tensors
from model.hf.files import TensorFolder
from model.hf.generation import KNOWN, TASKS, Generation, unsupported
from model.hf.names import COPIES, EMBEDDING, HEAD, Kind

# Measured by running those versions.
WRONG_SWITCH = (
    "transformers versions that compute Switch wrongly, so that their outputs are no yardstick:",
    "  5.0.0 to 5.17.0: the capacity never binds, the z-loss is fed probabilities, output_router_logits with labels",
    "    crashes; 5.0.0 to 5.13.0 moreover give the relative position bias to layer 0 only",
    "  4.x before its pull request 37123: a token over capacity gets p * x instead of 0",
    "  right: 4.57.6, and 5.18.0 or later; 5.23.0 is what moe=hf follows, 4.57.6 what moe=hf_4 follows",
)


def import_notes(hf: HfConfig, cfg: RunConfig, tying: Tying, folder: TensorFolder) -> list[str]:
    """Lines about what this import means."""
    lines = [f"{hf.path.parent}: {hf.model_type}, written by transformers {hf.version}"]
    if hf.model_type != hf.kind:
        lines.append(f"computed as {hf.kind}, of which it is a copy by another name; an export is a {hf.kind}")
    lines += _file_notes(hf, cfg, tying, folder)
    if hf.kind == "switch_transformers":
        lines += _switch_notes(hf, cfg, tying)
    if cfg.model.dropout:
        lines.append(
            f"dropout is {cfg.model.dropout} everywhere in training, attention weights included, as in the library "
            "(released models say 0.1, for fine-tuning); model.attention_dropout=0 is faster"
        )
    return lines


def _file_notes(hf: HfConfig, cfg: RunConfig, tying: Tying, folder: TensorFolder) -> list[str]:
    lines = []
    stored = sorted(folder.dtypes())
    if stored != ["float32"]:
        lines.append(f"weights are stored as {', '.join(stored)}; fp32 masters hold the same values exactly")
    if hf.ignored:
        lines.append(f"ignored, since code of a checkpoint is never run: {', '.join(hf.ignored)}")
    if unread := unread_tensors(folder, cfg):
        lines.append(
            f"no part of the model, since the library never reads it: {', '.join(unread)}; kept beside the run, and an "
            "export of the run gives it back"
        )
    if tying.stored_as:
        lines.append(f"there is no {EMBEDDING}: {tying.stored_as} is the embedding of both stacks, as in the library")
    if not cfg.model.share_embeddings:
        lines.append("encoder and decoder have an embedding of their own each (model.share_embeddings=false)")
    elif copies := [name for name in tying.copies if name != tying.stored_as]:
        lines.append(f"equal copies of the embedding, kept once: {', '.join(copies)}")
    if tying.tie_embeddings and not hf.scaled:
        lines.append("the output matrix is the embedding, unscaled (how transformers 5 builds T5 v1.1 from a config)")
    if hf.eos not in (EOS, [EOS]):
        lines.append(f"eos_token_id is {hf.eos} there; fill and generate stop at id {EOS}, and export writes {EOS}")
    if hf.version.startswith("4.") and hf.kind == "t5" and not tying.tie_embeddings:
        lines.append(
            "transformers 5 ties the embeddings of a T5 built from this config.json; a checkpoint it loads stays untied"
        )
    return lines


def _switch_notes(hf: HfConfig, cfg: RunConfig, tying: Tying) -> list[str]:
    moe = cfg.moe
    lines = [
        f"capacity: {moe.min_expert_capacity} tokens of each sequence per expert, an absolute number, the same in "
        "training and evaluation; there is no capacity factor, and padding takes slots",
    ]
    for stack, plan in stacks(cfg.model, moe).items():
        every = moe.decoder_sparse_every if stack == "decoder" else moe.sparse_every
        layers = ", ".join(str(layer.index) for layer in plan if layer.experts)
        lines.append(f"{stack} layers with experts: {layers or 'none'} (from 0)")
        if every >= 3:
            lines.append(
                f"  the library's rule is i % {every} == 1; the original code and our presets put experts into the "
                f"last of every {every} layers ({every - 1}, {2 * every - 1}, ..)"
            )
        if every == 1:
            lines.append(
                f"  every layer of the {stack} is sparse: the library's router losses of it are the constant 0"
            )
    lines += [
        f"router losses: weights {moe.aux_loss_weight} (auxiliary) and {moe.z_loss_weight} (z) are in the training "
        "loss here; transformers 5 leaves both out unless output_router_logits=True is passed, 4.57 includes them",
        "the auxiliary loss joins the logits of a stack's layers before it looks for balance, so that layers which "
        "collapse to different experts cancel; moe.defects=mended takes the mean over layers instead",
    ]
    if moe.semantics == "hf_4":
        lines.append(
            "  4.x moreover takes it after capacity and counts a dropped token as a choice of expert 0, so that "
            "collapse looks balanced; moe.semantics=hf is the loss of 5.23.0. Logits are the same"
        )
    if moe.jitter:
        lines.append(
            f"jitter {moe.jitter}: in fp32 training the library's experts receive the jittered input as well; "
            "moe.defects=mended keeps it to the router. Random numbers differ from the library's in any case"
        )
    if cfg.model.share_embeddings and not tying.tie_embeddings and len(set(tying.copies) & set(COPIES)) < len(COPIES):
        lines.append(
            "the encoder's and decoder's copies of the embedding are missing, as 4.57 saves untied models; the library "
            "itself would load random ones here, this import uses shared.weight for both"
        )
    return [*lines, *WRONG_SWITCH]


def generation_notes(generation: Generation) -> list[str]:
    """Lines about what `generate` will do with the checkpoint's own settings."""
    lines = []
    if shown := [f"{name} {value!r}" for name, value in generation.defaults.items() if name in KNOWN]:
        lines.append(f"`generate` follows its generation settings: {', '.join(shown)}")
    if generation.tasks:
        lines.append(f"  and for --task {', '.join(generation.tasks)}: {TASKS}, their prefix included")
    if strange := unsupported(generation):
        lines.append(f"generation settings that are not supported, and not followed: {', '.join(strange)}")
    return lines


def needs_5(cfg: RunConfig) -> list[str]:
    """A line for an output matrix of its own after scaling, which only transformers 5 can load."""
    if cfg.model.tie_embeddings or cfg.model.logit_scale == "one":
        return []
    return [f"untied and scaled: transformers 5 uses {HEAD} as it differs; 4.x would throw it away and tie"]


def export_notes(cfg: RunConfig, kind: Kind, *, expert_capacity: int | None, kept: bool) -> list[str]:
    """Lines about what the library will compute differently from the run; `kept`: unread tensors are as imported."""
    copied = "a copy of the encoder's embedding"
    apart: list[str] = []
    if not cfg.model.share_embeddings:
        apart.append(f"{EMBEDDING} is {'what was imported' if kept else copied}; the library reads it nowhere")
    if kind == "t5":
        if apart:
            return [*apart, f"transformers 5 loads a T5 with an embedding per stack; 4.x would use {EMBEDDING} in both"]
        if cfg.model.tie_embeddings and cfg.model.logit_scale == "one":
            return ["tied and unscaled: transformers 5 reads this from scale_decoder_outputs=false; 4.x would scale"]
        return needs_5(cfg)
    lines = [*apart, *needs_5(cfg)]
    if cfg.model.tie_embeddings and cfg.model.logit_scale == "one":
        lines.append(f"tied and unscaled, which the library's Switch cannot be: {HEAD} is written as a copy")
    used = expert_capacity if expert_capacity is not None else sequence_capacity(cfg)
    if cfg.moe.capacity == "dropless":
        lines.append(
            f"trained without dropping, which the library cannot: written: {used} slots per sequence and expert, with "
            "which a sequence of up to as many tokens loses none"
        )
    elif capacity_rule(cfg.moe).rounding != "absolute":
        lines += [
            f"trained under {cfg.moe.semantics}: the library knows only an absolute number of slots per sequence and "
            f"expert, the same in training and evaluation; written: {used}"
            + ("" if expert_capacity is not None else " (the evaluation capacity of one sequence; --expert-capacity)"),
            "  where a token was dropped or kept by another rule, its output differs; with a capacity of the longest "
            "sequence nothing is ever dropped",
            "  padding takes slots there; router losses, jitter and decisions in bf16 follow the library's own rules",
        ]
    return [*lines, *WRONG_SWITCH]
