"""Bias tables for the tests of phantoms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dermaudit.phantom import BiasTable, load_bias_table


@pytest.fixture(scope="session")
def ruler_table() -> Callable[..., BiasTable]:
    """`ruler_table(0.9, 0.1)`: the default table with P(ruler | melanoma) = .9 and .1 for the rest."""

    def make(melanoma: float, other: float) -> BiasTable:
        rows = {"default": {"ruler": other}, "mel": {"ruler": melanoma}}
        return load_bias_table().changed({"artifact": rows})

    return make
