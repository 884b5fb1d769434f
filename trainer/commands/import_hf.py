"""`pointsman import-hf DIR`: a Hugging Face T5 or Switch checkpoint becomes a run folder that our commands read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conf.errors import CheckpointError, ConfigError, ConfigErrors
from conf.reading.paths import is_there
from conf.safety import shell
from conf.safety.writing import write_whole
from launch.commands.kinds import define
from launch.commands.output import OUTPUT_FOLDER
from launch.commands.parameters import FILE, FOLDER, option, takes_overrides

if TYPE_CHECKING:
    from torch import Tensor

    from conf.schema import RunConfig
    from data.text.tokenizer import Tokenizer
    from model.hf.config import HfConfig
    from model.hf.convert import Tying
    from model.hf.files import TensorFolder
    from model.hf.generation import Generation
    from model.hf.names import Shape

TOKENIZER_FILES = ("spiece.model", "tokenizer.model", "spm.model")  # the first that is there
TOKENIZER_SETTINGS = "tokenizer_config.json"
UNREAD_FILE = "huggingface_unread.safetensors"  # in the run folder: what the library stores and never reads
SENTINELS = 100  # extra ids of every released T5 and Switch tokenizer
SPANS = 28  # of a window of 512 tokens, each of which needs a sentinel


@define(
    examples=(
        "pointsman import-hf ~/switch-base-8 --name switch",
        "pointsman import-hf google/switch-base-8        fetched from the hub, or from its cache",
    )
)
@click.argument(
    "folder",
    type=FOLDER,
    metavar="DIR",
    help="a folder with config.json and *.safetensors (or pytorch_model*.bin), or org/name of the hub",
)
@takes_overrides()
@option("--name", help="name of the run (default: the folder's name)")
@option("--runs-dir", type=OUTPUT_FOLDER, default="runs", metavar="DIR", help="where runs live")
@option("--tokenizer", type=FILE, metavar="FILE", help="sentencepiece .model file, where the folder has none")
@option("--revision", metavar="NAME", help="of org/name: a branch, tag or commit (default: main)")
def command(
    folder: Path,
    overrides: tuple[str, ...],
    name: str | None,
    runs_dir: Path,
    tokenizer: Path | None,
    revision: str | None,
) -> int:
    """Import a Hugging Face T5, mT5 or SwitchTransformers checkpoint as a run folder."""
    from model.hf.hub import download, is_repository

    repository = str(folder)
    if is_repository(repository):
        name = name or folder.name
        check_new(runs_dir / name)  # before anything is fetched
        folder = download(repository, revision=revision)
        print(f"{repository}: commit {folder.name}")
    elif revision is not None:
        raise ConfigError("--revision", got=revision, needs=f"org/name of the hub, and {folder} is none")
    elif not os.path.isdir(folder):
        needs = "a folder with config.json and tensors, or org/name of the hub"
        raise ConfigError("DIR", got=repository, needs=needs, hint="google/switch-base-8, if that is what is meant")
    import_run(folder, overrides=overrides, name=name, runs_dir=runs_dir, tokenizer=tokenizer)
    return 0


def check_new(root: Path) -> None:
    """Raise ConfigError if there is a run already."""
    if is_there(root):
        hint = shell.line(["--name", f"{root.name}-imported"])
        raise ConfigError("--name", got=str(root), needs="a run that does not exist yet", hint=hint)


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """A checkpoint of theirs, checked, with the configuration under which ours computes the same."""

    hf: HfConfig
    folder: TensorFolder
    tying: Tying
    cfg: RunConfig
    overrides: tuple[str, ...]  # what makes the model and its routing, and what was typed
    shapes: dict[str, Shape]  # of our logical tensors
    generation: Generation

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 value) of each of our logical tensors."""
        from model.hf.convert import to_ours
        from model.hf.names import pairs

        table = pairs(self.cfg.model, self.cfg.moe, self.hf.kind)
        return to_ours(self.folder.read, table, self.shapes)


