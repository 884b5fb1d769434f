"""From tensors in Hugging Face's names to ours and back, one tensor at a time, after checking that all are there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.errors import CheckpointError
from conf.schema import ModelConfig, MoeConfig, RunConfig
from model.hf.config import HfConfig
from model.hf.files import TensorFolder
from model.hf.names import COPIES, EMBEDDING, HEAD, UNUSED, VOCABULARY, Kind, Pair, Shape, pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class Tying:
    """How embeddings and output matrix go together; the library decides by the tensors as much as by config.json."""

    tie_embeddings: bool
    share_embeddings: bool  # false: the stacks' own embeddings differ from the shared one, which is then never read
    copies: tuple[str, ...]  # tensors left out: they repeat the embedding, or it is the embedding that no stack reads
    stored_as: str | None  # the name of the embedding where it is not `EMBEDDING`


def find_tying(hf: HfConfig, folder: TensorFolder) -> Tying:
    """What the library would make of the embeddings, by whichever of their names they are there.

    Afterwards a shared embedding is in `folder` as `EMBEDDING` in any case. Raises CheckpointError where the library
    would lose some of them.
    """
    stored_as = _find_embedding(hf, folder)
    embedding = folder.read(EMBEDDING if EMBEDDING in folder.names else COPIES[0])
    copies = _find_copies(hf, folder, embedding)
    tie = HEAD not in folder.names
    if tie and not hf.may_tie:
        raise CheckpointError(
            f"{folder.folder}: config.json says tie_word_embeddings=false, but there is no {HEAD}: the output matrix "
            "is lost (the library would fill it with random numbers)"
        )
    if not tie and hf.may_tie:
        head = folder.read(HEAD)
        tie = _equal(head, embedding)
        if not tie and not hf.ties_by_tensors:
            raise CheckpointError(
                f"{folder.folder}: config.json (transformers {hf.version}) says tie_word_embeddings=true, but {HEAD} "
                f"differs from {EMBEDDING}: 4.x would throw {HEAD} away, 5.x would use it. Set tie_word_embeddings "
                "to false to use it, or remove it from the file"
            )
    if copies is None:
        if tie:
            raise CheckpointError(
                f"{folder.folder}: {' and '.join(COPIES)} differ from {EMBEDDING}, to which the output matrix is tied: "
                f"a model here has either one tied embedding or an output matrix ({HEAD}) of its own"
            )
        return Tying(tie_embeddings=False, share_embeddings=False, copies=(EMBEDDING,), stored_as=None)
    if tie and HEAD in folder.names:
        copies = (*copies, HEAD)
    return Tying(tie_embeddings=tie, share_embeddings=True, copies=copies, stored_as=stored_as)


def _find_embedding(hf: HfConfig, folder: TensorFolder) -> str | None:
    """Make the embedding of both stacks known as `EMBEDDING`; the name it is stored by, if that is another.

    Without `EMBEDDING` one stack's serves both, and a tied output matrix serves where there is none, as in transformers
    5; two that differ stay what they are.
    """
    if EMBEDDING in folder.names:
        return None
    own = [name for name in COPIES if name in folder.names]
    if len(own) == len(COPIES) and not _equal(*(folder.read(name) for name in own)):
        return None
    own += [HEAD] if hf.may_tie and HEAD in folder.names else []
    if not own:
        names = ", ".join((EMBEDDING, *COPIES, *([HEAD] if hf.may_tie else [])))
        raise CheckpointError(f"{folder.folder}: there is no embedding; needs one of {names}")
    folder.also_name(EMBEDDING, own[0])
    return own[0]


def _find_copies(hf: HfConfig, folder: TensorFolder, embedding: Tensor) -> tuple[str, ...] | None:
    """Tensors of the two stacks that repeat the embedding; None if the stacks have embeddings of their own."""
    there = tuple(name for name in COPIES if name in folder.names)
    differing = [name for name in there if not _equal(folder.read(name), embedding)]
    if not differing:
        return there
    if len(there) < len(COPIES):
        missing = next(name for name in COPIES if name not in there)
        raise CheckpointError(
            f"{folder.folder}: {differing[0]} differs from {EMBEDDING} and {missing} is missing: both stacks' "
            "embeddings are needed, or neither (the library would fill the missing one with random numbers)"
        )
    if hf.kind == "t5" and hf.version.startswith("4."):
        raise CheckpointError(
            f"{folder.folder}: {', '.join(differing)} differs from {EMBEDDING} in a T5 of transformers {hf.version}: "
            "4.x would throw it away, 5.x would use it. Remove it from the file, or write the file with 5.x"
        )
    return None


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def check_tensors(
    folder: TensorFolder, table: tuple[Pair, ...], ours: Mapping[str, Shape], vocab_size: int, tying: Tying
) -> None:
    """Every tensor of the table is there in the right shape, and nothing else. Raises CheckpointError listing all."""
    expected = {name: pair.their_shape(ours[pair.ours], vocab_size) for pair in table for name in pair.theirs}
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in folder.names]
    for name in sorted(folder.names - set(expected) - {EMBEDDING, *tying.copies, *UNUSED}):
        problems.append(f"unexpected: {name} {list(folder.shape(name))}")
    for name in sorted(folder.names & set(expected)):
        if (shape := folder.shape(name)) != expected[name]:
            problems.append(f"{name}: shape {list(shape)}, config.json makes it {list(expected[name])}")
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(f"{folder.folder}: the tensors are not those of its config.json:\n  {shown}{more}")


def unread_tensors(folder: TensorFolder, cfg: RunConfig) -> list[str]:
    """Tensors of a folder that the library stores and reads nowhere, in order: no part of the model."""
    unread = {*UNUSED} if cfg.model.share_embeddings else {*UNUSED, EMBEDDING}
    return sorted(folder.names & unread)


def to_ours(
    read: Callable[[str], Tensor], table: tuple[Pair, ...], ours: Mapping[str, Shape]
) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of each of our tensors in fp32, which holds every fp32, bf16 and fp16 value exactly.

    Rows that only pad the vocabulary are 0: no id reads them and their logits are masked.
    """
    for pair in table:
        value = torch.zeros(ours[pair.ours], dtype=torch.float32)
        if pair.turn == "expert":
            for slot, name in zip(value, pair.theirs, strict=True):
                slot.copy_(read(name).T)
        else:
            source = read(pair.theirs[0])
            source = source.T if pair.turn == "transposed" else source
            value[: len(source)].copy_(source)
        yield pair.ours, value


