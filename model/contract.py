"""What loop, evaluation and generation need of any model: token ids in; token losses and routing by stack name out.

Shape suffixes: B batch, L input length, T target length, R rows of a decoding, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from conf.errors import ConfigError
from conf.schema import Stack
from model.moe.types import LayerRouting, RouteMode
from parallel.rng import NoiseKey

PAD = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOutput:
    """What a forward pass gives to the loss and to the log."""

    token_loss_BT: Tensor  # cross-entropy in fp32 (fp64 in an fp64 model), nats; 0 where the target is padding
    routing: Mapping[Stack, tuple[LayerRouting, ...]]  # one per expert layer of each stack, in order

    @property
    def layers(self) -> tuple[LayerRouting, ...]:
        """The routing of all expert layers, stack by stack."""
        return tuple(layer for stack in self.routing.values() for layer in stack)


class Model(nn.Module, ABC):
    """A module that `trainer` can train: it learns to continue or to answer inputs with targets."""

    @abstractmethod
    def forward(self, inputs_BL: Tensor, targets_BT: Tensor, *, mode: RouteMode, noise: NoiseKey | None) -> ModelOutput:
        """Token losses of `targets_BT`, each predicted from the inputs and the targets before it.

        All ids are int64, in [0, vocab_size); id 0 is padding, with loss 0. `noise` None: no dropout and no jitter.
        """

    @abstractmethod
    def router_tokens(self, *, inputs: int, targets: int) -> dict[Stack, int]:
        """Real tokens that the routers of each stack see, of a batch with so many real inputs and targets."""

    @abstractmethod
    def count_routing(self, wanted: bool) -> None:
        """Whether forward passes take statistics of their routing from now on, which they do unless told.

        Losses do not depend on it. Compiled steps take them always: they are part of their graphs.
        """

    @abstractmethod
    def compile_steps(self, compiler: Callable[[Callable[..., Any]], Callable[..., Any]], *, whole: bool) -> None:
        """Let training steps run compiled code from now on: the model as a `whole`, else each of its blocks.

        Evaluation and generation stay as they are: their sizes change from call to call.
        """

    if TYPE_CHECKING:  # nn.Module says Any

        def __call__(
            self, inputs_BL: Tensor, targets_BT: Tensor, *, mode: RouteMode, noise: NoiseKey | None
        ) -> ModelOutput:
            """As `forward`."""
            ...


class Decoding(Protocol):
    """The state of a batch of rows that grow by one token a step."""

    dtype: torch.dtype  # of logits

    def next_logits(self, tokens_R: Tensor) -> Tensor:
        """Append a token to every row; logits [R, V] of what follows, whole on every tensor rank."""
        ...

    def reorder(self, rows_R: Tensor) -> None:
        """Row i continues what row `rows_R[i]` was. Rows only move between copies of one input."""
        ...


class Generative(Model):
    """A model that can also be asked for targets."""

    @abstractmethod
    def start_decoding(self, inputs_BL: Tensor, *, copies: int, max_length: int, mode: RouteMode) -> Decoding:
        """Rows that answer the inputs, `copies` of each beside one another; the first token to append is `PAD`."""


def generative(module: nn.Module) -> Generative:
    """`module` if it can generate. Raises ConfigError."""
    if not isinstance(module, Generative):
        raise ConfigError("model", got=type(module).__name__, needs="a model that can generate")
    return module
