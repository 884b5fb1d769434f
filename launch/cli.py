"""The `pointsman` command: finds the command that is meant and runs it. Imports neither torch nor Hydra by itself."""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from conf.errors import ConfigError
from launch.commands import COMMANDS, Command, command_help, overview
from launch.identity import check_packages
from launch.process import DEBUG_VARIABLE, guarded

HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code: the command's own; 2 for what the user can mend; 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in words:
        words = [word for word in words if word != "--debug"]
        os.environ[DEBUG_VARIABLE] = "1"
    try:
        code = guarded(lambda: _dispatch(words))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader (`| head`) has had enough; what is still buffered must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in (*HELP, "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"pointsman {_version()}")
        return 0
    command, arguments = _find(words[0]), words[1:]
    check_packages()
    if command.module is not None:
        return importlib.import_module(command.module).main(arguments)
    if any(word in HELP for word in arguments):
        print(command_help(command))
        return 0
    return {"train": _train, "config": _config, "slurm": _slurm}[command.name](arguments)


def _find(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"pointsman {close[0]}" if close else "pointsman --help"
    if "=" in name:
        hint = f"pointsman train {name}"
    raise ConfigError("command", got=name, needs="one of " + ", ".join(COMMANDS), hint=hint)


def _version() -> str:
    try:
        return version("pointsman")
    except PackageNotFoundError:
        return "(not installed: run `pip install -e .` in its folder)"


def _train(overrides: list[str]) -> int:
    from conf.compose import compose
    from launch.local import become, plan
    from launch.naming import with_name

    cfg = compose(overrides)
    if cfg.launch.launcher == "slurm":
        return _slurm(["--submit", *overrides])
    if cfg.launch.max_restarts:
        if cfg.name is None and cfg.launch.nodes > 1:
            needs = "a name, the same on every node, by which restarted ranks find the run's checkpoints"
            raise ConfigError("name", got=None, needs=needs, hint="name=first")
        cfg, overrides = with_name(overrides, cfg)
    return become(plan(cfg.launch, overrides, run_name=cfg.name, environment=os.environ))


def _config(overrides: list[str]) -> int:
    from conf.compose import compose
    from launch.describe import describe

    print(describe(compose(overrides)))
    return 0


def _slurm(arguments: list[str]) -> int:
    from launch.slurm import main as slurm

    return slurm(arguments)


if __name__ == "__main__":
    sys.exit(main())
