"""One picture for each stack says which expert layer, which expert and how much."""

import numpy as np
import pytest

from trainer.report.panels import load_colours, load_image, load_panels


def test_dark_where_starved_and_bright_where_loaded():
    colours = load_colours([[0.0, 0.25, 0.75], [1 / 3] * 3])
    assert colours.shape == (2, 3, 3)
    assert colours[0, 0].tolist() == [20, 24, 60]
    assert len(np.unique(colours[1].reshape(3, 3), axis=0)) == 1


def test_one_picture_for_each_stack_whatever_the_number_of_experts():
    load = [1 / 32] * 32
    row = {f"router/{stack}.{layer}/load": load for stack in ("encoder", "decoder") for layer in range(1, 12, 2)}
    row |= {"eval/loss": 1.0, "router/encoder.1/probability": load, "train/router/encoder.1/dropped": 0.0, "step": 3}
    assert set(load_panels(row, 3)) == {"router/encoder/load", "router/decoder/load"}
    assert load_panels({"train/loss": 1.0}, 3) == {}


@pytest.mark.parametrize("experts", [2, 32, 2048])
def test_the_map_is_large_enough_and_has_names_numbers_and_a_scale_around_it(experts):
    image = np.asarray(
        load_image("encoder, step 3", {"encoder.1": [1 / experts] * experts, "encoder.3": [0.0] * experts})
    )
    height, width, _ = image.shape
    assert width >= 800
    assert 150 <= height <= 400
    paper = (image == 255).all(axis=-1)
    even, starved = (image == [60, 150, 140]).all(axis=-1), (image == [20, 24, 60]).all(axis=-1)
    top, bottom, left = np.nonzero(even)[0].min(), np.nonzero(starved)[0].max(), np.nonzero(even)[1].min()
    assert even.sum() > 0.9 * starved.sum() > 10_000
    assert not paper[:top].all()  # the title
    assert not paper[top : bottom + 1, :left].all()  # layer names
    assert not paper[bottom + 2 :, left:].all()  # expert numbers
    right = np.nonzero(even.sum(axis=0) > 20)[0].max()
    colours = np.unique(image[top : bottom + 1, right + 2 :].reshape(-1, 3), axis=0)
    assert len(colours) > 50  # the scale


def test_the_scale_says_the_same_as_the_map():
    """A picture of one overloaded expert: its red is the red at the upper end of the scale."""
    image = np.asarray(load_image("t", {"encoder.1": [1.0] + [0.0] * 15}))
    red = np.argwhere((image == [190, 30, 40]).all(axis=-1))
    assert red[:, 1].max() - red[:, 1].min() > 600