def open_import(path: Path, *, overrides: Sequence[str] = (), sentinels: int | None = None) -> Import:
    """Read config.json, find the tensors and check every name and shape; values are read later.

    `overrides` are settings of the run that is to come, `sentinels` what its tokenizer has, if that is known. Raises
    ConfigError or CheckpointError naming what is wrong.
    """
    from conf.compose import compose
    from conf.continued import of_the_run
    from conf.reading.setting_files import merged
    from model.hf.config import check_counts, in_their_words, read_config
    from model.hf.convert import check_tensors, find_tying
    from model.hf.files import TensorFolder
    from model.hf.generation import read_generation
    from model.hf.names import pairs

    hf = read_config(path)
    folder = TensorFolder(path)
    check_counts(hf, len(folder.names))
    tying = find_tying(hf, folder)
    settings = (*_model_settings(hf, tying), *_data_settings(hf.model["vocab_size"], sentinels))
    try:
        cfg = compose([*settings, "launch.nproc=1", "parallel.tp=1", "parallel.ep=1", *overrides])
    except (ConfigError, ConfigErrors) as error:
        own = {override.partition("=")[0].lstrip("+~") for override in overrides}
        raise in_their_words(hf.path, error, own) from error
    shapes = logical_shapes(cfg)
    check_tensors(folder, pairs(cfg.model, cfg.moe, hf.kind), shapes, cfg.model.vocab_size, tying)
    typed = tuple(of_the_run(merged(settings, overrides)))
    generation = read_generation(path)
    return Import(hf=hf, folder=folder, tying=tying, cfg=cfg, overrides=typed, shapes=shapes, generation=generation)


def logical_shapes(cfg: RunConfig) -> dict[str, Shape]:
    """Names and whole shapes of a configuration's parameters, without building them."""
    from model.build import meta_model
    from parallel.layers.sharding import tagged_parameters
    from parallel.mesh.axes import single_process

    module = meta_model(cfg, single_process())
    return {name: tuple(parameter.shape) for name, parameter, _ in tagged_parameters(module)}


