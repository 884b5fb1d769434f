"""The table of launchers: who starts the ranks of `pointsman train`. One row per launcher."""

from __future__ import annotations

# By `launch.launcher`: the module that holds `start(cfg, overrides) -> int`. It starts what `cfg` describes, or hands
# it to something that will; the ranks run `trainer.main` with `overrides`, from which they compose `cfg` again.
LAUNCHERS: dict[str, str] = {
    "local": "launch.local",
    "slurm": "launch.slurm",
}
