"""Ranking scores against scikit-learn, weights against repeated rows, the bootstrap over groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from dermaudit.stats.intervals import (
    GroupBootstrap,
    auprc,
    auprc_draws,
    auprc_table,
    auroc,
    auroc_draws,
    auroc_interval,
    auroc_many,
    percentile_interval,
)


@st.composite
def tied_scores(draw):
    """(truth, score, weight): few distinct scores, so that most of them are tied; both classes."""
    n = draw(st.integers(4, 40))
    truth = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), dtype=float)
    truth[:2] = [0, 1]
    score = np.array(draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), dtype=float) / 2
    weight = np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), dtype=float)
    weight[:2] = np.maximum(weight[:2], 1)
    return truth, score, weight


def test_auroc_by_hand():
    # Pairs (positive, negative): 0.8>0.5, 0.8>0.1, 0.5=0.5 (half), 0.5>0.1 → 3.5 of 4.
    assert auroc(np.array([1, 0, 1, 0]), np.array([0.8, 0.5, 0.5, 0.1])) == 3.5 / 4


def test_auprc_by_hand():
    # Steps: {0.8}: precision 1, recall ½; {0.5, 0.5}: precision ⅔, recall 1.
    assert auprc(np.array([1, 0, 1, 0]), np.array([0.8, 0.5, 0.5, 0.1])) == pytest.approx(
        0.5 * 1 + 0.5 * 2 / 3
    )


def test_one_class_nan():
    ones, score = np.ones(4), np.arange(4.0)
    assert np.isnan(auroc(ones, score)) and np.isnan(auroc(1 - ones, score))
    assert np.isnan(auprc(1 - ones, score))
    assert np.isnan(auroc_draws(np.array([1, 0.0]), np.array([1, 0.0]), np.array([[1, 0.0]]))[0])
    assert np.isnan(auprc_table(score[:, None], np.stack([ones, 1 - ones], 1))).all()


@given(tied_scores())
@settings(max_examples=60, deadline=None)
def test_scores_equal_scikit_learn_with_ties(case):
    truth, score, weight = case
    assert auroc(truth, score) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    assert auprc(truth, score) == pytest.approx(average_precision_score(truth, score), abs=1e-12)
    assert auroc_draws(truth, score, weight[None])[0] == pytest.approx(
        roc_auc_score(truth, score, sample_weight=weight), abs=1e-12
    )
    assert auprc(truth, score, weight) == pytest.approx(
        average_precision_score(truth, score, sample_weight=weight), abs=1e-12
    )


@given(tied_scores())
@settings(max_examples=40, deadline=None)
def test_weights_are_repeated_rows(case):
    truth, score, weight = case
    rows = np.repeat(np.arange(len(truth)), weight.astype(int))
    assert auroc_draws(truth, score, weight[None])[0] == pytest.approx(
        auroc(truth[rows], score[rows])
    )
    assert auprc(truth, score, weight) == pytest.approx(auprc(truth[rows], score[rows]))


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_table_unknown_rows_are_left_out(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (30, 3)).astype(float)
    truths = rng.choice([0.0, 1.0, np.nan], (30, 4))
    table = auprc_table(scores, truths)
    for t in range(4):
        known = np.isfinite(truths[:, t])
        for s in range(3):
            alone = average_precision_score(truths[known, t], scores[known, s])
            assert table[t, s] == pytest.approx(alone, abs=1e-12)


def test_auroc_many_equals_one_by_one():
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 2, 50), rng.integers(0, 5, (50, 7)).astype(float)
    each = [roc_auc_score(truth, scores[:, j]) for j in range(7)]
    np.testing.assert_allclose(auroc_many(truth, scores), each, atol=1e-12)


# ---- the bootstrap over groups


def test_bootstrap_draws_whole_groups():
    groups = ["a", "b", "a", "c", "b", "a"]
    bootstrap = GroupBootstrap(groups, n_draws=200, seed=1)
    for weight in bootstrap.weights():
        assert weight[0] == weight[2] == weight[5] and weight[1] == weight[4]
        assert weight[0] + weight[1] + weight[3] == 3  # as many groups as there are


def test_bootstrap_same_seed_same_draws():
    groups = np.arange(20) // 2
    one, again, other = (
        np.array(list(GroupBootstrap(groups, 30, seed).weights())) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    bootstrap = GroupBootstrap(groups, 30, 0)  # one object: every figure sees the same draws
    np.testing.assert_array_equal(np.array(list(bootstrap.weights())), one)
    np.testing.assert_array_equal(np.array(list(bootstrap.weights())), one)


def test_draws_are_joint_over_scores():
    rng = np.random.default_rng(0)
    truth, score = rng.integers(0, 2, 40).astype(float), rng.normal(size=40)
    bootstrap = GroupBootstrap(np.arange(40) // 2, 50, 3)
    draws = auprc_draws(truth, [score, score, -score], bootstrap.matrix())
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    for row, weight in zip(draws, bootstrap.weights(), strict=True):
        assert row[2] == pytest.approx(average_precision_score(truth, -score, sample_weight=weight))
        assert row[3] == pytest.approx((weight * truth).sum() / weight.sum())


def test_interval_covers_a_known_mean():
    # Means of 40 groups of N(0.3, 1) in 200 repetitions: 95 % intervals cover 0.3 about that often.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 3)
    covered, narrow = 0, 0
    for i in range(200):
        values = np.repeat(rng.normal(0.3, 1, 40), 3)  # rows of a group say the same thing

        def mean(weight, values=values):
            return float((weight * values).sum() / weight.sum())

        low, high = GroupBootstrap(groups, 200, i).interval(mean)
        covered += low <= 0.3 <= high
        low, high = GroupBootstrap(np.arange(120), 200, i).interval(mean)  # groups ignored
        narrow += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99
    assert narrow / 200 < 0.85


def test_auroc_interval_holds_the_estimate_and_follows_the_groups():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 2, 60), 2)
    score = np.repeat(rng.normal(size=60), 2) + truth
    by_group = auroc_interval(truth, score, np.repeat(np.arange(60), 2), n_draws=300)
    by_row = auroc_interval(truth, score, np.arange(120), n_draws=300)
    assert by_group[0] < auroc(truth, score) < by_group[1]
    assert by_group[1] - by_group[0] > by_row[1] - by_row[0]


def test_percentile_interval_undefined_draws():
    values = np.arange(101.0)
    assert percentile_interval(values) == pytest.approx((2.5, 97.5))
    assert percentile_interval(np.append(values, np.nan)) == pytest.approx((2.5, 97.5))
    mostly_nan = np.append(values, np.full(150, np.nan))
    assert np.isnan(percentile_interval(mostly_nan)).all()
    assert np.isnan(percentile_interval(np.array([]))).all()


def test_auroc_draws_every_row_of_weights_is_repeated_rows() -> None:
    generator = np.random.default_rng(0)
    truth = (generator.random(50) < 0.4).astype(float)
    score = np.round(generator.random(50), 1)  # with ties
    weights = generator.integers(0, 3, (6, 50)).astype(float)
    found = auroc_draws(truth, score, weights)
    for value, weight in zip(found, weights.astype(int), strict=True):
        wanted = roc_auc_score(np.repeat(truth, weight), np.repeat(score, weight))
        assert value == pytest.approx(wanted)
