"""`pointsman export-hf RUN [DIR]`: a run's weights as config.json and safetensors that Transformers loads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conf.derived.layers import expert_layers, is_dense
from conf.errors import CheckpointError, ConfigError
from conf.reading.paths import user_path
from launch.commands.kinds import define
from launch.commands.known import require_run
from launch.commands.parameters import FOLDER, option, takes_run

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from conf.schema import RunConfig
    from trainer.loading import OpenedRun
    from trainer.run_dir import RunDir

DTYPES = ("float32", "bfloat16", "float16")


@define(examples=("pointsman export-hf runs/first exported/first --dtype bfloat16",))
@takes_run
@click.argument("folder", type=FOLDER, required=False, metavar="[DIR]", help="where to (default: RUN/huggingface)")
@option(
    "--dtype", type=click.Choice(DTYPES), default="float32", metavar="TYPE", help="of the weights: " + ", ".join(DTYPES)
)
@option("--shard-size", default="5GB", metavar="SIZE", help="largest file, such as 500MB")
@option("--expert-capacity", type=int, help="slots per sequence and expert, where the run's capacity is a factor")
@option("--no-tokenizer", is_flag=True, help="weights and configuration alone")
def command(
    run: Path, folder: Path | None, dtype: str, shard_size: str, expert_capacity: int | None, no_tokenizer: bool
) -> int:
    """Write a run as a Hugging Face checkpoint, with a tokenizer that gives the same ids.

    T5ForConditionalGeneration for a dense model, SwitchTransformersForConditionalGeneration for one with experts.
    """
    require_run(run)  # before torch is imported, which takes seconds
    shard_bytes = parse_size(shard_size)
    import torch

    target, notes = export_run(
        run,
        folder,
        dtype=getattr(torch, dtype),
        shard_bytes=shard_bytes,
        expert_capacity=expert_capacity,
        with_tokenizer=not no_tokenizer,
    )
    weights = len(list(target.glob("*.safetensors")))
    tokenizer = ", tokenizer.json" if (target / "tokenizer.json").exists() else ""
    print("\n".join([*notes, f"{target}: config.json and {weights} file(s) of weights{tokenizer}"]))
    return 0


def export_run(
    run_path: Path,
    folder: Path | None,
    *,
    dtype: torch.dtype,
    shard_bytes: int,
    expert_capacity: int | None = None,
    with_tokenizer: bool = True,
) -> tuple[Path, list[str]]:
    """Write the newest whole checkpoint of a run; the folder and lines about what differs there.

    Raises ConfigError for a model that the library cannot build, a tokenizer that would give other ids there or a
    folder that is not empty, CheckpointError if it cannot be written. Written beside and renamed, so that a folder is
    whole or absent.
    """
    from safetensors import SafetensorError

    from data.text.tokenizer_json import write_tokenizer
    from model.hf.names import EMBEDDING
    from model.hf.notes import export_notes
    from parallel.mesh.axes import single_process
    from trainer.checkpoint.files import delete
    from trainer.loading import open_run

    opened = open_run(run_path, single_process())
    run, cfg = opened.run, opened.cfg
    _check_expressible(cfg, expert_capacity)
    target = run.root / "huggingface" if folder is None else user_path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError("DIR", got=str(target), needs="a new or empty folder", hint="another folder")
    partial = target.with_name(f".{target.name}.partial")
    try:
        delete(partial)  # of an export that was killed
        partial.mkdir(parents=True)
        if with_tokenizer and run.tokenizer.exists():  # before the weights, since it may be refused
            write_tokenizer(opened.tokenizer(), partial)
        kept = _read_unread(run, cfg)
        kind = _write(opened, partial, dtype, shard_bytes, expert_capacity, kept)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except (OSError, SafetensorError) as error:  # the latter is how a full disk is told
        raise CheckpointError(f"{target}: cannot be written ({error}); try another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target, export_notes(cfg, kind, expert_capacity=expert_capacity, kept=EMBEDDING in kept)


def _check_expressible(cfg: RunConfig, expert_capacity: int | None) -> None:
    """The library has a class for the model. What it computes differently is said, not refused."""
    if expert_capacity is not None and (expert_capacity < 1 or is_dense(cfg)):
        raise ConfigError(
            "--expert-capacity",
            got=expert_capacity,
            needs="at least 1, and a model with experts",
            hint="leaving it out",
        )
    if is_dense(cfg):
        return
    if cfg.model.ffn.startswith("gated_"):
        needs = "one without a gate: the library's Switch model has no gated experts"
        raise ConfigError("model.ffn", got=cfg.model.ffn, needs=needs)
    routers = {str(layer.router) for layer in expert_layers(cfg.model, cfg.moe)}
    if routers != {"switch"}:
        raise ConfigError(
            "moe.router", got=", ".join(sorted(routers)), needs="switch in both stacks: the library routes top-1 only"
        )


def _read_unread(run: RunDir, cfg: RunConfig) -> dict[str, Tensor]:
    """What import kept beside the run: tensors that the library stores and reads nowhere.

    Raises CheckpointError for a file that is not whole or not of this model.
    """
    from model.hf.files import read_kept
    from model.hf.names import EMBEDDING
    from trainer.commands.import_hf import UNREAD_FILE

    path = run.root / UNREAD_FILE
    kept = read_kept(path) if path.exists() else {}
    if cfg.model.share_embeddings:
        kept.pop(EMBEDDING, None)
    needed = (cfg.model.vocab_size, cfg.model.d_model)
    if EMBEDDING in kept and tuple(kept[EMBEDDING].shape) != needed:
        raise CheckpointError(f"{path}: {EMBEDDING} is {list(kept[EMBEDDING].shape)}, not {list(needed)}; remove it")
    return kept


def _write(
    opened: OpenedRun,
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int,
    capacity: int | None,
    kept: dict[str, Tensor],
) -> Any:
    """Tensors and configuration; the kind of model written."""
    from model.hf.config import to_document
    from model.hf.convert import ToTheirs, their_shapes
    from model.hf.files import write_tensors
    from model.hf.generation import FILE
    from model.hf.names import COPIES, EMBEDDING, HEAD, pairs
    from parallel.engine.protocol import MASTER
    from trainer.commands.import_hf import logical_shapes

    cfg, reader = opened.cfg, opened.reader
    kind = "t5" if is_dense(cfg) else "switch_transformers"
    ours = logical_shapes(cfg)
    # An untied Switch model of the library has three embeddings, all of which must be there;
    # it ties only scaled output matrices, so that an unscaled one is written as a copy as well.
    plain_tie = cfg.model.tie_embeddings and cfg.model.logit_scale == "one"
    copies: tuple[str, ...] = ()
    if not cfg.model.share_embeddings:
        copies = (EMBEDDING,)  # never read there, but missed when it is absent
    elif kind == "switch_transformers" and cfg.model.logit_scale == "one":
        copies = (*COPIES, HEAD) if plain_tie else COPIES
    shapes = their_shapes(cfg.model, cfg.moe, kind, ours, copies=copies)
    shapes |= {name: tuple(value.shape) for name, value in kept.items()}
    read = ToTheirs(lambda name: reader.read(MASTER, name), pairs(cfg.model, cfg.moe, kind), cfg.model.vocab_size)

    def value_of(name: str) -> Tensor:
        return kept[name] if name in kept else read(name)

    write_tensors(folder, shapes, value_of, dtype=dtype, shard_bytes=shard_bytes)
    document = to_document(cfg, kind=kind, dtype=dtype, copies_head=HEAD in copies)
    if capacity is not None:
        document["expert_capacity"] = capacity
    imported = opened.saved.generation
    generation, more = imported.beside() if imported else ({}, {})
    _write_json(folder / "config.json", dict(sorted((document | more).items())))
    _write_json(folder / FILE, generation | {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0})
    return kind


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def parse_size(text: str) -> int:
    """Bytes of "500MB", "5GB" or a plain number; the decimal units that the library uses."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2].upper()]) if match else 0
    if size < 1:
        raise ConfigError("--shard-size", got=text, needs="a size such as 500MB or 5GB", hint="--shard-size 5GB")
    return size
