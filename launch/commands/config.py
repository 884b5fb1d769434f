"""`pointsman config`: what a configuration is and what follows from it, without starting anything."""

from __future__ import annotations

from launch.commands.kinds import define
from launch.commands.parameters import takes_overrides


@define(
    examples=(
        "pointsman config",
        "pointsman config model=switch_base_128 launch.nproc=8 parallel.ep=8",
    )
)
@takes_overrides()
def command(overrides: tuple[str, ...]) -> int:
    """Print what follows from the settings, then all of them as YAML; refuse what `train` would refuse.

    The whole text is YAML: what follows is in comments.
    """
    from conf.compose import compose
    from launch.describe import describe

    print(describe(compose(overrides)))
    return 0
