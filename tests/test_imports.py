"""The rules of the tree that a machine can check: who imports whom, who may call what, and how long things get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A file imports from its own box or a box to its left in: conf | data, parallel, launch | model | trainer | measure.
MAY_IMPORT = {
    "conf": {"conf"},
    "data": {"conf", "data"},
    "parallel": {"conf", "parallel"},
    "launch": {"conf", "launch"},
    "model": {"conf", "parallel", "model"},
    "trainer": {"conf", "data", "parallel", "launch", "model", "trainer"},
    "measure": {"conf", "data", "parallel", "launch", "model", "trainer", "measure"},
    "pointsman": {"model", "trainer", "pointsman"},
}
WITHOUT_TORCH = ("conf", "data", "launch", "pointsman")

# Library -> where it may be imported (prefixes of paths).
ONLY_IN = {
    "deepspeed": ("parallel/engine/", "measure/speed/peers/layers.py"),  # a peer to be timed
    "megatron": ("parallel/mesh/groups.py", "parallel/layers/tensor.py"),
    "omegaconf": ("conf/",),
    "hydra": ("conf/",),
    "wandb": ("trainer/report/",),
    "datasets": ("data/",),
    "sentencepiece": ("data/text/",),
    "tokenizers": ("data/text/tokenizer_json.py",),
}
COLLECTIVES = {
    "all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_gather_object", "all_gather_single",
    "all_reduce", "all_reduce_coalesced", "all_to_all", "all_to_all_single", "barrier", "batch_isend_irecv",
    "broadcast", "broadcast_object_list", "gather", "gather_object", "irecv", "isend", "monitored_barrier", "recv",
    "recv_object_list", "reduce", "reduce_scatter", "reduce_scatter_single", "reduce_scatter_tensor", "scatter",
    "scatter_object_list", "send", "send_object_list",
}  # fmt: skip
MAY_UNPICKLE = (
    "trainer/checkpoint/",
    "model/hf/files.py",  # weights_only, which refuses anything but tensors
    "data/children.py",  # bytes of a private pipe to a process that it started itself, never of a file
    "launch/ranks/child.py",  # the same
    "launch/ranks/rank.py",  # the same
)
UNSAFE_READS = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.hub.load", "dill.load"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_FILES = 400, 60, 12


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


SOURCES = python_files(*MAY_IMPORT)
EVERYTHING = [*SOURCES, *python_files("tests", "benchmarks")]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, wherever in the file; names of `from x import y` come as x.y."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def names_used(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every dotted name in the file with its line, aliases of imports replaced by what they stand for."""
    stands_for = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            stands_for.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            stands_for.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, *rest = ast.unparse(node).split(".")
            yield ".".join([stands_for.get(first, first), *rest]), node.lineno


