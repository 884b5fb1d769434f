"""The worked example of docs/extending.md: a command that greets the run it is given."""

from __future__ import annotations

from pathlib import Path

from launch.commands.kinds import define
from launch.commands.parameters import COUNT, option, takes_overrides, takes_run


@define(examples=("pointsman greet runs/first --times 2",))
@takes_run
@takes_overrides()
@option("--times", type=COUNT, default=1, help="how often")
def command(run: Path, overrides: tuple[str, ...], times: int) -> int:
    """Greet a run."""
    greet(run.name, overrides, times=times)
    return 0


def greet(name: str, overrides: tuple[str, ...], *, times: int = 1) -> None:
    """Print a greeting for each time."""
    for _ in range(times):
        print(f"hello {name} {' '.join(overrides)}".rstrip())
