"""Checks of the array shapes in the signatures of the numeric core, in tests only.

The package annotates shapes as `Float[Tensor, "n d"]` and imports jaxtyping for type checkers alone. Here
every such function is wrapped, so that beartype compares each argument with its shape. Only annotations
with a shape are checked: the others are the business of pyright.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

CORE = (
    "dermaudit.stats.intervals",
    "dermaudit.heads",
    "dermaudit.sae.inference.model",
    "dermaudit.sae.inference.suppressor",
    "dermaudit.sae.evaluation.monosemanticity",
    "dermaudit.sae.evaluation.stability",
)
KINDS = ("Float", "Int", "Bool", "Shaped")


def install() -> int:
    """Wrap every annotated function and method of the core; returns how many there are."""
    wrapped: dict[Callable[..., Any], Callable[..., Any]] = {}
    for name in CORE:
        module = importlib.import_module(name)
        for value in list(vars(module).values()):
            if inspect.isclass(value) and value.__module__ == name:
                for attribute, method in list(vars(value).items()):
                    if _has_shapes(method):
                        wrapped[method] = _checked(method)
                        setattr(value, attribute, wrapped[method])
            elif getattr(value, "__module__", "") == name and _has_shapes(value):
                wrapped[value] = _checked(value)
    for module in [m for n, m in sys.modules.items() if n.startswith("dermaudit.") and m]:
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value in wrapped:
                setattr(module, name, wrapped[value])
    return len(wrapped)


def _has_shapes(value: object) -> bool:
    return isinstance(value, types.FunctionType) and any(
        _is_shape(text) for text in value.__annotations__.values()
    )


def _is_shape(annotation: object) -> bool:
    return isinstance(annotation, str) and any(f"{kind}[" in annotation for kind in KINDS)


def _checked(function: types.FunctionType) -> Callable[..., Any]:
    """Return the function with its shapes checked; generators and defaults stay as they are."""
    import jaxtyping
    import numpy as np
    import torch
    from beartype import beartype

    names = {**{kind: getattr(jaxtyping, kind) for kind in KINDS}, "np": np, "Tensor": torch.Tensor}
    copy = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    functools.update_wrapper(copy, function)
    del copy.__wrapped__
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = {
        name: eval(text, {**function.__globals__, **names})
        for name, text in function.__annotations__.items()
        if _is_shape(text)
    }
    return jaxtyping.jaxtyped(copy, typechecker=beartype)
