"""Checkpoints of the Hugging Face hub: the files of one that an import reads, in the cache of the hub's own client."""

from __future__ import annotations

import os
import re
from pathlib import Path

from conf.errors import CheckpointError, ConfigError

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "spiece.model",
    "tokenizer.model", "spm.model", "tokenizer_config.json",
)  # fmt: skip
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")  # fetched where there is nothing safer


def is_repository(name: str) -> bool:
    """Whether `name` has the form org/name and is nothing on this machine."""
    return _REPOSITORY.fullmatch(name) is not None and not os.path.exists(name)


def download(repository: str, *, revision: str | None = None) -> Path:
    """The folder of a repository's files, fetched unless they are in the cache; no code is among them.

    `revision`: a branch, tag or commit. Without a network what is in the cache serves. Raises ConfigError, which says
    what to do, where the repository cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(*patterns: str) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))

    try:
        folder = fetch(*_FILES)
        return folder if any(folder.glob("*.safetensors")) else fetch(*_FILES, *_PICKLED)
    except GatedRepoError as error:
        needs = "a repository that this machine may read: the hub asks for an agreement and a token"
        raise _unavailable(repository, needs, "accepting it on the repository's page, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        needs = "a public repository of the hub, or one that this machine's token may read"
        raise _unavailable(repository, needs, "the name as on the repository's page, or `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise ConfigError("--revision", got=revision, needs=f"a branch, tag or commit of {repository}") from error
    except HFValidationError as error:
        raise _unavailable(repository, f"a name that the hub allows ({error})", "org/name") from error
    except LocalEntryNotFoundError as error:
        reason = _first_line(error.__cause__ or error)
        needs = f"a folder here, a repository in the hub's cache, or a network to fetch it ({reason})"
        local = repository.partition("/")[2]
        hint = f"`hf download {repository} --local-dir {local}` where there is one, then import-hf with that folder"
        raise _unavailable(repository, needs, hint) from error
    except OSError as error:  # the client's own HTTP errors, a full disk
        raise CheckpointError(f"{repository}: cannot be downloaded ({_first_line(error)})") from error


def _unavailable(repository: str, needs: str, hint: str) -> ConfigError:
    return ConfigError("DIR", got=repository, needs=needs, hint=hint)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
