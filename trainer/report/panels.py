"""Expert load as pictures: for each stack one image, a row for each expert layer and a column for each expert."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

# Anchors of the colour scale over load relative to an even share: starved, even, twice the share, four times and more.
_SCALE = np.array([0.0, 1.0, 2.0, 4.0])
_COLOURS = np.array([[20, 24, 60], [60, 150, 140], [250, 220, 90], [190, 30, 40]], dtype=np.float64)
_LOAD = re.compile(r"router/(?P<stack>[^/.]+)\.(?P<layer>\d+)/load")
_MAP_WIDTH, _ROW_HEIGHT = 640, 26  # pixels; more experts than pixels share columns of the map as it is scaled down
_LEFT, _TOP, _BOTTOM, _RIGHT = 110, 44, 52, 110
_BAR_WIDTH, _FONT_SIZE, _MOST_TICKS = 18, 14, 16
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def load_panels(metrics: Mapping[str, Any], step: int) -> dict[str, Image]:
    """`router/<stack>/load` -> image, from the row's `router/<stack>.<layer>/load`; nothing where the row has none."""
    stacks: dict[str, dict[str, Sequence[float]]] = {}
    for name, value in metrics.items():
        if found := _LOAD.fullmatch(name):
            stacks.setdefault(found["stack"], {})[f"{found['stack']}.{found['layer']}"] = value
    return {f"router/{stack}/load": load_image(f"{stack}, step {step}", layers) for stack, layers in stacks.items()}


def load_colours(loads: Sequence[Sequence[float]]) -> np.ndarray:
    """RGB bytes [layers, experts, 3] of shares relative to an even one; dark: starved, red: overloaded."""
    return _colours(np.array([[share or 0.0 for share in load] for load in loads]) * len(loads[0]))


def load_image(title: str, layers: Mapping[str, Sequence[float]]) -> Image:
    """The map with its layers' names, the experts' numbers and the scale. `layers`: name -> share of each expert."""
    from PIL import Image, ImageDraw

    experts = len(next(iter(layers.values())))
    # Whole cells while there is room for them, so that every expert is equally wide.
    width = experts * max(1, _MAP_WIDTH // experts) if experts <= _MAP_WIDTH else _MAP_WIDTH
    height = max(len(layers) * _ROW_HEIGHT, 4 * _ROW_HEIGHT)
    image = Image.new("RGB", (_LEFT + width + _RIGHT, _TOP + height + _BOTTOM), _PAPER)
    way = Image.Resampling.NEAREST if experts <= _MAP_WIDTH else Image.Resampling.BOX
    image.paste(Image.fromarray(load_colours(list(layers.values()))).resize((width, height), way), (_LEFT, _TOP))
    draw = ImageDraw.Draw(image)
    draw.font = _font()
    draw.text((_LEFT, _TOP - 10), f"load of each expert over an even share: {title}", fill=_INK, anchor="ls")
    _draw_rows(draw, list(layers), height)
    _draw_columns(draw, experts, width, _TOP + height)
    _draw_scale(image, draw, _LEFT + width + 24, height)
    return image


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=_FONT_SIZE)


def _draw_rows(draw: ImageDraw, names: Sequence[str], height: int) -> None:
    for row, name in enumerate(names):
        draw.text((_LEFT - 8, _TOP + (row + 0.5) * height / len(names)), name, fill=_INK, anchor="rm")


def _draw_columns(draw: ImageDraw, experts: int, width: int, bottom: int) -> None:
    """Numbers below every expert, or below every 2nd, 4th, ... where they would touch."""
    every = 1
    while experts > every * _MOST_TICKS:
        every *= 2
    for expert in range(0, experts, every):
        x = _LEFT + (expert + 0.5) * width / experts
        draw.line((x, bottom, x, bottom + 4), fill=_INK)
        draw.text((x, bottom + 7), str(expert), fill=_INK, anchor="mt")
    draw.text((_LEFT + width / 2, bottom + 29), "expert", fill=_INK, anchor="mt")


def _draw_scale(image: Image, draw: ImageDraw, left: int, height: int) -> None:
    from PIL import Image as Images

    steps = np.linspace(_SCALE[-1], _SCALE[0], height)[:, None]
    image.paste(Images.fromarray(_colours(steps)).resize((_BAR_WIDTH, height)), (left, _TOP))
    for value, text in zip(_SCALE, ("0", "even", "2 x", ">= 4 x"), strict=True):
        y = _TOP + (height - 1) * (1.0 - value / _SCALE[-1])
        draw.line((left + _BAR_WIDTH, y, left + _BAR_WIDTH + 4, y), fill=_INK)
        draw.text((left + _BAR_WIDTH + 8, y), text, fill=_INK, anchor="lm")


def _colours(relative: np.ndarray) -> np.ndarray:
    channels = [np.interp(relative, _SCALE, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
