"""A trained run as a library object: what `fill`, `generate` and `eval` print, as values (docs/library.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.derived.layers import layer_names
from conf.errors import ConfigError
from conf.routing.settings import capacity_rule
from conf.schema import RunConfig
from data.batch import EOS_ID, StepBatch
from data.corpus import Corpus, open_corpus
from data.loader import build_loader
from data.prepare import prepare_data
from data.tasks.task import target_kinds
from data.text.tokenizer import Tokenizer
from model.generate import GenerateOptions
from model.hf.generation import KNOWN, our_options
from trainer.commands.arguments import Decoding
from trainer.commands.filling import Filled, check_fills, encode_masked, fill_texts, generate_rows
from trainer.evaluate import evaluate, unigram_nats
from trainer.loading import LoadedRun, load_run
from trainer.report.metrics import Meter, Report
from trainer.report.progress import PreparationView
from trainer.resume import IMPORTED

if TYPE_CHECKING:
    from torch import nn


def load(run: str | PathLike[str], *, overrides: Sequence[str] = ()) -> TrainedModel:
    """The newest whole checkpoint of a run folder, or one checkpoint folder, verified, in one process.

    Raises:
        ConfigError: not a run folder, or an override that does not fit.
        CheckpointError: the run has no checkpoint yet, or a file is not what was written.
    """
    return TrainedModel(run=Path(run), loaded=load_run(Path(run), overrides=overrides))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A model with its tokenizer and configuration."""

    run: Path
    loaded: LoadedRun

    @property
    def module(self) -> nn.Module:
        """The torch module, in evaluation mode."""
        return self.loaded.module

    @property
    def config(self) -> RunConfig:
        """The run's configuration, at one process."""
        return self.loaded.cfg

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return self.loaded.tokenizer

    def fill(self, texts: Sequence[str], **decoding: Any) -> list[Filled]:
        """Every `<mask>` (or `<extra_id_0>`, ..) of every text filled; keywords are the fields of `Decoding`.

        Raises ConfigError for a model of another task, a text without a mask and options out of range.
        """
        check_fills(self.config.data)
        options = self._routed(Decoding(**decoding).options(max_length=64))
        return fill_texts(self.loaded.module, self.loaded.tokenizer, texts, options)

    def generate(self, texts: Sequence[str], *, task: str | None = None, **decoding: Any) -> list[str]:
        """The text that the decoder gives for each input; keywords are the fields of `Decoding`.

        An imported model decodes by the settings it came with, and those of `task` if it has them; keywords win.
        Raises ConfigError for a task that it does not have and for options out of range.
        """
        return [self.loaded.tokenizer.decode(ids) for ids in self.generate_ids(texts, task=task, **decoding)]

    def generate_ids(self, texts: Sequence[str], *, task: str | None = None, **decoding: Any) -> list[list[int]]:
        """The same as token ids, without padding and end of sequence."""
        tokenizer, own = self.loaded.tokenizer, self._own_settings(task)
        prefix = own.pop("prefix", "") if own else ""
        options = self._routed(Decoding(**decoding).options(max_length=128, own=own))
        rows = [encode_masked(tokenizer, prefix + text) for text in texts]
        generated = generate_rows(self.loaded.module, tokenizer, rows, options)
        return [[token for token in ids if token > EOS_ID] for ids in generated]

    def generation_note(self, task: str | None = None) -> str | None:
        """What to tell a person about settings that the model came with; None where it has none for this task."""
        found = self.loaded.saved.generation
        settings = found.settings(task) if found else {}
        shown = [f"{name} {settings[name]!r}" for name in KNOWN if settings.get(name) is not None]
        others = [name for name in found.tasks if name != task] if found else []
        lines = [f"the model's own settings{f' for {task}' if task else ''}: {', '.join(shown)}"] if shown else []
        lines += [f"it also has settings for --task {', '.join(others)}"] if others and not task else []
        return "; ".join(lines) or None

    def _own_settings(self, task: str | None) -> dict[str, Any] | None:
        found = self.loaded.saved.generation
        if found is None and task is not None:
            raise ConfigError("--task", got=task, needs="a model that was imported with settings for tasks")
        return our_options(found.settings(task)) if found else None

    def _routed(self, options: GenerateOptions) -> GenerateOptions:
        """Slots that are an absolute number for each sequence, which is the library's rule, bind here as well."""
        moe = self.config.moe
        alone = capacity_rule(moe).rounding == "absolute" and moe.group_sequences == 1
        return replace(options, routing="eval") if alone else options

    def evaluate(self, *overrides: str) -> Report:
        """Losses and routing over the held-out windows; `overrides` as for `pointsman eval`, e.g. other data."""
        loaded = load_run(self.run, overrides=overrides) if overrides else self.loaded
        return HeldOut(loaded).report()


class HeldOut:
    """The held-out windows of a loaded run; prepares the data when it is made."""

    def __init__(self, loaded: LoadedRun) -> None:
        self._loaded = loaded
        view = PreparationView()
        prepare_data(loaded.cfg, progress=view.update)
        view.close()
        self._corpus: Corpus = open_corpus(loaded.cfg)

    def note(self) -> str | None:
        """What to tell a person about text that is not the one the checkpoint was trained on."""
        trained, now = self._loaded.saved.fingerprints.get("data"), self._corpus.fingerprint["data"]
        if trained in (None, IMPORTED, now):
            return None
        return f"note: the text is not the one of the run (fingerprint {now[:12]}, the checkpoint has {trained[:12]})"

    def report(self, *, shuffled: bool = False) -> Report:
        """Losses and routing; `shuffled`: of inputs whose tokens are out of order."""
        loaded = self._loaded
        meter = Meter(
            kinds=target_kinds(loaded.cfg.data, self._corpus.tokenizer.vocabulary), layer_names=layer_names(loaded.cfg)
        )
        batches = self._batches(shuffled=shuffled)
        return evaluate(loaded.module, batches, meter, mesh=loaded.mesh, device=loaded.device)

    def unigram_nats(self) -> float:
        """Cross-entropy of the text tokens under their own frequencies, nats."""
        return unigram_nats(self._corpus, self._batches(), self._loaded.mesh)

    def _batches(self, *, shuffled: bool = False) -> Iterator[StepBatch]:
        return build_loader(
            self._corpus, self._loaded.cfg, split="validation", dp_rank=0, dp_size=1, shuffled_inputs=shuffled
        )
