"""Tokens that freshly made models of transformers generate, and ours of the same weights under the same settings."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conf import compose
from model.build import build_model
from model.generate import GenerateOptions, generate
from model.hf.generation import our_options, read_generation
from model.hf.names import Kind
from parallel.mesh.axes import single_process
from tests.model.hf.folders import imported
from tests.model.hf.test_against_transformers import CLASSES, SIZES, SWITCH, batch, transformers
from trainer.checkpoint.reader import CheckpointReader, load_weights

pytestmark = pytest.mark.slow
VOCAB = 13  # few ids, so that rows end and repeat themselves
MODELS: dict[str, tuple[Kind, dict[str, Any]]] = {
    "t5": ("t5", {**SIZES, "vocab_size": VOCAB}),
    "t5_gated_untied": ("t5", {**SIZES, "vocab_size": VOCAB, "feed_forward_proj": "gated-gelu",
                               "tie_word_embeddings": False}),
    "switch": ("switch_transformers", {**SWITCH, "vocab_size": VOCAB}),
}  # fmt: skip
PLAIN: list[dict[str, Any]] = [
    {"max_length": 12},
    {"max_new_tokens": 12, "min_new_tokens": 7},
    {"max_length": 14, "min_length": 9, "repetition_penalty": 1.3},
    {"max_length": 14, "no_repeat_ngram_size": 2},
    {"max_length": 14, "min_length": 13, "no_repeat_ngram_size": 1},
    {"max_new_tokens": 11, "repetition_penalty": 0.7},
    {"max_new_tokens": 11, "bad_words_ids": [[3], [5, 5], [7, 2, 7]]},
]
BEAMS: list[dict[str, Any]] = [
    {"max_length": 12, "num_beams": 3, "length_penalty": penalty, "early_stopping": early}
    for penalty, early in product([-1.0, 0.0, 1.0, 2.0], [True, False, "never"])
]
BOTH: list[dict[str, Any]] = [
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "max_length": 16, "min_length": 6,
     "no_repeat_ngram_size": 3},
    {"num_beams": 2, "repetition_penalty": 1.5, "max_length": 12, "bad_words_ids": [[4, 4], [1, 6]]},
    {"num_beams": 5, "max_new_tokens": 9, "min_new_tokens": 4},
]  # fmt: skip


def talkative(name: str, folder: Path) -> Any:
    """A random model of the library that does not repeat one token for ever, and ends at times."""
    kind, settings = MODELS[name]
    torch.manual_seed(12)
    config = getattr(transformers, f"{CLASSES[kind]}Config")(**settings)
    made = getattr(transformers, f"{CLASSES[kind]}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter, value in made.named_parameters():
            if parameter.startswith("decoder") and parameter.endswith(("wo.weight", ".o.weight")):
                value *= 10
        made.lm_head.weight[1] *= 2
    made.save_pretrained(folder)
    return made


def ours_of(run: Path) -> Any:
    cfg = compose.load(run / "config.yaml")
    module = build_model(cfg, single_process(), device="cpu", dtype=torch.float32)
    load_weights(module, CheckpointReader(run / "checkpoints" / "step_00000000"), single_process())
    return module


def rows(tokens_BT: Tensor) -> list[list[int]]:
    """Up to and including the end of sequence."""
    found = []
    for row in tokens_BT.tolist():
        found.append(row[: row.index(1) + 1] if 1 in row else row)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_same_tokens(name: str, tmp_path: Path) -> None:
    theirs = talkative(name, tmp_path / "theirs")
    module = ours_of(imported(tmp_path / "theirs", tmp_path, "run"))
    x_BL, _ = batch(VOCAB)
    ended = set()
    for asked in (*PLAIN, *BEAMS, *BOTH):
        expected_BT = theirs.generate(x_BL, attention_mask=(x_BL != 0).long(), **asked)
        options = our_options(asked)
        beams = options.pop("beams", 1)
        options.pop("sample", None)
        mode = "beam" if beams > 1 else "greedy"
        chosen = GenerateOptions(**options, beams=beams, mode=mode, routing="eval")
        got_BT = generate(module, x_BL, options=chosen).tokens_BT
        # The library pads rows; rows that fill the length have no end.
        wanted = [row[: len(mine)] for row, mine in zip(rows(expected_BT[:, 1:]), rows(got_BT), strict=True)]
        assert rows(got_BT) == wanted, asked
        assert all(1 in row or len(row) == expected_BT.shape[1] - 1 for row in rows(got_BT)), asked
        ended |= {len(row) for row in wanted if 1 in row}
    assert len(ended) > 3, "otherwise ends are hardly tested"


def test_a_checkpoint_s_own_settings_give_the_same_tokens(tmp_path: Path) -> None:
    """As `generate` of both sides uses them when nothing is typed."""
    theirs = talkative("t5", tmp_path / "theirs")
    for name, value in {"num_beams": 3, "max_length": 10, "no_repeat_ngram_size": 2, "length_penalty": 0.5}.items():
        setattr(theirs.generation_config, name, value)
    theirs.generation_config.save_pretrained(tmp_path / "theirs")
    options = our_options(read_generation(tmp_path / "theirs").defaults)
    assert options.pop("sample", False) is False
    module = ours_of(imported(tmp_path / "theirs", tmp_path, "run"))
    x_BL, _ = batch(VOCAB)
    got_BT = generate(module, x_BL, options=GenerateOptions(**options, mode="beam")).tokens_BT
    assert rows(got_BT) == rows(theirs.generate(x_BL, attention_mask=(x_BL != 0).long())[:, 1:])
