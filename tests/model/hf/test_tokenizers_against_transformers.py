"""Exported tokenizers as the installed transformers loads them: 1,000 texts with the same ids, also after re-import.

Needs the extra `hf`, as test_against_transformers.py does.
"""

from __future__ import annotations

import gzip
import inspect
import json
import string
import textwrap
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from conf import compose
from data.text.sample_texts import CODE, PROSE, sample_texts
from data.text.spiece import BLANK, USER_DEFINED
from data.text.tokenizer import Tokenizer
from data.text.train_tokenizer import text_lines, train_tokenizer
from tests.data.text.models import t5_like, with_pieces
from trainer.commands.export_hf import export_run
from trainer.commands.import_hf import import_run

transformers = pytest.importorskip(
    "transformers", reason="transformers, the optional extra hf, is not installed (make test-hf installs it)"
)
pytestmark = pytest.mark.slow
MULTILINGUAL = Path(__file__).parents[4] / "shared" / "corpus" / "multilingual"
LINES = list(text_lines([*PROSE * 3, *CODE * 3, inspect.getsource(textwrap)]))
MODELS: dict[str, Callable[[], bytes]] = {
    "ours": lambda: train_tokenizer(LINES, pieces=700),
    "ours_bytes": lambda: train_tokenizer(LINES, pieces=900, byte_fallback=True),
    "t5": lambda: t5_like(LINES, vocab_size=700),
    "mt5": lambda: with_pieces(
        t5_like(LINES, vocab_size=700), [(f"{BLANK}<extra_id_{k}>", USER_DEFINED) for k in range(29, -1, -1)]
    ),
}


def many_texts(tokenizer: Tokenizer) -> list[str]:
    """1,000 and more: those of the export, code, and (where the shared corpus is) prose in 15 languages."""
    texts = [*sample_texts(tokenizer), *PROSE, inspect.getsource(string), inspect.getsource(textwrap)[:8_000]]
    code = inspect.getsource(textwrap).split("\n")
    texts += ["\n".join(code[n : n + 1 + n % 12]) for n in range(0, 2 * (1_000 - len(texts)), 2)][: 1_000 - len(texts)]
    texts += ["\n".join(code[n : n + 5]) for n in range(1_000 - len(texts))]
    for path in sorted(MULTILINGUAL.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"][:2_000] for line in islice(lines, 20)]
    return texts


@pytest.mark.parametrize("name", MODELS)
def test_a_thousand_texts_have_the_same_ids(name: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    torch.manual_seed(3)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    config = transformers.T5Config(vocab_size=1_000, decoder_start_token_id=0, **sizes)
    transformers.T5ForConditionalGeneration(config).save_pretrained(theirs)
    (theirs / "spiece.model").write_bytes(MODELS[name]())
    (theirs / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 0 if name == "mt5" else 30}))

    def tokenizer_of(run: Path) -> Tokenizer:
        sentinels = compose.load(run / "config.yaml").data.sentinels
        return Tokenizer.from_file(run / "tokenizer.model", sentinels=sentinels)

    run = import_run(theirs, runs_dir=tmp_path, name="run")
    ours = tokenizer_of(run)
    assert ours.sentinels == 30
    folder, _ = export_run(run, tmp_path / "exported", dtype=torch.float32, shard_bytes=10**9)
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    texts = many_texts(ours)
    assert len(texts) >= 1_000
    unlike = [text for text in texts if loaded(text).input_ids != [*ours.encode_with_sentinels(text).tolist(), 1]]
    assert unlike == []
    assert loaded(texts).input_ids == [loaded(text).input_ids for text in texts]
    for text in texts[::10]:
        ids = ours.encode_with_sentinels(text).tolist()
        assert 2 in ids or loaded.decode(ids) == ours.decode(ids)
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2)
    assert loaded.convert_tokens_to_ids("<extra_id_7>") == ours.sentinel_id(7)
    loaded.save_pretrained(tmp_path / "saved")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved(texts[:200]).input_ids == loaded(texts[:200]).input_ids

    again = tokenizer_of(import_run(folder, runs_dir=tmp_path, name="again"))
    assert (again.fingerprint, again.vocabulary) == (ours.fingerprint, ours.vocabulary)
    assert all((again.encode(text) == ours.encode(text)).all() for text in texts[:100])
    reloaded = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    assert reloaded.generate(**loaded(["un<extra_id_0>able", "a"], return_tensors="pt", padding=True)).shape[0] == 2
