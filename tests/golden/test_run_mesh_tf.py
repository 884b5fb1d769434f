"""The checker of Mesh-TensorFlow's recordings on cases made here: losses it must count, noise, what it must refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.compare import Comparison, Unsupported, close
from tests.golden.reader import GoldenCase
from tests.golden.run_mesh_tf import MeshCase, compare_case

CONFIG = {
    "batch": 2, "length": 6, "d_model": 4, "experts": 3, "d_ff": 2, "group_size": 6, "capacity_factor_train": 1.0,
    "capacity_factor_eval": 2.0, "min_expert_capacity": 1, "train": True, "policy": "argmax", "padding": "random",
    "z_loss": None, "num_microbatches": 2, "act": "float32", "loss_coef": 0.01,
}  # fmt: skip


def made(folder: Path, scalars: dict[str, Any], *, masked: bool = False, **config: Any) -> GoldenCase:
    """A case of random inputs whose recorded scalars are `scalars`; nothing else is recorded."""
    random = torch.Generator().manual_seed(0)
    given = {**CONFIG, **config}
    B, L, D, E, F = (given[name] for name in ("batch", "length", "d_model", "experts", "d_ff"))
    shapes = {"x": (B, L, D), "router_kernel": (D, E), "wi": (E, D, F), "wo": (E, F, D), "cotangent": (B, L, D)}
    arrays = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    arrays["importance"] = torch.zeros(B, L) if masked else (torch.rand(B, L, generator=random) > 0.3).float()
    save_file(arrays, folder / "a.safetensors")
    data = (folder / "a.safetensors").read_bytes()
    return GoldenCase(
        name="a", config=given, scalars=scalars, path=folder / "a.safetensors", size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip


def z_by_hand(case: GoldenCase) -> float:
    """The z-loss as the documentation of the recordings has it."""
    arrays = case.arrays()
    z_BL = (arrays["x"].double() @ arrays["router_kernel"].double()).logsumexp(-1) ** 2
    real_BL = arrays["importance"] == 1
    return float(z_BL[real_BL].sum() / real_BL.sum() / case.config["num_microbatches"])


def errors(case: GoldenCase) -> dict[str, Comparison]:
    return {one.array: one for one in compare_case(case)}


@pytest.mark.parametrize("gating", ["switch", "top_2", "switch_max", "ntlb", "expert_selection"])
def test_a_recorded_z_loss_counts_in_every_gating_function(tmp_path, gating):
    plain = MeshCase(made(tmp_path, {}, gating=gating, ntlb_top_k=2))
    z = z_by_hand(plain.case)
    loss = float(plain.loss_gating.detach()) + 0.1 * z
    logged = float(plain.aux.detach()) if gating == "switch" else loss  # logged before or after z was added
    scalars = {"log_z_loss": z, "loss_gating": loss, "loss_final": 0.01 * loss, "log_aux_loss": logged}
    found = errors(made(tmp_path, scalars, gating=gating, ntlb_top_k=2, z_loss=0.1))
    assert len(found) == 4
    assert all(one.holds for one in found.values()), found
    if gating != "switch":  # a release of the reference without it
        bare = {"loss_gating": float(plain.loss_gating.detach())}
        assert errors(made(tmp_path, bare, gating=gating, ntlb_top_k=2, z_loss=0.1))["loss_gating"].holds


def test_the_z_loss_of_padding_alone_is_nan_and_so_is_its_gradient(tmp_path):
    case = MeshCase(made(tmp_path, {}, gating="switch", z_loss=0.1, masked=True))
    assert bool(case.loss_gating.isnan())
    grad_x, grad_kernel = torch.autograd.grad(case.loss_final, (case.x, case.kernel))
    assert bool(grad_x.isnan().all())
    assert bool(grad_kernel.isnan().all())


def test_top_2_with_one_expert_has_no_second_choice_to_send(tmp_path):
    assert errors(made(tmp_path, {"n_dispatched": 12}, gating="top_2", experts=1, min_expert_capacity=6))
    case = made(tmp_path, {}, gating="top_2", experts=1, min_expert_capacity=6)
    ours = MeshCase(case)
    assert len(ours.coo.index_n4) == int(case.arrays()["importance"].sum())
    assert torch.allclose(ours.coo.weight_n, torch.ones(()))


@pytest.mark.parametrize("gating", ["switch_max", "expert_selection"])
def test_more_slots_than_tokens_are_refused_where_tokens_are_ranked(tmp_path, gating):
    with pytest.raises(Unsupported, match="capacity of 7 for 6"):
        MeshCase(made(tmp_path, {}, gating=gating, min_expert_capacity=7))
    MeshCase(made(tmp_path, {}, gating="switch", min_expert_capacity=7))


def test_noise_is_below_what_the_limit_allows_of_a_plain_gradient(tmp_path):
    case = MeshCase(made(tmp_path, {}, gating="switch"))
    case.want["grad_out_"] = case.want["grad_loss_"] = torch.zeros(())  # asks for both
    grads = dict(case.gradients())
    for name, limit in (("grad_out_router", 1e-4), ("grad_loss_router", 5e-5), ("grad_loss_x", 5e-5)):
        size = float(grads[name].abs().max())
        assert 0 < case.noise(name) < limit * size
    assert case.noise("grad_out_wi") == case.noise("grad_out_x") == 0


def test_what_lies_within_the_noise_holds_and_nothing_beyond():
    zero, rounding = torch.zeros(3), torch.tensor([1e-9, -2e-9, 0.0])
    assert not close("a", zero, rounding, 1e-4).holds
    assert close("a", zero, rounding, 1e-4, noise=3e-9).holds
    assert not close("a", zero, rounding, 1e-4, noise=1e-9).holds
    assert not close("a", torch.ones(3), torch.ones(3) * 1.001, 1e-4, noise=1e-9).holds
