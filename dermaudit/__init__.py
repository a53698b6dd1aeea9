"""dermaudit opens dermatology vision-language models and shows what they look at.

The public names are loaded when first used (PEP 562): importing the package loads no torch.
Research use, not a medical device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "dermaudit.towers",
    "open_run": "dermaudit.run.directory",
    "Manifest": "dermaudit.data",
    "Suppressor": "dermaudit.concepts.inference.suppressor",
    "DermauditError": "dermaudit.errors",
    "UserInputError": "dermaudit.errors",
    "EvidenceError": "dermaudit.errors",
}

if TYPE_CHECKING:
    from dermaudit.data import Manifest as Manifest
    from dermaudit.errors import DermauditError as DermauditError
    from dermaudit.errors import EvidenceError as EvidenceError
    from dermaudit.errors import UserInputError as UserInputError
    from dermaudit.run.directory import open_run as open_run
    from dermaudit.towers import load_model as load_model

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
