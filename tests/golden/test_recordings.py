"""Every recorded folder, of this repository and of `../shared/golden`, through the runners of `tests.golden.check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.routing.routers import ROUTERS
from tests.golden import run_flaxformer, run_mesh_tf
from tests.golden.check import comparisons, folders_of, uncompared
from tests.golden.compare import RUNNERS
from tests.golden.reader import GOLDEN, KEPT, read_cases, read_manifest

LARGE = [f for f in folders_of(GOLDEN) if read_manifest(f)["folder"] in RUNNERS] if GOLDEN.is_dir() else []


def assert_holds(folder: Path) -> None:
    found = list(comparisons(folder))
    wrong = [f"{case}: {one}" for case, one in found if not one.holds]
    assert not wrong, "\n".join(wrong)
    seen = {case for case, _ in found}
    missing = uncompared(folder, seen)
    assert not missing, f"entries without a comparison: {missing}"


@pytest.mark.parametrize("folder", folders_of(KEPT), ids=lambda folder: folder.name)
def test_what_lies_in_the_repository_holds(folder):
    assert_holds(folder)


@pytest.mark.parametrize("runner", [run_mesh_tf, run_flaxformer])
def test_every_router_of_a_reference_has_a_case_in_the_repository(runner):
    moes = [runner.moe_of(case.config) for case in read_cases(KEPT / runner.__name__.partition("run_")[2])]
    (semantics,) = {moe.semantics for moe in moes}
    assert {moe.router for moe in moes} == {name for name, row in ROUTERS.items() if semantics in row.under}


@pytest.mark.skipif(not LARGE, reason="the full set of recorded reference runs (../shared/golden) is absent")
@pytest.mark.parametrize("folder", LARGE, ids=lambda folder: folder.name)
def test_every_recording_of_the_full_set_holds(folder):
    assert_holds(folder)
