"""Expert utilisation as a picture: one row per expert layer, one column per expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.report.metrics import LayerReport

if TYPE_CHECKING:
    from PIL.Image import Image

# Anchors of the colour scale over load relative to an even share: starved, even, twice the share, four times and more.
_SCALE = np.array([0.0, 1.0, 2.0, 4.0])
_COLOURS = np.array([[20, 24, 60], [60, 150, 140], [250, 220, 90], [190, 30, 40]], dtype=np.float64)
_MIN_CELL, _ROW_HEIGHT, _MIN_WIDTH = 1, 24, 480


def heatmap_colours(layers: Sequence[LayerReport]) -> np.ndarray:
    """RGB bytes [layers, experts, 3] of the load relative to an even share; dark: starved, red: overloaded."""
    relative = np.array([[share * len(layer.load) for share in layer.load] for layer in layers])
    channels = [np.interp(relative, _SCALE, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def heatmap_image(layers: Sequence[LayerReport]) -> Image:
    """The colours, enlarged so that a cell can be seen."""
    from PIL import Image

    colours = heatmap_colours(layers)
    cell = max(_MIN_CELL, _MIN_WIDTH // colours.shape[1])
    return Image.fromarray(np.kron(colours, np.ones((_ROW_HEIGHT, cell, 1), dtype=np.uint8)))
