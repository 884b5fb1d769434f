"""What `pointsman config` prints: still YAML, with the facts a person would work out by hand."""

from __future__ import annotations

import re

import pytest

from conf.compose import compose, load
from launch.describe import describe, human


def fact(text: str, name: str) -> str:
    return next(line.split(name, 1)[1].strip() for line in text.splitlines() if line.startswith(f"#   {name} "))


def test_the_text_is_a_configuration_that_loads_again(tmp_path):
    cfg = compose(["model=switch_base_16", "parallel.tp=2", "launch.nproc=4"])
    (tmp_path / "config.yaml").write_text(describe(cfg))
    assert load(tmp_path / "config.yaml") == cfg


def test_the_facts_of_a_run_of_four_ranks():
    text = describe(compose(["model=switch_base_8", "parallel=expert_model_data", "launch.nproc=4"]))
    assert fact(text, "ranks").startswith("4 = 4 per node x 1 node(s)")
    assert fact(text, "dense parameters") == "tp 2 x dp 2"
    assert fact(text, "experts") == "etp 2 x ep 2 x edp 1: 4 of 8 experts of a layer on each rank"
    assert fact(text, "micro-batch") == "64 sequences per rank, 1 per step"
    assert fact(text, "window").startswith("568 tokens of text become 512 encoder and 114 decoder tokens")
    assert fact(text, "routing group").startswith("2 whole sequences")
    assert fact(text, "encoder routing") == (
        "groups of 1,024 tokens, 160 slots per expert (256 in evaluation): 1.25 per token"
    )
    assert fact(text, "decoder experts") == "layers 1, 3, 5, 7, 9, 11 (from 0) of 12"
    assert re.match(r"\d+M \(\d{3},\d{3},\d{3}\)", fact(text, "parameters"))


def test_a_dense_model_has_no_routing_and_the_whole_model_active():
    text = describe(compose(["model=t5_base"]))
    facts, _, settings = text.partition("\n\n")
    assert facts.startswith("# What follows from the settings below:")
    assert "routing" not in facts
    assert settings.startswith("format: ")
    assert fact(text, "active per token").startswith("223M")


def test_how_many_embeddings_there_are_is_said():
    assert fact(describe(compose(["model=t5_base"])), "embedding") == "shared by both stacks; output matrix tied to it"
    apart = compose(["model=t5_v1_1_base", "model.share_embeddings=false"])
    assert fact(describe(apart), "embedding") == "one per stack; output matrix of its own"


def test_a_minimum_capacity_that_dominates_is_pointed_out():
    wasteful = ["model=switch_base_256", "moe.group_sequences=1"]
    assert re.search(
        r"Warning: decoder experts compute 9\.0 rows per token.*at least 4 slots", describe(compose(wasteful))
    )
    assert "Warning" not in describe(compose(["model=switch_base_256"]))


@pytest.mark.parametrize(
    ("number", "text"), [(5, "5"), (999, "999"), (7.41e9, "7.41B"), (1.571e12, "1.57T"), (2.5e4, "25K")]
)
def test_numbers_for_people(number, text):
    assert human(number) == text
