"""Pointsman as a library (docs/library.md).

    pointsman.load("runs/first").fill(["for <mask> in range(10):"])
    y, losses = pointsman.SwitchLayer(512, 2048, 8)(x)

The names are imported when they are first used: `import pointsman` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.moe.switch_layer import SwitchLayer as SwitchLayer
    from model.moe.switch_layer import SwitchLosses as SwitchLosses
    from trainer.commands.trained import TrainedModel as TrainedModel
    from trainer.commands.trained import load as load

    __version__: str

_HOMES = {
    "SwitchLayer": "model.moe.switch_layer",
    "SwitchLosses": "model.moe.switch_layer",
    "TrainedModel": "trainer.commands.trained",
    "load": "trainer.commands.trained",
}
__all__ = ["SwitchLayer", "SwitchLosses", "TrainedModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("pointsman")
    if name not in _HOMES:
        raise AttributeError(f"module 'pointsman' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
