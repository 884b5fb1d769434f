"""A third source of documents, as docs/extending.md adds one: verses by a rule, `data.seed` of them first."""

from __future__ import annotations

from collections.abc import Iterator

from conf.schema import DataConfig
from conf.sources import SOURCES, SourceRow
from data.sources.texts import Texts
from tests.data.helpers import sentences

VERSES = 60


def texts(data: DataConfig) -> Texts:
    def read() -> Iterator[str]:
        return (sentences(3 + n % 7, seed=data.seed + n) for n in range(VERSES))

    return Texts(read=read, state=data.seed)


def register() -> None:
    """The row, in this process."""
    SOURCES["poems"] = SourceRow(kind="documents", module=__name__)