def their_shapes(
    model: ModelConfig, moe: MoeConfig, kind: Kind, ours: Mapping[str, Shape], *, copies: tuple[str, ...]
) -> dict[str, Shape]:
    """Name and shape of every tensor to write, in the table's order, with copies of an embedding at the end."""
    shapes = {
        name: pair.their_shape(ours[pair.ours], model.vocab_size)
        for pair in pairs(model, moe, kind)
        for name in pair.theirs
    }
    return shapes | dict.fromkeys(copies, shapes[_copied(shapes)])


def _copied(names: Collection[str]) -> str:
    """What copies are taken from: the embedding, or the encoder's where each stack has its own."""
    return EMBEDDING if EMBEDDING in names else COPIES[0]


class ToTheirs:
    """Reads tensors of theirs out of ours. Keeps one of ours, since the experts of a bank are asked for in a row."""

    def __init__(self, read: Callable[[str], Tensor], table: tuple[Pair, ...], vocab_size: int) -> None:
        """`read` gives our logical tensors whole."""
        self._read, self._vocab_size = read, vocab_size
        self._where = {name: (pair, slot) for pair in table for slot, name in enumerate(pair.theirs)}
        self._kept: tuple[str, Tensor] | None = None

    def __call__(self, name: str) -> Tensor:
        """One tensor in their orientation, without rows of padding."""
        pair, slot = self._where.get(name) or self._where[_copied(self._where)]
        if self._kept is None or self._kept[0] != pair.ours:
            self._kept = (pair.ours, self._read(pair.ours))
        value = self._kept[1]
        if pair.turn == "expert":
            return value[slot].T
        if pair.ours in VOCABULARY:
            return value[: self._vocab_size]
        return value.T if pair.turn == "transposed" else value
