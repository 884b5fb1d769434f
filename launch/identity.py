"""Whether the names conf, data, launch, measure, model, parallel, .. mean this project's packages.

Such plain names are also what people call their own folders and modules. A foreign package found first would fail
later and obscurely ("cannot import name ..."), so every door (`pointsman`, `python -m trainer.main`) asks here before
it imports anything. For the same reason this file imports nothing but the standard library.

A plain folder without `__init__.py` (say `data/` full of text, beside which somebody starts a run) is no rival: Python
prefers a regular package wherever on the path it lies. An editable installation, however, is found by a hook behind
the whole path, and there the folder would win; this project's own folder is then put at the end of the path, which
restores Python's rule, also for processes that inherit the path.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

PACKAGES = ("conf", "data", "launch", "measure", "model", "parallel", "pointsman", "trainer")
ROOT = Path(__file__).resolve().parent.parent


def check_packages() -> None:
    """Make sure that every name in `PACKAGES` would be imported from beside this file; imports none of them.

    Ends the process with exit code 2 where another package or module of that name comes first, and a message that
    names both and what to do.
    """
    found = {name: _find(name) for name in PACKAGES}
    hidden = [name for name, spec in found.items() if spec is None or _is_plain_folder(spec)]
    if hidden:
        sys.path.append(str(ROOT))
        importlib.invalidate_caches()
        for name in hidden:
            sys.modules.pop(name, None)  # an empty namespace taken for `conf` on the way to this file
            found[name] = _find(name)
    for name, spec in found.items():
        ours = ROOT / name
        where = _location(spec)
        if where != ours:
            print(f"error: {complaint(name, where, ours)}", file=sys.stderr, flush=True)
            raise SystemExit(2)


def _find(name: str) -> ModuleSpec | None:
    """The spec of `name` as imported already or as `import name` would find it."""
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module put into sys.modules by hand, without a spec
        return None


def _is_plain_folder(spec: ModuleSpec) -> bool:
    return spec.origin is None and spec.submodule_search_locations is not None


def _location(spec: ModuleSpec | None) -> Path | None:
    """Folder of a package, or file of a module; `None` where nothing is found."""
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def complaint(name: str, foreign: Path | None, ours: Path) -> str:
    """What is wrong with a package that is found at `foreign` instead of at `ours`, and what to do."""
    if foreign is None:
        return f"package {name!r} is not found; it belongs at {ours}; reinstall with: pip install -e {ROOT}"
    return (
        f"package {name!r}: got {foreign}, which hides Pointsman's own {ours}; needs Pointsman's to come first; "
        f"try {_remedy(foreign.parent)}"
    )


def _remedy(folder: Path) -> str:
    """What puts our package first, judged by how `folder` came onto the path."""
    if folder == Path.cwd():
        return (
            f"another working directory than {folder}, or the `pointsman` command, which does not look there "
            "(with torchrun or deepspeed: export PYTHONSAFEPATH=1)"
        )
    return f"without {folder} on the path: remove it from PYTHONPATH, or uninstall the package that put it there"
