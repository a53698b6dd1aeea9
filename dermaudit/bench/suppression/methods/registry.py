"""The extension point for methods of `bench suppress`: a file of this folder that defines `METHOD`, an object
with `name` and `fit(fold)` (`dermaudit.concepts.evidence.cross_fit.CrossFitMethod`).
"""

from __future__ import annotations

import functools

from dermaudit.concepts.evidence.cross_fit import CrossFitMethod
from dermaudit.plugins import discover


@functools.cache
def methods() -> dict[str, CrossFitMethod]:
    """Return {name: method} of every module of this folder that defines `METHOD`."""
    return discover(__name__.rpartition(".")[0], "METHOD")
