import itertools
import random

import pytest
import torch

from conf.errors import CheckpointError
from parallel.engine.protocol import StateTensor
from parallel.layers.sharding import Shard
from trainer.checkpoint.pieces import Piece, check_pieces, kept, note_of, stage
from trainer.checkpoint.tiling import tiling_problem

SHARD = Shard(global_shape=(4, 6), offsets=(2, 3), local_shape=(2, 3))


def state(value: torch.Tensor, name: str = "w", dims: tuple[int, ...] | None = None) -> StateTensor:
    return StateTensor(name=name, kind="master", value=value, dims=dims)


def note(value: torch.Tensor, offsets: tuple[int, ...], shape: tuple[int, ...] = (4, 3)):
    shard = Shard(global_shape=shape, offsets=offsets, local_shape=tuple(value.shape))
    return note_of(Piece(key="master/w", value=value, shard=shard, dims=None))


def covers_once(shape: tuple[int, ...], boxes: list) -> bool:
    """Oracle: count every element."""
    count = torch.zeros(shape, dtype=torch.int)
    for offsets, sizes in boxes:
        count[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))] += 1
    return bool((count == 1).all())


def test_tiling_agrees_with_counting() -> None:
    draw = random.Random(0)
    seen = {True: 0, False: 0}
    grid = [((r, c), (2, 3)) for r in (0, 2) for c in (0, 3)]
    for _ in range(300):
        boxes = draw.sample(grid, draw.randint(3, 4))
        if draw.random() < 0.5:
            boxes.append(((draw.randrange(4), draw.randrange(6)), (1, 1)))
        if draw.random() < 0.3:
            boxes = [((0, 0), (4, 2)), ((0, 2), (1, 4)), ((1, 2), (3, 4))]
        right = covers_once((4, 6), boxes)
        seen[right] += 1
        assert (tiling_problem((4, 6), boxes) is None) == right
    assert min(seen.values()) > 20


def test_tiling_of_a_scalar_and_out_of_bounds() -> None:
    assert tiling_problem((), [((), ())]) is None
    assert "overlap" in (tiling_problem((), [((), ()), ((), ())]) or "")
    assert "leaves" in (tiling_problem((4,), [((2,), (3,))]) or "")


def test_a_large_grid_is_checked_fast() -> None:
    boxes = [((i, j), (1, 1)) for i, j in itertools.product(range(256), range(8))]
    assert tiling_problem((256, 8), boxes) is None


def test_kept_dims() -> None:
    assert kept(SHARD, (1,)) == Shard(global_shape=(6,), offsets=(3,), local_shape=(3,))
    assert kept(SHARD, None) is SHARD


def test_stage_copies() -> None:
    value = torch.ones(3, 2).T
    piece = stage([state(value)], {"w": SHARD})["master/w"]
    value.zero_()
    assert piece.value.is_contiguous()
    assert piece.value.sum() == 6


def test_stage_exhausts_the_iterator_and_lists_what_is_wrong() -> None:
    given = iter([state(torch.ones(2, 2)), state(torch.ones(2, 3)), state(torch.ones(2, 3)), state(torch.ones(1), "v")])
    with pytest.raises(CheckpointError, match=r"shape \(2, 2\).*given twice.*no parameter"):
        stage(given, {"w": SHARD})
    assert next(given, None) is None


def test_equal_copies_are_fine_and_different_ones_are_not() -> None:
    half = torch.arange(6.0).reshape(2, 3)
    upper, lower = {"master/w": note(half, (0, 0))}, {"master/w": note(half, (2, 0))}
    check_pieces([upper, lower, upper])
    other = {"master/w": note(half + 1, (0, 0))}
    with pytest.raises(CheckpointError, match=r"master/w: ranks 0 and 2 hold different values"):
        check_pieces([upper, lower, other])


def test_values_that_differ_in_the_sign_of_zero_differ() -> None:
    with pytest.raises(CheckpointError, match="different values"):
        check_pieces([{"master/w": note(torch.zeros(4, 3), (0, 0))}, {"master/w": note(-torch.zeros(4, 3), (0, 0))}])


def test_a_missing_piece_and_a_disagreement() -> None:
    half = torch.zeros(2, 3)
    with pytest.raises(CheckpointError, match=r"no rank gave the part at \[2, 0\]"):
        check_pieces([{"master/w": note(half, (0, 0))}])
    with pytest.raises(CheckpointError, match="disagree on its shape"):
        check_pieces([{"master/w": note(half, (0, 0))}, {"master/w": note(half, (2, 0), shape=(6, 3))}])
    with pytest.raises(CheckpointError, match="disagree on its shape"):
        check_pieces([{"master/w": note(half, (0, 0))}, {"master/w": note(half.bfloat16(), (2, 0))}])


def test_a_diverged_run_is_not_staged():
    shard = Shard(global_shape=(2,), offsets=(0,), local_shape=(2,))
    tensors = [StateTensor(name="w", kind=kind, value=torch.tensor([1.0, bad])) for kind, bad in
               (("master", float("inf")), ("exp_avg", float("nan")), ("exp_avg_sq", 1.0))]  # fmt: skip
    with pytest.raises(CheckpointError, match=r"master/w: .*not finite.*exp_avg/w: .*not finite") as error:
        stage(iter(tensors), {"w": shard})
    assert "exp_avg_sq" not in str(error.value)
