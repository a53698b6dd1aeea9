"""Write the generated parts of docs/architecture.md: the import graph and the list of files.

    python docs/scripts/architecture.py            # rewrite the page
    python docs/scripts/architecture.py --check    # exit 1 when the page is out of date

The graph is read from the source with `ast`; nothing is imported. An arrow from a lower to a higher
layer, or a cycle, ends with exit code 1 (tests/dermaudit/test_layers.py tests the same rule).
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
STAGE_FOLDERS = ("pretrain", "sae", "concepts", "dashboards")
#: Lower number: lower layer. `sae` does not import `pretrain`, and neither imports upwards.
LAYERS = {
    "core": 1,
    "pretrain": 2,
    "sae": 3,
    "concepts": 4,
    "dashboards": 5,
    "bench": 6,
    "audit": 6,
}


def source_files() -> dict[str, Path]:
    """{dotted module name: file} of the package, each file once (the links are not followed)."""
    found = {}
    for folder in ("dermaudit", *STAGE_FOLDERS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if any(parent.is_symlink() for parent in path.parents):
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if parts[0] == "dermaudit" else ("dermaudit", *parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "core"


def folder_of(module: str) -> str:
    """The node of a module in the graph: its capability folder, e.g. `sae/training`."""
    parts = module.split(".")[1:]
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0] if parts else "dermaudit"


def imports_of(module: str, path: Path) -> Iterator[str]:
    """The modules of this package that one file imports, also inside functions."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("dermaudit"))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            if target.split(".")[0] == "dermaudit":
                yield from (f"{target}.{alias.name}" for alias in node.names)


def resolve(target: str, files: dict[str, Path]) -> str:
    while target not in files and "." in target:
        target = target.rpartition(".")[0]
    return target


def folder_edges(files: dict[str, Path]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for module, path in files.items():
        here = folder_of(module)
        targets = {folder_of(resolve(target, files)) for target in imports_of(module, path)}
        edges.setdefault(here, set()).update(targets - {here, "dermaudit"})
    return edges


def upward_arrows(files: dict[str, Path]) -> list[str]:
    found = []
    for module, path in files.items():
        for target in imports_of(module, path):
            here, there = layer_of(module), layer_of(resolve(target, files))
            sideways = {here, there} == {"sae", "pretrain"} or (
                there == "pretrain" and here in ("concepts", "dashboards")
            )
            if LAYERS[there] > LAYERS[here] or sideways:
                found.append(f"{module} -> {target}")
    return found


def graph_table(files: dict[str, Path]) -> str:
    edges = folder_edges(files)
    lines = ["| folder | layer | imports |", "|---|---|---|"]
    order = sorted(
        edges, key=lambda name: (LAYERS[layer_of(f"dermaudit.{name}".replace("/", "."))], name)
    )
    for name in order:
        layer = LAYERS[layer_of(f"dermaudit.{name}".replace("/", "."))]
        lines.append(
            f"| `{name}` | {layer} | {', '.join(f'`{t}`' for t in sorted(edges[name])) or '–'} |"
        )
    return "\n".join(lines)


def file_table(files: dict[str, Path]) -> str:
    lines = ["| file | what it holds |", "|---|---|"]
    for path in sorted(files.values()):
        text = path.read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0].replace("|", "\\|")
        lines.append(f"| `{path.relative_to(ROOT)}` | {summary} |")
    return "\n".join(lines)


def updated(page: str, files: dict[str, Path]) -> str:
    for name, text in (("imports", graph_table(files)), ("files", file_table(files))):
        pattern = rf"(<!-- {name}: generated -->\n).*?(<!-- {name}: end -->)"
        page = re.sub(
            pattern, lambda match, text=text: match[1] + text + "\n" + match[2], page, flags=re.S
        )
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    files = source_files()
    arrows = upward_arrows(files)
    for arrow in arrows:
        sys.stderr.write(f"imports upwards: {arrow}\n")
    page = PAGE.read_text(encoding="utf-8")
    new = updated(page, files)
    if options.check and new != page:
        sys.stderr.write(
            "docs/architecture.md is out of date; run: python docs/scripts/architecture.py\n"
        )
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 1 if arrows else 0


if __name__ == "__main__":
    raise SystemExit(main())
