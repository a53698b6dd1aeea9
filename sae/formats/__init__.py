"""SAE checkpoints of other programs: one module for each family, with `matches(path)` and `read(path)`.

No code is unpickled: torch files are opened with `weights_only=True`, and a file with code is refused.
`save` of the SAE that was read writes the sae-lens layout.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaudit.errors import ForeignArtifactError, UserInputError

if TYPE_CHECKING:
    from ..inference.model import ThresholdSAE, TopKSAE

#: In the order in which they are tried: first by file names, then by the content of the torch file.
FAMILIES = ("saelens", "sparsify", "saev", "dictionary_learning", "dncbm", "overcomplete")


def family_of(path: Path) -> Any:
    """Return the module of the family that wrote the file or folder at `path`.

    Errors: UserInputError if it does not exist; ForeignArtifactError if it belongs to no family, is cut
    off, or contains pickled code.
    """
    if not path.exists():
        raise UserInputError(
            f"{path} does not exist", "give a checkpoint, or the folder that holds it"
        )
    modules = [importlib.import_module(f".{name}", __name__) for name in FAMILIES]
    for module in modules:
        if module.matches(path):
            return module
    raise ForeignArtifactError(
        f"{path} is not an SAE checkpoint that can be read ({_what(path)})",
        "known: " + ", ".join(module.NAME for module in modules),
    )


def read_foreign(path: Path | str, *, k: int | None = None) -> ThresholdSAE | TopKSAE:
    """Return the SAE of a checkpoint; `metadata["imported_from"]` names its family.

    `k` is needed for a family whose files do not contain it (overcomplete; 0 for a ReLU SAE).
    Errors: those of `family_of`, and ForeignArtifactError for an SAE of another kind.
    """
    from .checkpoint import clear_cache

    path = Path(path)
    try:
        family = family_of(path)
        if getattr(family, "NEEDS_K", False):
            return family.read(path, k)
        if k is not None:
            raise UserInputError(
                f"--k is not for {path}: a checkpoint of {family.NAME} contains k", "leave it out"
            )
        return family.read(path)
    finally:
        clear_cache()


def _what(path: Path) -> str:
    """Describe what was found instead."""
    from .checkpoint import state_of, torch_file

    if path.is_dir() and torch_file(path) is None:
        return "it holds " + _few(sorted(entry.name for entry in path.iterdir()))
    state = state_of(path)
    return "no torch file" if state is None else "its tensors: " + _few(list(state))


def _few(names: list[str]) -> str:
    return (", ".join(names[:6]) + (", …" if len(names) > 6 else "")) or "nothing"
