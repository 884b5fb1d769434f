"""Every recorded folder of `../shared/golden`, through the runners of `python -m tests.golden.check`."""

from __future__ import annotations

import pytest

from tests.golden.check import comparisons, folders_of, uncompared
from tests.golden.compare import RUNNERS
from tests.golden.reader import GOLDEN, read_manifest

FOLDERS = [f for f in folders_of(GOLDEN) if read_manifest(f)["folder"] in RUNNERS] if GOLDEN.is_dir() else []
pytestmark = pytest.mark.skipif(not FOLDERS, reason="the recorded reference runs (../shared/golden) are absent")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_recording_of_the_folder_holds(folder):
    found = list(comparisons(folder))
    wrong = [f"{case}: {one}" for case, one in found if not one.holds]
    assert not wrong, "\n".join(wrong)
    seen = {case for case, _ in found}
    missing = uncompared(folder, seen)
    assert not missing, f"entries without a comparison: {missing}"
