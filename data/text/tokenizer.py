"""The sentencepiece tokenizer: text to ids and back, with T5's sentinels counted down from the end of the vocabulary.

Layout (T5's): pad 0, EOS 1, unknown 2, pieces up to `pieces`, then sentinels; <extra_id_k> is `size - 1 - k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import ArrayLike, NDArray

from conf.errors import DataError
from conf.reading.paths import user_path
from conf.safety.regular import read_regular
from data.batch import EOS_ID, PAD_ID, UNK_ID
from data.files import sha256_bytes


class Tokenizer:
    """A sentencepiece model in T5's layout plus `sentinels` extra ids."""

    def __init__(self, model: bytes, *, sentinels: int, origin: str) -> None:
        """`model` is the content of a .model file; `origin` names it in errors."""
        self.model = model
        self.sentinels = sentinels
        self._processor = _load(model, origin)
        self.pieces: int = self._processor.get_piece_size()

    @classmethod
    def from_file(cls, path: Path, *, sentinels: int) -> Tokenizer:
        """Read a .model file. Raises DataError when it is missing, not sentencepiece or not in T5's layout."""
        try:
            content = read_regular(user_path(path))
        except OSError as error:
            raise DataError(
                f"{path}: cannot read this tokenizer ({error.strerror}); set data.tokenizer to a sentencepiece .model "
                "file, or to null to train one"
            ) from error
        return cls(content, sentinels=sentinels, origin=str(path))

    @property
    def size(self) -> int:
        """Ids in use: pieces and sentinels."""
        return self.pieces + self.sentinels

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the model file."""
        return sha256_bytes(self.model)

    def sentinel_id(self, k: int) -> int:
        """Id of <extra_id_k>."""
        if not 0 <= k < self.sentinels:
            raise DataError(f"<extra_id_{k}> does not exist: data.sentinels is {self.sentinels}; use a smaller number")
        return self.size - 1 - k

    def encode(self, text: str) -> NDArray[np.int64]:
        """Ids of `text`, without EOS. <extra_id_k> in the text stays text; see `encode_with_sentinels`."""
        return np.asarray(self._processor.encode(text), dtype=np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, without EOS."""
        return self._processor.encode(list(texts), num_threads=1)

    def encode_with_sentinels(self, text: str) -> NDArray[np.int64]:
        """Like `encode`, but each literal <extra_id_k> becomes the sentinel's id."""
        ids: list[int] = []
        head, *tails = text.split("<extra_id_")
        ids.extend(self.encode(head).tolist())
        for tail in tails:
            number, closed, rest = tail.partition(">")
            if closed and number.isdigit():
                ids.append(self.sentinel_id(int(number)))
                ids.extend(self.encode(rest).tolist())
            else:
                ids.extend(self.encode("<extra_id_" + tail).tolist())
        return np.asarray(ids, dtype=np.int64)

    def decode(self, ids: ArrayLike) -> str:
        """Text of `ids`: sentinels as <extra_id_k>, padding and EOS as nothing.

        Raises:
            DataError: an id is outside the vocabulary (for example a padded row of the model's embedding).
        """
        text: list[str] = []
        run: list[int] = []
        for token in np.asarray(ids, dtype=np.int64).ravel().tolist():
            if not 0 <= token < self.size:
                raise DataError(f"id {token} is outside the vocabulary of {self.size}; mask ids from {self.size} on")
            if token >= self.pieces:
                text += [self._processor.decode(run), f"<extra_id_{self.size - 1 - token}>"]
                run = []
            elif token not in (PAD_ID, EOS_ID):
                run.append(token)
        return "".join([*text, self._processor.decode(run)])


def _load(model: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = processor.LoadFromSerializedProto(model)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{origin}: not a sentencepiece model ({error}); give a .model file") from error
    if not loaded:
        raise DataError(f"{origin}: not a sentencepiece model; give a .model file")
    got = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if got != (PAD_ID, EOS_ID, UNK_ID):
        raise DataError(
            f"{origin}: pad, eos, unk have ids {got}; needs {(PAD_ID, EOS_ID, UNK_ID)} as in T5's spiece.model; train "
            "it with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1"
        )
    return processor
