"""Takes secrets out of text and data before they are printed or written: the one rule for every place where that is.

A secret is known by the name of the variable or field that holds it, or by its own form: what stands before the @ of a
URL, what a query or an assignment gives under a secret's name, and tokens that begin as well-known services' do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

REDACTED = "[redacted]"
_SHORTEST_SECRET = 8  # a shorter value would also occur in innocent text
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ANYWHERE = {
    "SECRET", "SECRETS", "PASSWORD", "PASSWORDS", "PASSWD", "PASSCODE", "PASSPHRASE", "KEYPHRASE", "CREDENTIAL",
    "CREDENTIALS", "APIKEY", "WEBHOOK",
}  # fmt: skip
_LAST = {
    "KEY", "PAT", "PASS", "PW", "PWD", "AUTH", "AUTHORIZATION", "BEARER", "COOKIE", "DSN", "JWT", "SIG", "SIGNATURE",
}  # fmt: skip
_ENDINGS = ("TOKEN", "APIKEY", "ACCESSKEY", "PRIVATEKEY", "SECRET", "PASSWORD", "PASSWD", "PW")
_SEVERAL = {"KEYS", "TOKENS"}  # secret behind one of the next alone: tokens are counted as well
_OF_SECRETS = {"API", "ACCESS", "AUTH", "REFRESH", "PRIVATE", "ENCRYPTION", "SIGNING"}
_WHICH = {"V", "OLD", "NEW", "DEV", "TEST", "PROD", "PEM", "VALUE"}  # words behind a name: TOKEN_V2, PRIVATE_KEY_PEM
_NOT = {"PWD"}  # the shell's working directory
_ENVIRONMENT = "${oc.env:"  # how a setting names a variable instead of holding its value
_USER = re.compile(r"""(\b[a-zA-Z][\w+.-]*:/{1,3})([^/\s'"]+)@""")  # one slash: what is left of a URL taken for a path
_NAMED = re.compile(r"""(?<![\w.])([A-Za-z_][\w.-]*)=([^\s'",;&)\]}]+)""")
_TOKENS = re.compile(
    r"\b(?:gh[opsur]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|xox[a-z]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.eyJ[\w-]+\.[\w-]+)"
)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a variable or field of this name holds a secret (`GITHUB_PAT`, `OPENAI_APIKEY`, `dbPassword`)."""
    words = [word.upper() for word in _WORD.findall(name)]
    while words and words[-1] in _WHICH:
        words.pop()
    if not words or name.upper() in _NOT:
        return False
    if words[-1] in _SEVERAL:
        return not _OF_SECRETS.isdisjoint(words)
    return words[-1] in _LAST or words[-1].endswith(_ENDINGS) or not _ANYWHERE.isdisjoint(words)


def secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Values of secret variables of the environment, and the variable of each; longest first: one may contain another.

    Of a value of several lines each line is one.
    """
    environment = os.environ if environment is None else environment
    found = {
        part: name
        for name, value in environment.items()
        if is_secret_name(name)
        for part in (value.strip(), *value.split("\n"))
        if len(part) >= _SHORTEST_SECRET
    }
    return dict(sorted(found.items(), key=lambda item: (-len(item[0]), item[0])))


def redact_text(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` with every secret replaced by ``[redacted]``, also escaped as in JSON, Python, a URL or a path."""
    for secret in secrets(environment):
        for form in _forms(secret):
            text = text.replace(form, REDACTED)
    text = _USER.sub(_without_user, text)
    text = _NAMED.sub(_without_named, text)
    return _TOKENS.sub(REDACTED, text)


@lru_cache(maxsize=256)
def _forms(secret: str) -> tuple[str, ...]:
    escaped = (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe=""), quote(secret))
    escaped += (secret.replace("//", "/"),)  # what a path makes of a URL
    return tuple(dict.fromkeys(escaped))


def _without_user(match: re.Match[str]) -> str:
    return match[0] if _ENVIRONMENT in match[2] else f"{match[1]}{REDACTED}@"


def _without_named(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    # `key=` outside a query stands for an argument of sorted, say, more often than for a secret
    plain = name.lower() == "key" and match.string[match.start() - 1 : match.start()] not in ("?", "&")
    if plain or value.startswith((_ENVIRONMENT, REDACTED)) or not is_secret_name(name):
        return match[0]
    return f"{name}={REDACTED}"


def redact(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """A copy of nested data with secrets gone: texts that contain one, and text under a secret's name."""
    if isinstance(value, str):
        return redact_text(value, environment)
    if isinstance(value, Mapping):
        return {
            key: REDACTED
            if isinstance(key, str) and is_secret_name(key) and isinstance(item, str) and item
            else redact(item, environment)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(redact(item, environment) for item in value)
    return value


def fits(redacted: Any, value: Any) -> bool:
    """Whether `redacted`, read from a file, can have been made of `value`: what is gone may have been anything."""
    if isinstance(redacted, list) and isinstance(value, list):
        return len(redacted) == len(value) and all(map(fits, redacted, value))
    if isinstance(redacted, str) and isinstance(value, str) and REDACTED in redacted:
        pattern = ".*".join(map(re.escape, redacted.split(REDACTED)))
        return re.fullmatch(pattern, value, re.DOTALL) is not None
    return bool(redacted == value)


def by_variable(word: str, environment: Mapping[str, str] | None = None) -> str:
    """An override in which a secret that the environment holds is named, not told: `${oc.env:NAME}` in its place.

    Composing it again gives the same setting wherever the variable is set.
    """
    environment = os.environ if environment is None else environment
    for secret, name in secrets(environment).items():
        if name.isidentifier() and environment[name] == secret:
            word = word.replace(secret, f"{_ENVIRONMENT}{name}}}")
    return word
