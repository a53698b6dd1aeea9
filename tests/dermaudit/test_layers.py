"""The layers of the package (docs/architecture.md): imports point down only.

Every import statement counts, also inside functions and under TYPE_CHECKING. The one exception is
the command registry, which names functions as text and imports them when a command runs.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import dermaudit

MAY_IMPORT = {
    "bench": {"bench", "dashboards", "concepts", "sae", "pretrain", "core"},
    "audit": {"audit", "dashboards", "concepts", "sae", "core"},
    "dashboards": {"dashboards", "concepts", "sae", "core"},
    "concepts": {"concepts", "sae", "core"},
    "sae": {"sae", "core"},
    "pretrain": {"pretrain", "core"},
    "core": {"core"},
}
UPPER_LAYERS = [layer for layer in MAY_IMPORT if layer != "core"]


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in UPPER_LAYERS else "core"


def modules(package: Path) -> dict[str, Path]:
    """{dotted name: file} of every module, through the links of a checkout or in a wheel."""
    found = {}
    folders = [package]
    while folders:
        folder = folders.pop()
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name != "__pycache__":
                folders.append(path)
            elif path.suffix == ".py":
                parts = [package.name, *path.relative_to(package).with_suffix("").parts]
                found[".".join(p for p in parts if p != "__init__")] = path
    return found


Found = tuple[str, list[str], int, int]


def imports(name: str, path: Path, *, top_only: bool = False) -> Iterator[Found]:
    """(module, names taken from it, level of relativity, line) of each import of one module."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in _at_top(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], 0, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, [alias.name for alias in node.names], node.level, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value, [], 0, node.lineno


def _at_top(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = ast.iter_child_nodes(node)
            pending.extend(child for child in inner if isinstance(child, ast.stmt))


def targets(module: str, names: list[str], known: dict[str, Path]) -> list[str]:
    """The modules that `from module import names` reaches: `from . import x` means the module x."""
    inner = [f"{module}.{name}" for name in names if f"{module}.{name}" in known]
    return inner + [module] * (len(inner) < max(1, len(names)))


def violations(package: Path) -> list[str]:
    known = modules(package)
    found = []
    for name, path in known.items():
        here = layer_of(name)
        # Streamlit resolves links and runs these as scripts: only absolute imports work there.
        script = here == "dashboards" and (path.stem == "app" or path.parent.name == "pages")
        for module, names, level, line in imports(name, path):
            place = f"{name}, line {line}: "
            if module.split(".")[0] in UPPER_LAYERS:
                found.append(place + f"bare import of '{module}', write dermaudit.{module}")
                continue
            if module.split(".")[0] != package.name:
                continue
            for target in targets(module, names, known):
                there = layer_of(target)
                if there not in MAY_IMPORT[here]:
                    found.append(place + f"{here} imports {there} ({target})")
                elif here == there != "core" and not level and not script:
                    found.append(place + f"absolute import of its own layer ({target})")
                elif here != there and level:
                    found.append(place + f"relative import across layers ({target})")
    return found


def import_cycle(package: Path) -> list[str]:
    """A cycle of imports that run at import time, or []."""
    known = modules(package)
    graph = {
        name: {
            target
            for module, names, _, _ in imports(name, path, top_only=True)
            for target in targets(module, names, known)
            if target in known and target != name
        }
        for name, path in known.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


PACKAGE = Path(dermaudit.__file__).parent


def test_every_layer_is_read():
    layers = {layer_of(name) for name in modules(PACKAGE)}
    assert layers == set(MAY_IMPORT)
    assert "dermaudit.data.manifest.manifest" in modules(PACKAGE)


def test_imports_go_down_only():
    assert violations(PACKAGE) == []


def test_no_import_cycle():
    assert import_cycle(PACKAGE) == []


def test_no_module_is_called_like_a_standard_one_in_the_dashboards():
    # Streamlit puts the app's folder on sys.path: html.py there would shadow the real one.
    import sys

    clashes = [
        name
        for name, path in modules(PACKAGE).items()
        if layer_of(name) == "dashboards" and path.stem in sys.stdlib_module_names
    ]
    assert clashes == []


# ---- negative control: a package in which every rule is broken once

BROKEN = {
    "sae/fit.py": "from dermaudit.concepts.naming import name\n",
    "sae/lazy.py": "def f():\n    import dermaudit.dashboards.app\n",
    "sae/typed.py": "import typing\nif typing.TYPE_CHECKING:\n    import dermaudit.pretrain\n",
    "sae/own.py": "from dermaudit.sae.fit import fit\n",
    "sae/literal.py": "import importlib\nimportlib.import_module('dermaudit.concepts')\n",
    "pretrain/side.py": "from dermaudit.sae import topk\n",
    "pretrain/dots.py": "from ..errors import E\n",
    "concepts/bare.py": "from sae.fit import fit\n",
    "data/up.py": "from dermaudit import sae\n",
    "data/up2.py": "from ..concepts import x\n",
}
CORRECT = {
    "errors.py": "class E(Exception): ...\n",
    "sae/topk.py": "from dermaudit.errors import E\nfrom .part import p\nfrom . import part\n",
    "sae/part.py": "p = 1\n",
    "concepts/naming.py": "from dermaudit.sae.topk import p\n",
    "dashboards/app.py": "from dermaudit.dashboards.table import t\nimport dermaudit.sae\n",
    "dashboards/table.py": "t = 1\n",
    "data/a.py": "from ..errors import E\nfrom dermaudit.data.b import c\n",
    "data/b.py": "def c():\n    from .a import E\n    return E\n",
}


def build(root: Path, files: dict[str, str]) -> Path:
    package = root / "dermaudit"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in (package, path.parent):
            (folder / "__init__.py").touch()
    return package


def test_a_correct_package_passes(tmp_path):
    package = build(tmp_path, CORRECT)
    assert violations(package) == []
    assert import_cycle(package) == []


@pytest.mark.parametrize("broken", BROKEN)
def test_each_broken_rule_is_reported(tmp_path, broken):
    package = build(tmp_path, {**CORRECT, broken: BROKEN[broken]})
    name = "dermaudit." + broken.removesuffix(".py").replace("/", ".")
    found = violations(package)
    assert len(found) == 1 and found[0].startswith(f"{name}, line "), found


def test_an_import_cycle_is_reported(tmp_path):
    package = build(tmp_path, {**CORRECT, "errors.py": "from dermaudit.data import a\n"})
    assert {"dermaudit.errors", "dermaudit.data.a"} <= set(import_cycle(package))
