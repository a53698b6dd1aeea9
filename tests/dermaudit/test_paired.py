"""Paired figures: the tests between models on the same draws, and Holm's correction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermaudit.errors import UserInputError
from dermaudit.stats.intervals import GroupBootstrap
from dermaudit.stats.paired import bootstrap_figures, holm, least_p, paired_test


def mean_of(values):
    return lambda weights: (weights @ values / weights.sum(1))[:, None]


def test_holm_by_hand():
    # .01 * 3, .02 * 2, .03 * 1 and never below the one before it
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_holm_nan_is_no_comparison():
    assert holm([0.02, np.nan, 0.03]) == pytest.approx([0.04, np.nan, 0.04], nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_between_p_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all() or len(p) > 1
    assert (adjusted <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_paired_test_by_hand():
    a = np.arange(100.0)  # every difference but one is above 0
    low, high, p = paired_test(a, np.full(100, 0.0))
    assert p == pytest.approx(2 * 2 / 101)
    assert (low, high) == pytest.approx((2.475, 96.525))
    assert paired_test(a, a)[2] == 1.0


def test_paired_test_undefined_draws():
    assert np.isnan(paired_test(np.full(10, np.nan), np.ones(10))).all()


def test_figures_pairing_sees_what_unpaired_intervals_hide():
    """Model b is right wherever a is, and on a few images more: certain although both vary."""
    rng = np.random.default_rng(0)
    a = (rng.random(400) < 0.5).astype(float)
    b = a.copy()
    b[np.flatnonzero(a == 0)[:15]] = 1.0
    bootstrap = GroupBootstrap(range(400), 500, 0)
    figures = bootstrap_figures({"a": mean_of(a), "b": mean_of(b)}, ["accuracy"], 400, bootstrap)
    (_, high_a), (low_b, _) = figures.interval(0, 0), figures.interval(1, 0)
    assert high_a > low_b
    (only,) = figures.compare()
    assert only.difference == pytest.approx(-15 / 400)
    assert only.p_holm < 0.01
    assert only.high < 0


def test_figures_under_the_null_p_is_uniform():
    """Two equally good models: p below .1 in about a tenth of the worlds, not more."""
    low = 0
    for world in range(60):
        rng = np.random.default_rng(world)
        a, b = (rng.random((2, 120)) < 0.7).astype(float)
        bootstrap = GroupBootstrap(range(120), 200, world)
        found = bootstrap_figures({"a": mean_of(a), "b": mean_of(b)}, ["x"], 120, bootstrap)
        low += found.compare()[0].p < 0.1
    assert 1 <= low <= 14


def test_figures_groups_widen_the_interval():
    values = np.repeat((np.arange(40) % 2).astype(float), 10)
    by_group = GroupBootstrap(np.repeat(np.arange(40), 10), 400, 0)
    by_row = GroupBootstrap(range(400), 400, 0)
    wide = bootstrap_figures({"m": mean_of(values)}, ["x"], 400, by_group).interval(0, 0)
    narrow = bootstrap_figures({"m": mean_of(values)}, ["x"], 400, by_row).interval(0, 0)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_figures_blocks_change_nothing():
    bootstrap = GroupBootstrap(["a", "a", "b", "c", "d"], 17, 3)
    assert np.array_equal(np.concatenate(list(bootstrap.blocks(11))), bootstrap.matrix())


def test_figures_reference():
    values = np.random.default_rng(0).random((3, 50))
    statistics = {name: mean_of(v) for name, v in zip("abc", values, strict=True)}
    figures = bootstrap_figures(statistics, ["x"], 50, GroupBootstrap(range(50), 100, 0))
    assert [(c.model, c.other) for c in figures.compare()] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [(c.model, c.other) for c in figures.compare(reference="b")] == [("a", "b"), ("c", "b")]
    with pytest.raises(UserInputError, match="unknown reference model 'd'"):
        figures.compare(reference="d")


def test_least_p_names_what_draws_cannot_show():
    assert least_p(1000, 24) == pytest.approx(48 / 1001)
    assert least_p(99, 100) == 1.0
