"""Units at relu's kink: only those within a tie take the reference's choice, at their own place, with its gradient."""

import torch

from measure.verify.batches import global_rows
from measure.verify.kinks import UnitRecorder, UnitReplay
from measure.verify.record import Recorder
from model.build import build_model
from parallel.mesh.axes import single_process
from parallel.rng import NoiseKey
from tests.measure.verify.tiny import plan

CFG = plan("tp=1", ranks=1).base
UNIT = 5


def model_at_the_kink():
    """One unit of a dense layer and one of expert 2 get inputs that are 0 but for rounding."""
    module = build_model(CFG, single_process(), device="cpu", dtype=torch.float32)
    with torch.no_grad():
        module.encoder.layers[0].ff.wi.weight[UNIT] *= 1e-9
        module.encoder.layers[1].ff.experts.wi[2, :, UNIT] *= 1e-9
    return module


def gradients(module) -> dict[str, torch.Tensor]:
    encoder, targets = (torch.from_numpy(array) for array in global_rows(CFG, 0))
    inputs = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], dim=1)
    noise = NoiseKey(seed=CFG.seed, step=0, rows_B=torch.arange(CFG.train.global_batch))
    module(encoder, inputs, targets, mode="train", noise=noise).token_loss_BT.sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def recorded() -> dict[str, torch.Tensor]:
    module = model_at_the_kink()
    Recorder(module, CFG, single_process(), None)
    units = UnitRecorder(module, CFG)
    gradients(module)
    return units.take()


def test_the_references_units_by_place():
    taken = recorded()
    groups = CFG.train.global_batch // (CFG.moe.group_sequences or 1)
    assert taken["encoder.layers.0.ff"].shape == (CFG.train.global_batch, CFG.data.encoder_length, CFG.model.d_ff)
    assert taken["encoder.layers.1.ff"].shape[:2] == (CFG.moe.num_experts, groups)
    assert {on.dtype for on in taken.values()} == {torch.bool}
    assert len(taken) == 4


def test_equal_units_move_nothing():
    taken, module = recorded(), model_at_the_kink()
    replay = UnitReplay(module, CFG, taken.__getitem__)
    plain, replayed = gradients(model_at_the_kink()), gradients(module)
    assert replay.moved == set()
    assert all(torch.equal(plain[name], replayed[name]) for name in plain)


def test_a_unit_within_a_tie_takes_the_references_choice():
    taken, module = recorded(), model_at_the_kink()
    dense, bank = taken["encoder.layers.0.ff"], taken["encoder.layers.1.ff"]
    dense[3, 0, UNIT] = ~dense[3, 0, UNIT]
    bank[2, 1, :, UNIT] = ~bank[2, 1, :, UNIT]
    far = torch.nonzero(dense[15, :, 0])[0, 0]
    dense[15, far, 0] = False  # clearly on: it stays on
    replay = UnitReplay(module, CFG, taken.__getitem__)
    plain, replayed = gradients(model_at_the_kink()), gradients(module)
    moved = {(place, unit % CFG.model.d_ff) for place, _, unit in replay.moved}
    assert moved == {("encoder.layers.0.ff", UNIT), ("encoder.layers.1.ff", UNIT)}
    place = CFG.data.encoder_length * 3 * CFG.model.d_ff + UNIT
    assert ("encoder.layers.0.ff", 0, place) in replay.moved
    difference = (plain["encoder.layers.0.ff.wi.weight"] - replayed["encoder.layers.0.ff.wi.weight"]).abs().amax(1)
    others = torch.arange(CFG.model.d_ff) != UNIT
    assert difference[UNIT] > 100 * difference[others].max()
