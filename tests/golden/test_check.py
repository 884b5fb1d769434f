"""The command that checks recordings: what it prints, when it fails, what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.check import main
from tests.golden.compare import close, exact, scalar
from tests.golden.grouping import flaxformer_groups, flaxformer_padding, mesh_tf_groups
from tests.golden.hf_experts import absent_gradients
from tests.golden.reader import GOLDEN
from tests.golden.run_mesh_tf import INPUTS

recorded = pytest.mark.skipif(
    not (GOLDEN / "mesh_tf").is_dir(), reason="the recorded reference runs (../shared/golden) are absent"
)


def one_case(
    folder: Path,
    kind: str,
    case: str,
    *,
    config: dict | None = None,
    change: str | None = None,
    keep: str | None = None,
) -> Path:
    """A folder with one recorded case; `change` adds 1 to the first entry of an array; `keep`: the only array kept."""
    manifest = json.loads((GOLDEN / kind / "manifest.json").read_text())
    (entry,) = [one for one in manifest["cases"] if one["case"] == case]
    entry["config"] |= config or {}
    target = folder / entry["file"]
    shutil.copy(GOLDEN / kind / entry["file"], target)
    if change is not None:
        arrays = load_file(target)
        arrays[change].view(-1)[0] += 1
        save_file(arrays, target)
    if keep is not None:
        save_file({keep: load_file(target)[keep]}, target)
    data = target.read_bytes()
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "cases": [entry], "tables": []}))
    return folder


@recorded
@pytest.mark.parametrize(("kind", "case"), [("mesh_tf", "switch_train_pad"), ("flaxformer", "layer_half_even")])
def test_a_folder_anywhere_is_checked_array_by_array(tmp_path, capsys, kind, case):
    assert main([str(one_case(tmp_path, kind, case))]) == 0
    printed = capsys.readouterr().out
    for array in ("coo_index", "coo_weight", "y", "grad_out_x"):
        assert f"ok       {case}  {array}  error" in printed
    assert main([str(tmp_path.parent)]) == 0, "a parent of folders"


@recorded
@pytest.mark.parametrize(
    ("kind", "case", "array"),
    [
        ("mesh_tf", "switch_train_pad", "slot"),
        ("mesh_tf", "ntlb_train", "coo_weight"),
        ("flaxformer", "layer_scatter_train", "dispatch_indices"),
        ("flaxformer", "masked_k2", "grad_z_kernel"),
    ],
)
def test_one_changed_entry_is_a_mismatch(tmp_path, capsys, kind, case, array):
    assert main([str(one_case(tmp_path, kind, case, change=array))]) == 1
    assert f"{case}: {array} differs" in capsys.readouterr().out


@recorded
def test_every_array_is_reported_although_one_differs_and_another_is_unknown(tmp_path, capsys):
    folder = one_case(tmp_path, "mesh_tf", "switch_train_pad")
    assert main([str(folder)]) == 0
    arrays_of_it = {line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    manifest = json.loads((folder / "manifest.json").read_text())
    (entry,) = manifest["cases"]
    arrays = load_file(folder / entry["file"])
    arrays["slot"].view(-1)[0] += 1
    save_file(arrays, folder / "other.safetensors")
    data = (folder / "other.safetensors").read_bytes()
    changed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "file": "other.safetensors"}
    strange = {**entry, "case": "strange", "config": {**entry["config"], "gating": "hash"}}
    extra = {**entry, "case": "extra", "scalars": {"new_loss": 1.0, **entry["scalars"]}}
    cut = {**entry, "case": "cut", "bytes": 7}
    cases = [{**entry, **changed, "case": "changed"}, strange, cut, extra, {**entry, "case": "last"}]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "cases": cases}))
    assert main([str(folder)]) == 1, "what went wrong first decides"
    out, err = capsys.readouterr()
    shown = [line.split() for line in out.splitlines() if line.startswith("  ")]
    for case in ("changed", "extra", "last"):
        assert {w[2] for w in shown if w[1] == case and w[0] != "UNKNOWN"} == arrays_of_it
    assert [w[1:3] for w in shown if w[0] == "MISMATCH"] == [["changed", "slot"]]
    assert [w[1:3] for w in shown if w[0] == "UNKNOWN"] == [["extra", "new_loss"]]
    assert "changed: slot differs" in out
    assert "strange: gating" in out
    assert "is not the file its manifest describes" in err
    (folder / "manifest.json").write_text(json.dumps({**manifest, "cases": [cut, *cases]}))
    assert main([str(folder)]) == 2


@recorded
@pytest.mark.parametrize(
    ("kind", "case", "config", "named"),
    [
        ("mesh_tf", "switch_train_pad", {"gating": "hash"}, "gating"),
        ("mesh_tf", "switch_train_pad", {"temperature": 2.0}, "temperature"),
        ("mesh_tf", "switch_train_pad", {"policy": "sample"}, "policy"),
        ("mesh_tf", "top2_all", {"second_policy": "random"}, "second_policy"),
        ("flaxformer", "masked_k1", {"jitter_noise": 0.1}, "jitter_noise"),
        ("flaxformer", "masked_k1", {"router": "soft"}, "router"),
    ],
)
def test_an_unknown_setting_is_a_failure_and_never_skipped(tmp_path, capsys, kind, case, config, named):
    assert main([str(one_case(tmp_path, kind, case, config=config))]) == 1
    printed = capsys.readouterr().out
    assert "not supported" in printed
    assert named in printed


@recorded
def test_another_capacity_factor_is_a_mismatch_not_a_pass(tmp_path, capsys):
    assert main([str(one_case(tmp_path, "mesh_tf", "switch_train_pad", config={"capacity_factor_train": 1.0}))]) == 1
    assert "capacity differs" in capsys.readouterr().out


@recorded
def test_an_array_that_the_manifest_lists_is_not_missed_in_silence(tmp_path, capsys):
    assert main([str(one_case(tmp_path, "mesh_tf", "switch_train_pad", keep="x"))]) == 2
    assert "lists other arrays than the file has: ['coo_index'" in capsys.readouterr().err


@recorded
def test_a_case_without_anything_to_compare_is_not_passed_over(tmp_path, capsys):
    folder = one_case(tmp_path, "mesh_tf", "switch_train_pad")
    manifest = json.loads((folder / "manifest.json").read_text())
    (whole,) = manifest["cases"]
    arrays = {name: array for name, array in load_file(folder / whole["file"]).items() if name in INPUTS}
    save_file(arrays, folder / "bare.safetensors")
    data = (folder / "bare.safetensors").read_bytes()
    bare = {**whole, "case": "bare", "file": "bare.safetensors", "scalars": {}, "bytes": len(data)}
    bare |= {"sha256": hashlib.sha256(data).hexdigest(), "arrays": [[n, list(a.shape), "f"] for n, a in arrays.items()]}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "cases": [whole, bare]}))
    assert main([str(folder)]) == 2
    assert "can be compared in bare" in capsys.readouterr().err


@recorded
def test_a_folder_without_a_manifest_beside_others_is_named(tmp_path, capsys):
    (tmp_path / "mesh").mkdir()
    (tmp_path / "junk").mkdir()
    one_case(tmp_path / "mesh", "mesh_tf", "switch_eval_nomask")
    assert main([str(tmp_path)]) == 0
    assert "junk: no manifest.json in it, not checked" in capsys.readouterr().out


def test_folders_that_cannot_be_read_exit_with_2(tmp_path, capsys):
    assert main([]) == 2
    assert main([str(tmp_path / "absent")]) == 2
    assert main([str(tmp_path)]) == 2
    assert "no manifest.json" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{")
    assert main([str(tmp_path)]) == 2
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "folder": "jax_moe", "cases": []}))
    assert main([str(tmp_path)]) == 2
    assert "jax_moe" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "folder": "mesh_tf", "cases": []}))
    assert main([str(tmp_path)]) == 2


def test_comparisons_do_not_hold_for_shapes_nan_or_a_single_integer():
    ones = torch.ones(3)
    assert close("a", ones, ones, 1e-6).holds
    assert not close("a", torch.full((3,), float("nan")), ones, 1e-6).holds
    assert not close("a", torch.ones(4), ones, 1e-6).holds
    assert not close("a", ones * 1.001, ones, 1e-4).holds
    assert exact("a", torch.tensor([1, 2]), torch.tensor([1, 2])).holds
    assert exact("a", torch.tensor([1, 2]), torch.tensor([2, 1])).error == 2
    assert scalar("a", float("nan"), float("nan"), 1e-6).holds, "a reference that is nan is met by nan"
    assert not scalar("a", 1.0, float("nan"), 1e-6).holds


def test_lists_without_a_gradient_may_name_experts_whose_tokens_do_not_reach_the_loss():
    idle, zero = {"expert_1"}, {"expert_1", "expert_2"}
    for recorded_list, wrong in (({"expert_1"}, 0), (zero, 0), (set(), 1), ({"expert_1", "expert_3"}, 1)):
        assert absent_gradients(idle, zero, recorded_list).error == wrong


def test_grouping_by_hand():
    assert mesh_tf_groups(120, 50) == (2, 60)  # larger than asked
    assert mesh_tf_groups(3000, 1024) == (2, 1500)
    assert mesh_tf_groups(12, 4, 5) is None
    assert flaxformer_groups(128, 64, 4) == (4, 32)
    assert flaxformer_padding(3, 21, 8) == (3, 24)
    assert flaxformer_padding(4, 8, 8) == (4, 8)
