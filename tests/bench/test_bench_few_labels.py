"""The few-label curve: balanced parts of train by whole groups, and what a probe learns from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.bench.few_labels import (
    LabelledEmbeddings,
    curve_sheets,
    probe_probs,
    quotas,
    sub_sample,
    subsets,
)
from dermaudit.bench.options import Resampling


def test_quotas_by_hand():
    for counts, n, expected in (
        ([2, 10, 100], 30, [2, 10, 18]),
        ([50, 50], 10, [5, 5]),
        ([0, 50], 10, [0, 10]),
        ([5, 5], 100, [5, 5]),
    ):
        assert quotas(np.array(counts), n).tolist() == expected


@given(st.lists(st.integers(0, 60), min_size=2, max_size=7), st.integers(10, 100))
def test_quotas_give_all_and_no_more_than_there_is(counts, n):
    given_ = quotas(np.array(counts), n)
    assert (given_ <= np.array(counts)).all()
    assert given_.sum() == min(n, sum(counts))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_sub_sample_balanced_and_by_whole_groups(seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"g{i}" for i in range(150)], 2)
    y = np.repeat(rng.choice(3, 150, p=[0.7, 0.2, 0.1]), 2)
    rows = sub_sample(y, groups, 0.1, rng)
    taken = set(groups[rows])
    assert len(rows) == sum(groups == g for g in taken).sum()
    counts = np.bincount(y[rows], minlength=3)
    assert counts.max() - counts.min() <= 2 or counts.min() == np.bincount(y).min()
    assert abs(len(rows) - 30) <= 6


def test_subsets_same_seed_same_subsets_and_all_of_train_once():
    train = LabelledEmbeddings(np.zeros((200, 1)), np.arange(200) % 4, np.arange(200).astype(str))
    a, b = (subsets(train, (0.1, 1.0), 3, 7) for _ in range(2))
    assert [len(v) for v in a.values()] == [3, 1]
    assert all(np.array_equal(p, q) for p, q in zip(a[0.1], b[0.1], strict=True))
    assert not np.array_equal(a[0.1][0], a[0.1][1])
    assert np.array_equal(a[1.0][0], np.arange(200))


def synthetic(n, seed, signal=1.2):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 6)).astype(np.float32)
    x[:, :3] += signal * np.eye(3)[y]
    return LabelledEmbeddings(x, y, np.arange(n).astype(str))


def test_probe_probs_a_class_that_the_part_lacks_gets_nothing():
    train = synthetic(120, 0)
    rows = np.flatnonzero(train.y != 1)
    probs = probe_probs(train, rows, train.x, 3, 0)
    assert (probs[:, 1] == 0).all()
    assert probs.sum(1) == pytest.approx(1, abs=1e-5)


def test_curve_rises_with_labels_and_marks_too_few():
    train, test = synthetic(900, 0), synthetic(300, 1)
    blind = LabelledEmbeddings(
        np.random.default_rng(2).normal(size=train.x.shape), train.y, train.groups
    )
    blind_test = LabelledEmbeddings(
        np.random.default_rng(3).normal(size=test.x.shape), test.y, test.groups
    )
    sheets, last = curve_sheets(
        "toy",
        {"good": (train, test), "blind": (blind, blind_test)},
        ["a", "b", "c"],
        Resampling(200),
        fractions=(0.01, 0.1, 1.0),
    )
    assert [row[3] for row in sheets[0].rows[:2]] == ["n too small"] * 2
    by_key = {(r["fraction"], r["model"], r["metric"]): r["value"] for r in sheets[0].records}
    assert by_key[1.0, "good", "accuracy"] > by_key[0.1, "good", "accuracy"] > 0.5
    assert abs(by_key[1.0, "blind", "auroc"] - 0.5) < 0.08
    assert all(r["p_holm"] < 0.05 for r in sheets[1].records)
    assert len(sheets[1].records) == 4  # two measures at two fractions, one family
    assert last["good"].shape == (300, 3)