def _model_settings(hf: HfConfig, tying: Tying) -> tuple[str, ...]:
    """Overrides of the model and its routing; every field that config.json decides is named."""
    base = "switch_base_8" if hf.kind == "switch_transformers" else "t5_v1_1_small"
    values: dict[str, Any] = {f"model.{name}": value for name, value in hf.model.items()}
    values |= {
        "model.preset": hf.model_type,
        "model.tie_embeddings": tying.tie_embeddings,
        "model.share_embeddings": tying.share_embeddings,
        "model.logit_scale": "width" if hf.scaled else "one",
        "moe.defects": "reproduced",
    }
    values |= {f"moe.{name}": value for name, value in hf.moe.items()}
    semantics = "hf_4" if hf.version.startswith("4.") else "hf"
    return (f"model={base}", f"moe={semantics}", *(f"{name}={_typed(value)}" for name, value in values.items()))


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _data_settings(vocab_size: int, sentinels: int | None) -> tuple[str, ...]:
    """The tokenizer's layout; if unknown the released ones', shrunk for a vocabulary that could not hold it."""
    sentinels = sentinels or min(SENTINELS, vocab_size // 2)
    lines = (f"data.sentinels={sentinels}", f"data.tokenizer_vocab={min(32_000, vocab_size - sentinels)}")
    return lines if sentinels >= SPANS else (*lines, "data.encoder_length=16")


def find_tokenizer(folder: Path, given: Path | None) -> Path | None:
    """The sentencepiece model to take along."""
    if given is not None:
        if not os.path.isfile(given):
            raise ConfigError("--tokenizer", got=str(given), needs="a sentencepiece .model file")
        return given
    return next((folder / name for name in TOKENIZER_FILES if os.path.isfile(folder / name)), None)


def known_sentinels(folder: Path, tokenizer: Path | None) -> int | None:
    """How many sentinels the tokenizer of a checkpoint has, where its pieces or the folder's settings say so."""
    from data.text.spiece import SentencePieceModel
    from model.hf.files import read_json

    if tokenizer is not None and (own := SentencePieceModel(tokenizer.read_bytes(), str(tokenizer)).sentinels):
        return len(own)
    settings = folder / TOKENIZER_SETTINGS
    added = read_json(settings).get("extra_ids") if os.path.isfile(settings) else None
    return added if type(added) is int and added > 0 else None


def read_tokenizer(path: Path, cfg: RunConfig) -> Tokenizer:
    """Read a tokenizer for the model. Raises DataError if it is none, ConfigError if the model knows fewer ids."""
    from data.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(path, sentinels=cfg.data.sentinels)
    if tokenizer.size > cfg.model.vocab_size:
        raise ConfigError(
            str(path),
            got=f"{tokenizer.pieces} pieces and {tokenizer.sentinels} sentinels",
            needs=f"at most {cfg.model.vocab_size} ids, those of the embedding",
            hint=f"data.sentinels={max(cfg.model.vocab_size - tokenizer.pieces, 0)}, or the tokenizer of this model",
        )
    return tokenizer


def write_run(source: Import, root: Path, tokenizer: Tokenizer | None) -> Path:
    """Write a run folder: configuration, tokenizer, a checkpoint of step 0 with weights alone. Its checkpoint's folder.

    Written beside and renamed, so that a run is whole or absent whenever the import is killed. Raises CheckpointError
    if it cannot be written; nothing of it then remains.
    """
    from trainer.checkpoint.files import delete

    partial = root.with_name(f".{root.name}.partial")
    try:
        delete(partial)  # what a killed import left
        checkpoint = _write_whole(source, partial, tokenizer)
        partial.rename(root)
    except OSError as error:
        raise CheckpointError(f"{root}: cannot be written ({error}); try another --runs-dir") from error
    except CheckpointError as error:
        raise CheckpointError(f"{root} was not made: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root / checkpoint.relative_to(partial)


def _write_whole(source: Import, root: Path, tokenizer: Tokenizer | None) -> Path:
    from model.hf.convert import unread_tensors
    from model.hf.files import write_kept
    from parallel.engine.protocol import MASTER, StateTensor
    from parallel.layers.sharding import Shard
    from parallel.mesh.axes import single_process
    from trainer.checkpoint.store import CheckpointStore
    from trainer.resume import IMPORTED, NO_TOKENIZER, TrainState
    from trainer.run_dir import RunDir, write_config, write_status

    run = RunDir(root=root)
    run.checkpoints.mkdir(parents=True)
    shards = {name: Shard(global_shape=s, offsets=(0,) * len(s), local_shape=s) for name, s in source.shapes.items()}
    fingerprints = {"tokenizer": tokenizer.fingerprint if tokenizer else NO_TOKENIZER, "data": IMPORTED}
    store = CheckpointStore(run.checkpoints, single_process())
    try:
        states = (StateTensor(name=name, kind=MASTER, value=value) for name, value in source.tensors())
        start = TrainState(generation=source.generation.to_json())
        store.save(0, states, shards, start.to_json(source.cfg, fingerprints))
        result = store.wait()
        assert result is not None
        assert result.path is not None, "a save that did not fail has a folder"
        if unread := unread_tensors(source.folder, source.cfg):
            write_kept(root / UNREAD_FILE, {name: source.folder.read(name) for name in unread})
        if tokenizer is not None:
            write_whole(run.tokenizer, tokenizer.model)
        write_config(run, source.cfg, source.overrides)
        write_status(run, "done", step=0, reason=f"imported from {source.hf.path.parent}")
        return result.path
    finally:
        store.close()


def import_run(
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    runs_dir: Path = Path("runs"),
    tokenizer: Path | None = None,
) -> Path:
    """Make a run of the checkpoint in `folder` and print what differs and what to do with it; the run's folder."""
    name = name or folder.resolve().name
    root = runs_dir / name
    check_new(root)
    from model.hf.notes import generation_notes, import_notes

    file = find_tokenizer(folder, tokenizer)
    typed = [f"name={name}", f"runs_dir={runs_dir.resolve()}", *overrides]
    source = open_import(folder, overrides=typed, sentinels=known_sentinels(folder, file))
    checkpoint = write_run(source, root, read_tokenizer(file, source.cfg) if file else None)
    notes = import_notes(source.hf, source.cfg, source.tying, source.folder)
    print("\n".join([*notes, *generation_notes(source.generation)]))
    print(f"\n{checkpoint}: {sum(map(_numel, source.shapes.values())):,} parameters of {folder}")
    print("\n".join(_closing(source, root, file, folder)))
    return root


def _numel(shape: Shape) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _closing(source: Import, root: Path, tokenizer: Path | None, folder: Path) -> list[str]:
    """What to do with the run."""
    if tokenizer is None:
        use = [
            f"No tokenizer: {folder} has none of {', '.join(TOKENIZER_FILES)}. The weights are usable from Python, but "
            "fill, eval and generate need the sentencepiece model this checkpoint was trained with: copy it to "
            f"{root / 'tokenizer.model'}, or import again with --tokenizer FILE. (A tokenizer.json alone does not do.)",
        ]
        train = [f"train.from_checkpoint={root}", "train.allow_data_change=true"]
    else:
        use = [
            f"tokenizer: {tokenizer}",
            "  " + shell.line(["pointsman", "fill", root, "The <mask> of the list."]),
            "  " + shell.line(["pointsman", "eval", root]),
        ]
        train = [f"train.from_checkpoint={root}"]
    # windows that few sentinels suffice for, which `_data_settings` chose
    windows = [line for line in source.overrides if line.startswith("data.encoder_length=")]
    return [*use, "train on from it:", "  " + shell.line(["pointsman", "train", *train, *windows])]
