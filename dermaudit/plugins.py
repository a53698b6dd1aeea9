"""Discovery of extension points: each implementation is one module of a package."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def discover(package: str, attribute: str) -> dict[str, Any]:
    """Return {name: object} of every module of `package` that defines `attribute`, in alphabetical
    order of the modules. The object has the attribute `name`.
    """
    names = [
        found.name for found in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ]
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    objects = [getattr(module, attribute) for module in modules if hasattr(module, attribute)]
    return {found.name: found for found in objects}
