"""Generation: greedy, sampling and beam search with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.contract import Generative
from model.generate.beam import beam_search
from model.generate.options import GenerateMode, GenerateOptions, GenerateResult
from model.generate.sample import choose_tokens

__all__ = ["GenerateMode", "GenerateOptions", "GenerateResult", "generate"]


@torch.no_grad()
def generate(
    module: Generative,
    inputs_BL: Tensor,
    *,
    options: GenerateOptions,
    all_finished: Callable[[bool], bool] = bool,
) -> GenerateResult:
    """Decode one sequence for every row of `inputs_BL` (int64, id 0 pads), on the module's device.

    Experts run in mode "no_drop": what a row generates does not depend on the rows beside it. Every rank must call
    this with the same shapes and options. Where ranks hold different prompts and share experts, they must also stop at
    the same step: `all_finished` gets whether this rank is done and answers whether all are.
    """
    run = beam_search if options.mode == "beam" else choose_tokens
    return run(module, inputs_BL, options, all_finished)
