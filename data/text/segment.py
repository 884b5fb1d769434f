"""The best segmentation of a text by a unigram model, as Hugging Face's `tokenizers` finds it.

sentencepiece adds scores in single precision. Of two segmentations of equal probability (13 blanks as 12 + 1 or as
1 + 12) it takes the one or the other, as sums over all that stands before are rounded, and `tokenizers`, which adds in
double precision, may take the other one. Sums here are made as theirs are, to the last bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from data.batch import UNK_ID
from data.text.spiece import NORMAL, USER_DEFINED

_DECIMALS = 7  # of a score: as many as single precision has, and few enough for their reader of JSON to lose none
_UNKNOWN_PENALTY = 10.0  # an unknown character scores so much below the worst piece


class Scores(NamedTuple):
    """What pieces are worth."""

    pieces: dict[str, float]  # those that text can become
    never: float  # of the others: less than any other way to write them

    @property
    def unknown(self) -> float:
        """Of an unknown character."""
        return self.never - _UNKNOWN_PENALTY


def scores_of(proto: Any) -> Scores:
    """The scores of a unigram model, as sentencepiece counts them: declared pieces get a bonus."""
    best = max((piece.score for piece in proto.pieces if piece.type == NORMAL), default=0.0)
    scores, longest = {}, 0
    for piece in proto.pieces:
        if piece.type == NORMAL:
            scores[piece.piece] = round(piece.score, _DECIMALS)
        elif piece.type == USER_DEFINED:
            scores[piece.piece] = round(len(piece.piece.encode()) * best - 0.1, _DECIMALS)
        else:
            longest = max(longest, len(piece.piece))
    return Scores(scores, float(round(longest * min(scores.values(), default=0.0) - 1.0)))


class Segmenter:
    """Ids of normalised text under a unigram model (`data.text.spiece`)."""

    def __init__(self, proto: Any) -> None:
        ids = {piece.piece: token for token, piece in enumerate(proto.pieces)}
        scores = scores_of(proto)
        self._pieces = {text: (score, ids[text]) for text, score in scores.pieces.items()}
        self._unknown = scores.unknown
        self._lengths = sorted({len(text) for text in self._pieces})
        self._bytes = [ids[f"<0x{n:02X}>"] for n in range(256)] if proto.trainer_spec.byte_fallback else []

    def ids(self, text: str) -> list[int]:
        """The segmentation with the largest sum of scores; unknown characters in a row are one unknown piece."""
        end = len(text)
        totals: list[float | None] = [None] * (end + 1)  # of the best segmentation up to here
        last: list[tuple[int, int]] = [(0, 0)] * (end + 1)  # where its last piece begins, and its id
        totals[0] = 0.0
        for begin in range(end):
            before = totals[begin]
            if before is None:
                continue
            known = False
            for length in self._lengths:
                found = self._pieces.get(text[begin : begin + length]) if begin + length <= end else None
                if found is None:
                    continue
                known |= length == 1
                best = totals[begin + length]
                if best is None or before + found[0] > best:
                    totals[begin + length], last[begin + length] = before + found[0], (begin, found[1])
            if not known:
                best = totals[begin + 1]
                if best is None or before + self._unknown > best:
                    totals[begin + 1], last[begin + 1] = before + self._unknown, (begin, UNK_ID)
        return self._read_back(text, last)

    def _read_back(self, text: str, last: list[tuple[int, int]]) -> list[int]:
        ids: list[int] = []
        end = len(text)
        while end > 0:
            begin, token = last[end]
            if token == UNK_ID and self._bytes:
                ids += [self._bytes[byte] for byte in reversed(text[begin:end].encode())]
            elif not (token == UNK_ID and ids and ids[-1] == UNK_ID):
                ids.append(token)
            end = begin
        return ids[::-1]
