"""Secrets do not reach text that is printed or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.safety.redact import REDACTED, by_variable, fits, is_secret_name, redact, redact_text, secrets

ENVIRONMENT = {"WANDB_API_KEY": "wandb-secret", "HF_TOKEN": "hf_0123456789", "HOME": "/home/someone", "X_KEY": "short"}


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "CLIENT_SECRET", "DB_PASSWORD", "PASSWORD", "hf_token",
     "GITHUB_PAT", "OPENAI_APIKEY", "OPENAI_API_KEY2", "PGPASSWORD", "MYSQL_PWD", "DB_PASS", "dbPassword", "apiKey",
     "HFToken", "SECRET_KEY_BASE", "GOOGLE_CREDENTIALS", "SLACK_WEBHOOK_URL", "SENTRY_DSN", "SSH_PASSPHRASE",
     "CI_JOB_JWT", "X-Amz-Signature", "logging.wandb_api_key", "KUBE_PW", "LDAP_BINDPW", "GPG_KEYPHRASE",
     "ADMIN_PASSCODE", "USER_PASSWORDS", "X_ACCESS_KEYS", "REFRESH_TOKENS", "PRIVATE_KEY_PEM", "ENCRYPTION_KEY_V2",
     "GITHUB_TOKEN_OLD", "SLURM_JWT"],
)  # fmt: skip
def test_names_that_hold_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["HOME", "MONKEY", "TOKENIZERS_PARALLELISM", "tokens", "train.tokens", "PWD", "OLDPWD", "PATH", "KEYBOARD",
     "COMPASS", "SSH_AUTH_SOCK", "keep_last", "XAUTHORITY", "PATTERN", "data.tokenizer", "text_field", "SLURM_JOB_ID",
     "MAX_TOKENS", "KEYS", "API_V", "TEST", "V2", "NEW_VALUE", "train.tokens_old"],
)  # fmt: skip
def test_names_that_do_not(name):
    assert not is_secret_name(name)


def test_secrets_go_and_everything_else_stays():
    text = "key=wandb-secret at /home/someone in short: hf_0123456789!"
    assert redact_text(text, ENVIRONMENT) == f"key={REDACTED} at /home/someone in short: {REDACTED}!"


def test_a_secret_that_contains_another_leaves_no_rest():
    environment = {"A_KEY": "12345678", "B_KEY": "12345678-and-more"}
    assert redact_text("x 12345678-and-more y", environment) == f"x {REDACTED} y"


def test_a_secret_is_found_where_it_is_escaped():
    secret = 'pass"word\\ \u00e9/%'
    environment = {"DB_PASSWORD": secret}
    for text in (secret, json.dumps(secret), repr(secret), "https://host/pass%22word%5C%20%C3%A9%2F%25"):
        assert "word" not in redact_text(text, environment), text


def test_a_secret_that_became_a_path_is_found():
    environment = {"SLACK_WEBHOOK_URL": "https://hooks.slack.com/services/T0/B0/xyz"}
    assert redact_text(f"got '{Path(environment['SLACK_WEBHOOK_URL'])}'", environment) == f"got '{REDACTED}'"


def test_every_line_of_a_key_of_several_lines_is_one():
    environment = {"SSH_PRIVATE_KEY": "-----BEGIN-----\nabcdefgh12345678\nsh\n"}
    assert redact_text("line abcdefgh12345678", environment) == f"line {REDACTED}"
    assert "sh" not in secrets(environment)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:s3cr3t@host/x", f"https://{REDACTED}@host/x"),
        ("/cwd/https:/me:s3@cr3t@host/x", f"/cwd/https:/{REDACTED}@host/x"),  # what a path makes of it
        ("s3://b/x?a=1&X-Amz-Signature=abc&b=2", f"s3://b/x?a=1&X-Amz-Signature={REDACTED}&b=2"),
        ("https://maps/?key=abc", f"https://maps/?key={REDACTED}"),
        ("api_key=abc, --db-password=x y", f"api_key={REDACTED}, --db-password={REDACTED} y"),
        ("ghp_0123456789abcdefABCD", REDACTED),
        ("docker://u:p@reg/image", f"docker://{REDACTED}@reg/image"),
    ],
)
def test_secrets_are_known_by_their_form(text, clean):
    assert redact_text(text, {}) == clean


@pytest.mark.parametrize(
    "text",
    ["sorted(x, key=len)", "a@b.c", "https://host/me@work", "train.tokens=5", "data.tokenizer=a.model", "sk-8",
     "https://x:${oc.env:TOKEN}@host", "api_key=${oc.env:K}", "model.d_kv=8", "ssh_key is in ~/.ssh"],
)  # fmt: skip
def test_innocent_text_stays(text):
    assert redact_text(text, {}) == text


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


def test_a_secret_of_a_variable_is_named_in_an_override():
    assert by_variable("a=https://wandb-secret@h", ENVIRONMENT) == "a=https://${oc.env:WANDB_API_KEY}@h"
    assert by_variable("a=short", ENVIRONMENT) == "a=short"
    assert by_variable("a=secret-line", {"A_KEY": "secret-line\n"}) == "a=secret-line"  # it would become two lines


def test_what_is_left_of_a_value_fits_that_value_alone():
    assert fits(f"https://{REDACTED}@host", "https://a:b@host")
    assert not fits(f"https://{REDACTED}@host", "https://a:b@other")
    assert fits([REDACTED, "x"], ["anything", "x"])
    assert not fits([REDACTED], ["a", "b"])
    assert fits(3, 3)
    assert not fits("3", 3)
    assert not fits(None, "x")
