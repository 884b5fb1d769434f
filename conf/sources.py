"""The table of sources of text: what a configuration must know of each before anything is read. One row per source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# documents: read whole and tokenised to shards first; shards: that was done before; stream: read while training
SourceKind = Literal["documents", "shards", "stream"]
PLACES = ("files", "validation_files", "hub_files")  # fields of `DataConfig` that say where text lies

SHARDS_INDEX = "index.json"  # of a folder of shards; written last


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """A source by `data.source`. A field of PLACES that is set although the source does not read it is refused."""

    kind: SourceKind
    module: str | None = None  # kind documents: holds `texts(data) -> data.sources.texts.Texts`
    reads: tuple[str, ...] = ()  # of PLACES
    needs: tuple[str, ...] = ()  # fields of `DataConfig` of which one must be set
    holding: str = ""  # what the first of them must hold
    example: str = ""  # of setting it
    preset: str | None = None  # of conf/data/ that shows the source; None: the one of its name


SOURCES: dict[str, SourceRow] = {
    "stdlib": SourceRow(kind="documents", module="data.sources.stdlib", reads=("validation_files",)),
    "text": SourceRow(
        kind="documents",
        module="data.sources.local",
        reads=("files", "validation_files"),
        needs=("files",),
        holding="your text's files",
        example="data.files='docs/*.jsonl'",
    ),
    "shards": SourceRow(
        kind="shards",
        reads=("files",),
        needs=("files",),
        holding="directories written by `pointsman prepare`",
        example="data.files=shards/en",
    ),
    "hub": SourceRow(
        kind="stream",
        reads=("hub_files", "validation_files"),
        needs=("hub_path", "hub_files"),
        holding="a dataset of the hub",
        example="data=c4, or data.hub_path=allenai/c4",
        preset="c4",
    ),
}
