"""What a command line may name: the runs below ./runs, and fields, groups and their values for completion."""

from __future__ import annotations

import difflib
from pathlib import Path

from click.shell_completion import CompletionItem

from conf.errors import ConfigError
from conf.reading.fields import leaf_types
from conf.reading.meanings import choices, meanings
from conf.reading.paths import is_run, user_path
from conf.reading.presets import groups, presets
from conf.safety import shell

RUNS = Path("runs")
_SHOWN_RUNS = 4


def known_runs() -> list[str]:
    """Paths of the runs below ./runs, the newest first."""
    configs = [path for path in RUNS.glob("*/config.yaml") if not path.parent.name.startswith(".")]
    return [str(path.parent) for path in sorted(configs, key=lambda path: path.stat().st_mtime, reverse=True)]


def run_hint(typed: str = "") -> str:
    """What to type for a run: the one that `typed` looks like, else the newest ones."""
    runs = known_runs()
    if close := difflib.get_close_matches(typed, runs, n=1, cutoff=0.8):
        return shell.word(Path(close[0]))
    if not runs:
        return "`pointsman train name=first`, which makes runs/first"
    more = f" ({len(runs) - _SHOWN_RUNS} more in {RUNS}/)" if len(runs) > _SHOWN_RUNS else ""
    return ", ".join(shell.word(Path(run)) for run in runs[:_SHOWN_RUNS]) + more


def require_run(path: Path, *, field: str = "RUN") -> None:
    """Raise ConfigError, with the run that is meant, for a folder that is neither a run's nor a checkpoint's."""
    if not is_run(user_path(path)):
        needs = "a run folder or one of its checkpoints"
        raise ConfigError(field, got=str(path), needs=needs, hint=run_hint(str(path)))


def complete_run(incomplete: str) -> list[CompletionItem]:
    """Runs whose path starts so; the shell takes them as they are, so that one it would not take literally is none."""
    return [CompletionItem(run) for run in known_runs() if run.startswith(incomplete) and shell.word(run) == run]


def complete_override(incomplete: str) -> list[CompletionItem]:
    """Keys that start so, ending in `=`; behind a key its values. Whole sections until a point is typed."""
    key, equals, value = incomplete.partition("=")
    if equals:
        if key not in groups() and key not in leaf_types():
            return []
        values = presets(key) if key in groups() else choices(key)
        if not values:
            return [CompletionItem(value, type="file")]  # most texts are; numbers nobody completes
        return [CompletionItem(f"{key}={each}") for each in values if each.startswith(value)]
    section = incomplete.rpartition(".")[0]
    keys = [*(f"{group}=" for group in groups()), *(f"{field}=" for field in leaf_types())]
    if not section:
        keys = [*(key for key in keys if "." not in key), *(f"{group}." for group in groups())]
    return [CompletionItem(key) for key in keys if key.startswith(incomplete)]


def complete_field(incomplete: str) -> list[CompletionItem]:
    """Fields and sections that start so, with their meanings."""
    return [CompletionItem(path, help=text) for path, text in meanings().items() if path.startswith(incomplete)]
