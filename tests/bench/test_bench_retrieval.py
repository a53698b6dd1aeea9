"""Retrieval ranks by hand and against the full sort; duplicates, ties, chance."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.bench import retrieval
from dermaudit.bench.options import Resampling
from dermaudit.bench.retrieval import (
    chance,
    encode_captions,
    ranks,
    recall_at,
    retrieval_figures,
    retrieval_sheets,
)


def unit(rows):
    rows = np.asarray(rows, dtype=float)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def synthetic(n=60, d=8, n_captions=60, seed=0, noise=0.7):
    rng = np.random.default_rng(seed)
    captions = unit(rng.normal(size=(n_captions, d)))
    which = np.concatenate([np.arange(n_captions), rng.integers(0, n_captions, n - n_captions)])
    x = unit(captions[which] + noise * rng.normal(size=(n, d)))
    return x, captions, which


def test_ranks_by_hand():
    # images on the axes; the captions of 1 and 2 are swapped
    x, captions, which = np.eye(3), np.eye(3), np.array([0, 2, 1])
    captions = unit(captions + 0.1 * np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0]]))
    to_text, to_image = ranks(x, captions, which)
    assert to_text.found.tolist() == [1, 3, 2]
    assert to_image.found[0] == 1


def test_ranks_equal_a_full_sort():
    x, captions, which = synthetic()
    to_text, to_image = ranks(x, captions, which)
    scores = x @ captions[which].T
    for i in range(len(x)):
        assert to_text.found[i] == 1 + (scores[i] > scores[i, i]).sum()
        assert to_image.found[i] == 1 + (scores[:, i] > scores[i, i]).sum()
    assert np.array_equal(to_text.found, to_text.strict_low)


def test_ranks_duplicates_are_found_by_any_and_strict_by_chance():
    x, captions, which = synthetic(n=60, n_captions=20)
    to_text, to_image = ranks(x, captions, which)
    scores = x @ captions[which].T
    for i in range(len(x)):
        same = which == which[i]
        assert to_text.found[i] == 1 + (scores[i, ~same] > scores[i, i]).sum()
        assert to_text.strict_high[i] - to_text.strict_low[i] + 1 == same.sum()
        best = scores[same, i].max()
        assert to_image.found[i] == 1 + (scores[~same, i] > best).sum()
        assert to_image.strict_low[i] == 1 + (scores[:, i] > scores[i, i]).sum()
        assert to_image.found[i] <= to_image.strict_low[i]


def test_ranks_blocks_change_nothing(monkeypatch):
    x, captions, which = synthetic(n=60, n_captions=20)
    whole = ranks(x, captions, which)
    monkeypatch.setattr(retrieval, "_BLOCK", 7)
    for a, b in zip(whole, ranks(x, captions, which), strict=True):
        assert np.array_equal(a.found, b.found)
        assert np.array_equal(a.strict_low, b.strict_low)


def test_ranks_a_collapsed_model_finds_nothing():
    x = np.tile(unit([1.0, 2.0]), (40, 1))
    to_text, to_image = ranks(x, x.copy(), np.arange(40))
    assert (to_text.found == 40).all()
    assert (to_image.found == 40).all()


def test_recall_strict_shares_the_places_of_equal_captions():
    x, captions, which = np.eye(2), np.eye(2), np.array([0, 1])
    x = np.vstack([x, x[0], x[0]])
    which = np.array([0, 1, 0, 0])
    to_text, _ = ranks(x, captions, which)
    found, strict = recall_at(to_text, 1)
    assert found.tolist() == [1, 1, 1, 1]
    assert strict == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])
    assert recall_at(to_text, 3)[1] == pytest.approx([1, 1, 1, 1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=6), st.integers(1, 20))
def test_chance_is_the_mean_over_random_orders(copies, k):
    which = np.repeat(np.arange(len(copies)), copies)
    n = len(which)
    expected = np.mean([1 - comb(n - copies[c], min(k, n)) / comb(n, min(k, n)) for c in which])
    found, strict = chance(which, k)
    assert found == pytest.approx(expected)
    assert strict == min(k, n) / n


def test_chance_is_what_random_embeddings_reach():
    rng = np.random.default_rng(0)
    which = rng.integers(0, 100, 400)
    which[:100] = np.arange(100)
    hits = []
    for _ in range(5):
        x, captions = unit(rng.normal(size=(400, 16))), unit(rng.normal(size=(100, 16)))
        to_text, to_image = ranks(x, captions, which)
        hits.append([recall_at(to_image, 10)[0].mean(), recall_at(to_text, 10)[1].mean()])
    assert np.mean(hits, axis=0) == pytest.approx(chance(which, 10), abs=0.03)


def test_figures_the_whole_set_and_paired():
    x, captions, which = synthetic(n=80, n_captions=40, noise=0.3)
    y = unit(x + 0.8 * np.random.default_rng(1).normal(size=x.shape))
    models = {"a": ranks(x, captions, which), "b": ranks(y, captions, which)}
    figures = retrieval_figures(models, [str(i) for i in range(80)], (1, 5), Resampling(200))
    k = figures.metrics.index("image → text R@1")
    assert figures.points[0, k] == np.mean(models["a"][0].found <= 1)
    median = figures.metrics.index("text → image median rank")
    assert figures.points[1, median] == np.sort(models["b"][1].found)[39]
    assert figures.compare(["image → text R@1"])[0].p_holm < 0.05
    sheets = retrieval_sheets(
        "toy", models, which, [str(i) for i in range(80)], (1, 5, 90), Resampling(100)
    )
    assert sheets[0].rows[-1][0] == "(chance)"
    assert "R@90 of 80 pairs is 1 by construction" in sheets[1].notes


def test_captions_equal_texts_are_encoded_once(monkeypatch):
    torch = pytest.importorskip("torch")
    asked = []

    class Tower:
        def encode_text(self, texts):
            asked.extend(texts)
            return torch.eye(len(texts))

    vectors, which = encode_captions(Tower(), ["b", "a", "b"])
    assert asked == ["a", "b"]
    assert which.tolist() == [1, 0, 1]
    assert vectors.shape == (2, 2)
