"""Trap splits: strengths reached, nothing twice, fit / choose / test apart and within their splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dermaudit.concepts.suppression.trap import MIN_CHOICE, make_trap
from dermaudit.errors import EvidenceError
from dermaudit.stats.intervals import MIN_CELL


def table(n: int, seed: int, p_y: float = 0.5, p_a: float = 0.5, unknown: float = 0.0):
    rng = np.random.default_rng(seed)
    y, a = (np.where(rng.random(n) < unknown, np.nan, rng.random(n) < p) for p in (p_y, p_a))
    splits = rng.choice(np.array(["train", "val", "test"], dtype=object), n, p=[0.4, 0.2, 0.4])
    return y, a, splits, np.array([f"g{g}" for g in rng.integers(0, n // 2, n)], dtype=object)


def share(y, a, rows, value):
    return a[rows][y[rows] == value].mean()


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.5, 0.7, 0.8, 0.9, 1.0]),
    st.floats(0.3, 0.7),
    st.floats(0.3, 0.7),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_trap_properties(seed, strength, p_y, p_a, grouped):
    y, a, splits, groups = table(3000, seed, p_y, p_a, unknown=0.1)
    try:
        trap = make_trap(
            y, a, splits, groups=groups if grouped else None, strength=strength, seed=seed
        )
    except EvidenceError:
        assume(False)
    parts = {"fit": trap.fit, "choose": trap.choose, "test": trap.test}
    for rows in parts.values():
        assert len(set(rows.tolist())) == len(rows)
        assert np.isfinite(y[rows]).all() and np.isfinite(a[rows]).all()
    every = np.concatenate(list(parts.values()))
    assert len(set(every.tolist())) == len(every)
    assert set(splits[trap.fit]) == {"train"} and set(splits[trap.test]) == {"test"}
    assert set(splits[trap.choose]) <= {"train", "val"}
    for value, wanted in ((1, strength), (0, 1 - strength)):
        cell = (y[trap.fit] == value).sum()
        assert share(y, a, trap.fit, value) == pytest.approx(wanted, abs=1 / cell)
    # Every labelled val image is a row of choice, and there the groups of a label weigh the same.
    known = np.isfinite(y) & np.isfinite(a)
    assert set(np.flatnonzero(known & (splits == "val"))) <= set(trap.choose)
    weight = trap.weights(trap.choose)
    for cell in trap.cells(trap.choose).values():
        assert len(cell) >= MIN_CHOICE
        assert weight[np.isin(trap.choose, cell)].sum() == pytest.approx(1)
    if trap.test_is == "swapped":
        assert share(y, a, trap.test, 1) == pytest.approx(1 - strength, abs=0.02)
    else:
        known = np.isfinite(y) & np.isfinite(a) & (splits == "test")
        np.testing.assert_array_equal(trap.test, np.flatnonzero(known))
    cells = trap.cells(trap.test)
    assert sum(len(rows) for rows in cells.values()) == len(trap.test)
    assert min(len(rows) for rows in cells.values()) >= MIN_CELL
    if grouped:
        spare = trap.choose[splits[trap.choose] == "train"]
        assert not set(groups[spare]) & set(groups[trap.fit])


def test_draw_the_largest_that_has_the_strength():
    # 100 positives with the artifact and 50 without at strength .8: 100 / .8 = 125 → 100 + 25.
    y = np.r_[np.ones(150), np.zeros(150)]
    a = np.r_[np.ones(100), np.zeros(50), np.ones(50), np.zeros(100)]
    y, a = np.tile(y, 3), np.tile(a, 3)
    splits = np.repeat(np.array(["train", "val", "test"], dtype=object), 300)
    trap = make_trap(y, a, splits, strength=0.8)
    assert {k: len(v) for k, v in trap.cells(trap.fit).items()} == {
        "y=0 a=0": 100,
        "y=0 a=1": 25,
        "y=1 a=0": 25,
        "y=1 a=1": 100,
    }
    assert trap.test_is == "every labelled test image"  # swapped would leave 13 of a kind
    assert len(trap.test) == 300


def test_swapped_when_there_is_enough():
    y, a, splits, _ = table(8000, 0)
    trap = make_trap(y, a, splits, strength=0.9)
    assert trap.test_is == "swapped"
    assert share(y, a, trap.test, 1) == pytest.approx(0.1, abs=0.01)
    assert share(y, a, trap.fit, 1) == pytest.approx(0.9, abs=0.01)


def test_same_seed_same_rows():
    case = table(3000, 1)[:3]
    one, again, other = (make_trap(*case, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.fit, again.fit)
    assert not np.array_equal(one.fit, other.fit)


def test_too_few_the_counts_are_given():
    y, a, splits, _ = table(3000, 2)
    a = np.where((splits == "test") & (y == 1) & (a == 1), np.nan, a)
    a[np.flatnonzero((splits == "test") & (y == 1))[:7]] = 1
    with pytest.raises(EvidenceError, match="y=1 a=1: 7 test images") as refused:
        make_trap(y, a, splits)
    assert refused.value.numbers["y=1 a=1"] == 7 and refused.value.exit_code == 3
    y, a, splits, _ = table(3000, 3)
    y = np.where((splits != "test") & (y == 1), np.nan, y)
    with pytest.raises(EvidenceError, match="too few images of class 1 to fit a head: 0"):
        make_trap(y, a, splits)
    y, a, splits, _ = table(3000, 4)
    a = np.where((splits == "val") & (y == 1) & (a == 1), np.nan, a)
    with pytest.raises(EvidenceError, match="too few images to choose latents: 0 of y=1 a=1"):
        make_trap(y, a, splits, strength=1.0)  # the head takes every train image that shows it
