"""Secrets do not reach text that is written or logged."""

from __future__ import annotations

import pytest

from conf.reading.redact import REDACTED, is_secret_name, redact, redact_text

ENVIRONMENT = {"WANDB_API_KEY": "wandb-secret", "HF_TOKEN": "hf_0123456789", "HOME": "/home/someone", "X_KEY": "short"}


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("WANDB_API_KEY", True),
        ("HF_TOKEN", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("CLIENT_SECRET", True),
        ("DB_PASSWORD", True),
        ("PASSWORD", True),
        ("hf_token", True),
        ("HOME", False),
        ("MONKEY", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("tokens", False),
    ],
)
def test_which_names_hold_secrets(name, secret):
    assert is_secret_name(name) is secret


def test_secrets_go_and_everything_else_stays():
    text = "key=wandb-secret at /home/someone in short: hf_0123456789!"
    assert redact_text(text, ENVIRONMENT) == f"key={REDACTED} at /home/someone in short: {REDACTED}!"


def test_a_secret_that_contains_another_leaves_no_rest():
    environment = {"A_KEY": "12345678", "B_KEY": "12345678-and-more"}
    assert redact_text("x 12345678-and-more y", environment) == f"x {REDACTED} y"


def test_nested_data():
    data = {
        "args": ["--key", "wandb-secret"],
        "pair": ("a", 1),
        "env": {"MY_TOKEN": "abc", "EMPTY_TOKEN": "", "N_KEY": 3},
    }
    clean = {
        "args": ["--key", REDACTED],
        "pair": ("a", 1),
        "env": {"MY_TOKEN": REDACTED, "EMPTY_TOKEN": "", "N_KEY": 3},
    }
    assert redact(data, ENVIRONMENT) == clean
    assert data["args"][1] == "wandb-secret"
