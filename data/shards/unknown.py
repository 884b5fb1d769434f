"""What a person is told about characters that a tokenizer does not know."""

from __future__ import annotations

from conf.schema import DataConfig
from conf.sources import SOURCES
from data.batch import UNK_ID, IntArray
from data.shards.shards import SAMPLE, ShardIndex


def unknown_note(index: ShardIndex, data: DataConfig) -> str | None:
    """How many characters of prepared text are unknown, and what to do about it; None if none is or was counted."""
    unknown, characters = (sum(getattr(shard, name) for shard in index.shards) for name in ("unknown", "characters"))
    if not unknown:
        return None
    found = list(dict.fromkeys("".join(shard.unknown_sample for shard in index.shards)))[:SAMPLE]
    shown = " ".join(character if character.isprintable() else f"U+{ord(character):04X}" for character in found)
    return (
        f"unknown characters: {unknown:,} of {characters:,} ({unknown / characters:.2%}), such as {shown}; to "
        f"the model they are all the same; {_advice(data)}"
    )


def unknown_tokens_note(tokens: IntArray, data: DataConfig) -> str | None:
    """The same of the tokens of a stream, whose text is gone."""
    unknown = int((tokens == UNK_ID).sum())
    if not unknown:
        return None
    return (
        f"unknown characters: {unknown:,} of {len(tokens):,} held-out tokens ({unknown / len(tokens):.2%}) stand for "
        f"characters that the tokenizer does not know; {_advice(data)}"
    )


def _advice(data: DataConfig) -> str:
    if data.tokenizer is not None or SOURCES[data.source].kind == "shards":
        return "a tokenizer with byte fallback knows every character"
    return "data.byte_fallback=true spells them in bytes, data.character_coverage=1 makes pieces of all of them"