def import_time_nodes(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements run by importing the file: not function bodies, not `if TYPE_CHECKING`."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def no(violations: list[str]) -> None:
    assert not violations, "\n" + "\n".join(violations)


def test_imports_point_to_the_left():
    no([
        f"{short(path)}:{line} imports {module}"
        for path in SOURCES
        for module, line in imports(tree_of(path))
        if (box := module.split(".")[0]) in MAY_IMPORT and box not in MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    ])  # fmt: skip


def module_of(path: Path) -> str:
    """Dotted name of a source file; of an `__init__.py` that of its folder."""
    return short(path)[:-3].replace("/", ".").removesuffix(".__init__")


def import_graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> the modules of `trees` it imports, wherever in the file; `from folder import file` means the file."""
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        found = (m if m in trees else m.rpartition(".")[0] for m, _ in imports(tree))
        graph[name] = {m for m in found if m in trees and m != name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[str]:
    """One line for each group of nodes that reach each other."""
    reach = {node: set(targets) for node, targets in graph.items()}
    for middle in graph:
        for node in graph:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    tied = {frozenset(b for b in graph if b in reach[a] and a in reach[b]) for a in graph if a in reach[a]}
    return sorted(" <-> ".join(sorted(group)) for group in tied)


def test_no_two_files_import_each_other():
    no(circles(import_graph({module_of(path): tree_of(path) for path in SOURCES})))


@pytest.mark.parametrize("file", ["Dockerfile", ".dockerignore", "pyproject.toml", "launch/identity.py"])
def test_no_box_is_forgotten_where_they_are_listed(file):
    """The image copies every box, the build context and the package hold it, the guard knows its name."""
    forms = {"Dockerfile": "COPY {0} ./{0}\n", ".dockerignore": "\n!{0}\n", "pyproject.toml": '"{0}*"'}
    form = forms.get(file, '"{0}"')
    text = (ROOT / file).read_text(encoding="utf-8")
    no([f"{file} lacks {form.format(box)!r}" for box in MAY_IMPORT if form.format(box) not in text])


def folder_graph(graph: dict[str, set[str]], folder: str) -> dict[str, set[str]]:
    """Arrows between the files that lie directly in `folder` and its sub-folders, each sub-folder taken as one node."""
    nodes: dict[str, set[str]] = {}
    for module, targets in graph.items():
        if module.startswith(f"{folder}."):
            node = ".".join(module.split(".")[: folder.count(".") + 2])
            inside = {".".join(t.split(".")[: folder.count(".") + 2]) for t in targets if t.startswith(f"{folder}.")}
            nodes.setdefault(node, set()).update(inside - {node})
    return nodes


def folders_of(modules: Iterable[str]) -> list[str]:
    """Every folder that holds a module, at whatever depth."""
    return sorted({module[:at] for module in modules for at, sign in enumerate(module) if sign == "."})


def test_no_two_folders_import_each_other():
    graph = import_graph({module_of(path): tree_of(path) for path in SOURCES})
    no([found for folder in folders_of(graph) for found in circles(folder_graph(graph, folder))])


# Studies have one form, so that who knows one knows the next.
ALIKE = "measure/studies/"


def same_names(paths: Iterable[str]) -> list[str]:
    """A line for each file name that occurs twice in a box."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        box, _, rest = path.partition("/")
        name = rest.rpartition("/")[2]
        if name not in ("__init__.py", "__main__.py") and not path.startswith(ALIKE):
            found.setdefault((box, name), []).append(path)
    return [" and ".join(paths) for paths in found.values() if len(paths) > 1]


def crowded(paths: Iterable[str]) -> list[str]:
    """A line for each folder with too many files, and for each prefix that should be a folder."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name != "__init__.py":
            folders.setdefault(folder, []).append(name.removesuffix(".py"))
    lines = [f"{folder} holds {len(names)} files; {MAX_FILES} are the most"
             for folder, names in folders.items() if len(names) > MAX_FILES]  # fmt: skip
    for folder, names in folders.items():
        prefixes = Counter(name.partition("_")[0] for name in names)
        lines += [f"{folder} holds {n} files {prefix}*: a folder" for prefix, n in prefixes.items() if n > 2]
    return lines


def test_a_file_name_occurs_once_in_a_box():
    no(same_names(map(short, SOURCES)))


def test_folders_are_small_and_prefixes_are_folders():
    no(crowded(map(short, SOURCES)))


def test_libraries_stay_behind_their_seam():
    no([
        f"{short(path)}:{line} imports {module}; allowed in {', '.join(ONLY_IN[library])}"
        for path in SOURCES
        for module, line in imports(tree_of(path))
        if (library := module.split(".")[0]) in ONLY_IN and not short(path).startswith(ONLY_IN[library])
    ])  # fmt: skip


def test_torch_is_not_imported_by_importing_conf_data_or_launch():
    no([
        f"{short(path)}:{line} imports {module}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in WITHOUT_TORCH
        for node in import_time_nodes(tree_of(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module, line in imports(node)
        if module.split(".")[0] == "torch"
    ])  # fmt: skip


@pytest.mark.parametrize("box", WITHOUT_TORCH)
def test_torch_stays_out_of_a_fresh_process(box):
    modules = [short(path)[:-3].replace("/", ".").removesuffix(".__init__") for path in python_files(box)]
    script = "import importlib, sys\n" + "".join(
        f"importlib.import_module({module!r})\nassert 'torch' not in sys.modules, {module!r}\n"
        for module in modules
        if not module.endswith("__main__")
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_collectives_are_called_in_one_file():
    no([
        f"{short(path)}:{line} uses {name}; parallel/mesh/collectives.py has it"
        for path in SOURCES
        if short(path) != "parallel/mesh/collectives.py"
        for name, line in names_used(tree_of(path))
        if name.startswith(("torch.distributed.", "deepspeed.comm.")) and name.rsplit(".", 1)[1] in COLLECTIVES
    ])  # fmt: skip


def test_the_model_knows_no_process_group():
    no([
        f"{short(path)}:{line} uses {name}"
        for path in python_files("model")
        for name, line in [*imports(tree_of(path)), *names_used(tree_of(path))]
        if name.startswith("torch.distributed")
    ])  # fmt: skip


def test_nothing_is_unpickled_outside_the_checkpoint():
    no([
        f"{short(path)}:{line} uses {name}"
        for path in SOURCES
        if not short(path).startswith(MAY_UNPICKLE)
        for name, line in names_used(tree_of(path))
        if name in UNSAFE_READS
    ])  # fmt: skip


def test_no_configuration_file_names_code_to_run():
    files = [path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.y*ml")]
    assert files, "the configuration groups are YAML files in conf/"
    no([f"{short(path)} contains _target_" for path in files if "_target_" in path.read_text(encoding="utf-8")])


def test_files_have_one_screenful_of_job():
    no([
        f"{short(path)} has {lines} lines; {MAX_FILE_LINES} are the most"
        for path in EVERYTHING
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    ])  # fmt: skip


def test_functions_are_short():
    no([
        f"{short(path)}:{node.lineno} {node.name} has {lines} lines; {MAX_FUNCTION_LINES} are the most"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ])  # fmt: skip


def test_sources_are_ascii_and_say_their_job():
    no([f"{short(path)} is not ASCII" for path in EVERYTHING if not path.read_bytes().isascii()])
    no([
        f"{short(path)} has no docstring"
        for path in SOURCES
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree_of(path))
    ])  # fmt: skip


def test_the_rules_find_what_they_look_for():
    """The walkers on a file that breaks every rule: a rule that cannot fail is no rule."""
    tree = ast.parse(
        "import torch.distributed as dist\nfrom torch import distributed as d2, load\nimport pickle as p\n"
        "from model.t5 import model\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    import torch\n    d2.barrier()\n    dist.all_reduce(x)\n    p.loads(b)\n    load(f)\n"
    )
    used = {name for name, _ in names_used(tree)}
    assert used >= {"torch.distributed.barrier", "torch.distributed.all_reduce", "pickle.loads", "torch.load"}
    assert ("model.t5.model", 4) in set(imports(tree))
    at_import = [node for node in import_time_nodes(tree) if isinstance(node, ast.Import)]
    assert [node.lineno for node in at_import] == [3, 1]


def test_a_circle_is_found_through_other_files_and_through_folders():
    trees = {
        "a.one": ast.parse("def f():\n    from a import two"),
        "a.two": ast.parse("if TYPE_CHECKING:\n    from b.three import g"),
        "b.three": ast.parse("import a.one"),
        "b.four": ast.parse("from b.three import g"),
    }
    assert circles(import_graph(trees)) == ["a.one <-> a.two <-> b.three"]


def test_a_circle_between_folders_is_found_though_no_file_is_in_one():
    graph = {"a.x.one": {"a.y.two"}, "a.y.two": set(), "a.y.three": {"a.x.four"}, "a.x.four": set(), "a.z": {"a.x.one"}}
    assert circles(graph) == []
    assert folders_of(graph) == ["a", "a.x", "a.y"]
    assert circles(folder_graph(graph, "a")) == ["a.x <-> a.y"]
    assert circles(folder_graph({**graph, "a.x.four": {"a.z"}, "a.y.three": set()}, "a")) == ["a.x <-> a.z"]
    assert folder_graph(graph, "a.x") == {"a.x.one": set(), "a.x.four": set()}


def test_same_names_and_crowds_are_found():
    twice = ["a/x/one.py", "a/y/one.py", "b/one.py", "a/x/__init__.py", "a/y/__init__.py", f"{ALIKE}p/cells.py"]
    assert same_names(twice) == ["a/x/one.py and a/y/one.py"]
    assert crowded(["a/run.py", "a/run_one.py", "a/b/run_two.py", "a/c/run_three.py"]) == []
    assert crowded(["a/run.py", "a/run_one.py", "a/run_two.py"]) == ["a holds 3 files run*: a folder"]
    many = [f"a/{letter}.py" for letter in "abcdefghijklm"]
    assert crowded([*many, "a/__init__.py"]) == ["a holds 13 files; 12 are the most"]
    assert crowded([*many[1:], "a/__init__.py"]) == []
