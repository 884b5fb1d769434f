"""The generation settings of a checkpoint: what of generation_config.json and task_specific_params we decode by.

They stay as the library wrote them (in a run: in its verified state.json, from where an export gives them back) and
are turned into our options when something is generated. What has no counterpart here is named at import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from conf.errors import CheckpointError, ConfigError
from model.hf.files import read_json

FILE = "generation_config.json"
TASKS = "task_specific_params"
# What the library fills in where a checkpoint is silent, but for the length (20 there), in our words.
DEFAULTS: dict[str, Any] = {"length_rule": "power", "length_penalty": 1.0, "early_stopping": "false", "top_k": 50}


class Known(NamedTuple):
    """One setting that is followed: our field of `GenerateOptions` ("prefix", "beams", "sample": of the command)."""

    ours: str
    is_right: Callable[[Any], bool]
    needs: str
    convert: Callable[[Any], Any] = lambda value: value


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(ids, list) and ids and all(type(each) is int and each >= 0 for each in ids) for ids in value
    )


_EARLY = {True: "true", False: "false", "never": "never"}
# A later row of the same field wins, as in the library; the start token counts in its lengths but not in ours.
KNOWN: dict[str, Known] = {
    "max_length": Known("max_length", _whole(2), "a whole number, at least 2", lambda n: n - 1),
    "max_new_tokens": Known("max_length", _whole(1), "a whole number, at least 1"),
    "min_length": Known("min_length", _whole(0), "a whole number, at least 0", lambda n: max(n - 1, 0)),
    "min_new_tokens": Known("min_length", _whole(0), "a whole number, at least 0"),
    "num_beams": Known("beams", _whole(1), "a whole number, at least 1"),
    "do_sample": Known("sample", lambda value: isinstance(value, bool), "true or false"),
    "length_penalty": Known("length_penalty", _number, "a number", float),
    "early_stopping": Known(
        "early_stopping",
        lambda value: isinstance(value, bool) or value == "never",
        'true, false or "never"',
        _EARLY.__getitem__,
    ),
    "no_repeat_ngram_size": Known("no_repeat_ngram", _whole(0), "a whole number, at least 0"),
    "repetition_penalty": Known(
        "repetition_penalty", lambda value: _number(value) and value > 0, "a number above 0", float
    ),
    "bad_words_ids": Known("bad_words", _words, "lists of token ids", lambda value: tuple(map(tuple, value))),
    "temperature": Known("temperature", lambda value: _number(value) and value > 0, "a number above 0", float),
    "top_k": Known("top_k", _whole(0), "a whole number, at least 0"),
    "top_p": Known("top_p", lambda value: _number(value) and 0 < value <= 1, "a number above 0 and at most 1", float),
    "prefix": Known("prefix", lambda value: isinstance(value, str), "text"),
}
# What changes no token, and values at which other settings change none.
_WITHOUT_EFFECT = (
    "cache_implementation", "cache_config", "max_cache_len", "return_dict_in_generate",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "compile_config", "disable_compile",
    "transformers_version", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "remove_invalid_values",
    "bos_token_id", "low_memory", "prefill_chunk_size", "max_matching_ngram_size",
)  # fmt: skip
_NEUTRAL: dict[str, Any] = {
    "typical_p": 1.0, "encoder_no_repeat_ngram_size": 0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0, "num_beam_groups": 1, "diversity_penalty": 0.0, "num_return_sequences": 1,
    "guidance_scale": 1.0, "penalty_alpha": 0.0, "use_cache": True,  # False: a Switch routes what it wrote once more
    "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip
# In a config.json, among the settings of the model; older checkpoints have them there.
_OF_GENERATION = (*KNOWN, *(name for name in _NEUTRAL if not name.endswith("token_id")), "forced_bos_token_id",
                  "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
                  "exponential_decay_length_penalty")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Settings under the library's names; `tasks` by name, each over `defaults`."""

    defaults: dict[str, Any]
    tasks: dict[str, dict[str, Any]]

    def settings(self, task: str | None) -> dict[str, Any]:
        """What holds for a task; None: no task. Raises ConfigError for one that the checkpoint does not have."""
        if task is None:
            return self.defaults
        if task not in self.tasks:
            known = f"one of {', '.join(self.tasks)}" if self.tasks else "none: the checkpoint has settings of no task"
            raise ConfigError("--task", got=task, needs=known, hint="leaving it out")
        return self.defaults | self.tasks[task]

    def beside(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What an export writes of it to generation_config.json and to config.json."""
        own = {name: value for name, value in self.defaults.items() if name != "prefix"}
        config = {TASKS: self.tasks} if self.tasks else {}
        return own, config | ({"prefix": self.defaults["prefix"]} if "prefix" in self.defaults else {})

    def to_json(self) -> dict[str, Any]:
        """Plain values; `generation_of` takes them back."""
        return asdict(self)


def read_generation(folder: Path) -> Generation:
    """The settings beside a checkpoint, from generation_config.json, or where it is absent from config.json.

    Raises CheckpointError for a file that is no JSON object, ConfigError for a setting of another kind than it has.
    """
    config = read_json(folder / "config.json")
    own = read_json(folder / FILE) if (folder / FILE).exists() else {}
    defaults = own or {name: config[name] for name in _OF_GENERATION if name in config}
    defaults = {name: value for name, value in defaults.items() if not name.startswith("_")}
    defaults.pop("transformers_version", None)
    if isinstance(config.get("prefix"), str):
        defaults["prefix"] = config["prefix"]
    tasks = config.get(TASKS) or {}
    if not isinstance(tasks, dict) or not all(isinstance(block, dict) for block in tasks.values()):
        raise ConfigError(f"{folder / 'config.json'}: {TASKS}", got=tasks, needs="a table of tasks and their settings")
    source = folder / (FILE if own else "config.json")
    _check(f"{source}: ", defaults)
    for task, block in tasks.items():
        _check(f"{folder / 'config.json'}: {TASKS}.{task}.", block)
    return Generation(defaults=defaults, tasks=tasks)


def generation_of(state: Mapping[str, Any], origin: str) -> Generation | None:
    """The settings in a checkpoint's state.json; None for a model that was not imported.

    Raises CheckpointError for values that no import wrote.
    """
    stored = state.get("generation")
    if stored is None:
        return None
    try:
        found = Generation(defaults=dict(stored["defaults"]), tasks={t: dict(b) for t, b in stored["tasks"].items()})
        for block in (found.defaults, *found.tasks.values()):
            _check("", block)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{origin}: its generation settings cannot be read ({error})") from error
    return found


def our_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the library as fields of ours, for what it would fill in by itself as well (`DEFAULTS`)."""
    found = dict(DEFAULTS)
    for name, known in KNOWN.items():
        if settings.get(name) is not None:
            found[known.ours] = known.convert(settings[name])
    if found.get("beams", 1) > 1:
        found["sample"] = False  # what is drawn from beams is not supported, and named
    return found


def unsupported(generation: Generation) -> list[str]:
    """A line for each setting that `generate` does not follow, as "num_beam_groups 4 (task x)"."""
    lines = [f"{name} {value!r}" for name, value in _strange(generation.defaults)]
    for task, block in generation.tasks.items():
        lines += [f"{name} {value!r} (task {task})" for name, value in _strange(block)]
    return lines


def _strange(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        neutral = (None, _NEUTRAL.get(name, False))
        if name not in KNOWN and name not in _WITHOUT_EFFECT and value not in neutral and value != [_NEUTRAL.get(name)]:
            yield name, value
    if settings.get("do_sample") and (settings.get("num_beams") or 1) > 1:
        yield "do_sample", "with num_beams"


def _check(where: str, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        known = KNOWN.get(name)
        if known is not None and value is not None and not known.is_right(value):
            raise ConfigError(f"{where}{name}", got=value, needs=known.needs)
