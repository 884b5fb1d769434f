"""Takes secrets out of text and data before it is written or logged."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_SHORTEST_SECRET = 8  # a shorter value would also occur in innocent text


def is_secret_name(name: str) -> bool:
    """Whether a variable or field of this name holds a secret (`WANDB_API_KEY`, `HF_TOKEN`, `DB_PASSWORD`)."""
    return _SECRET_NAME.search(name) is not None


def secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of secret variables of the environment, longest first (one may contain another)."""
    environment = os.environ if environment is None else environment
    found = {v for name, v in environment.items() if is_secret_name(name) and len(v) >= _SHORTEST_SECRET}
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def redact_text(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` with every secret of the environment replaced by ``[redacted]``."""
    for secret in secrets(environment):
        text = text.replace(secret, REDACTED)
    return text


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
