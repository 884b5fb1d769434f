"""What a run folder knows of its W&B runs, in `wandb/pieces.json`: its id and every piece that was recorded under it.

A W&B run that is uploaded begins at its first row. So two recordings under one id overwrite each other on the server,
unless the second was told by the server how far the first had come. A run folder therefore has an id of its own, and
each recording another one made from it: `k3v9x2qm`, `k3v9x2qm-2`, ... Only what continues online goes on under the id
of the piece before it. All pieces are in one W&B group.
"""

from __future__ import annotations

import json
import secrets
import string
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from conf.safety.regular import read_regular
from conf.safety.writing import write_whole

Mode = Literal["online", "offline"]
# open: being recorded, or cut off; sent: all of it is on the server; kept: all of it is in files, to be uploaded;
# replaced: recorded once more by the piece after it.
Ending = Literal["open", "sent", "kept", "replaced"]
_LETTERS = string.ascii_lowercase + string.digits
_ID_LENGTH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One recording, of one process."""

    id: str
    mode: Mode
    folder: str  # where W&B keeps its files
    ending: Ending
    url: str | None = None
    first_line: int = 0  # of the W&B run's history: how many rows the pieces before it left there

    @property
    def is_kept(self) -> bool:
        """Whether rows are in its files that no server has; what was cut off offline counts."""
        return self.ending == "kept" or (self.mode == "offline" and self.ending == "open")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """All recordings of a run folder, oldest first."""

    id: str
    pieces: tuple[Piece, ...] = ()
    note: str | None = None  # why the newest piece is offline although online was asked for

    def id_to_continue(self, *, again: bool) -> str | None:
        """The id under which an online recording goes on: that of the newest piece, if the server has it.

        A piece that is kept is left to its upload, which would write over what follows under its id; but not by what
        records its rows `again` and so replaces it.
        """
        last = self.pieces[-1] if self.pieces else None
        endings = ("open", "sent", "kept") if again else ("open", "sent")
        return last.id if last and last.mode == "online" and last.ending in endings else None

    def fresh_id(self) -> str:
        """An id that no piece has used."""
        used = {piece.id for piece in self.pieces}
        fresh = (self.id if number == 1 else f"{self.id}-{number}" for number in range(1, len(used) + 2))
        return next(name for name in fresh if name not in used)

    def with_piece(self, piece: Piece, *, note: str | None = None) -> Pieces:
        """`piece` is new."""
        return replace(self, pieces=(*self.pieces, piece), note=note)

    def ended(self, ending: Ending) -> Pieces:
        """The newest piece ended."""
        return replace(self, pieces=(*self.pieces[:-1], replace(self.pieces[-1], ending=ending)))


def new_id() -> str:
    """An id that no other run has."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH))


def read_pieces(path: Path) -> Pieces | None:
    """None where there is no such file, or none that can be read: the run then goes on under a new id."""
    try:
        data = json.loads(read_regular(path))
        pieces = tuple(Piece(**piece) for piece in data["pieces"])
        return Pieces(id=data["id"], pieces=pieces, note=data["note"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_pieces(path: Path, pieces: Pieces) -> None:
    """Replace the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(pieces), indent=2) + "\n")
