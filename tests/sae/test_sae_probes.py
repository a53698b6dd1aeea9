"""k-sparse probes: latents chosen on train, scored on test, beside shuffled labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from dermaudit.sae.evaluation import EvaluationImages, probe_report
from dermaudit.sae.evaluation.probes import best_columns, column_aurocs
from dermaudit.stats.intervals import auroc_many


@given(st.integers(0, 10_000), st.integers(3, 40))
@settings(max_examples=30, deadline=None)
def test_column_aurocs_equal_those_of_dense_columns(seed, n):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (n, 5)) * 0.5
    codes[:, 4] = 0
    truth = rng.integers(0, 2, n)
    np.testing.assert_allclose(
        column_aurocs(csr_matrix(codes), truth), auroc_many(truth, codes), atol=1e-12
    )


def planted(n: int, seed: int):
    """Latents 3 and 8 together say "ruler", 5 alone says "ink", the others nothing."""
    rng = np.random.default_rng(seed)
    ruler, ink = rng.random(n) < 0.4, rng.random(n) < 0.3
    codes = rng.exponential(size=(n, 40)) * (rng.random((n, 40)) < 0.2)
    first = rng.random(n) < 0.5
    codes[:, 3] = (ruler & first) * (1 + rng.random(n))
    codes[:, 8] = (ruler & ~first) * (1 + rng.random(n))
    codes[:, 5] = ink * (1 + rng.random(n)) * (rng.random(n) < 0.9)
    x = rng.normal(size=(n, 6)) + ruler[:, None] * np.array([1.0, 1, 1, 1, 1, 1])
    truth = {"ruler": ruler.astype(float), "ink": ink.astype(float), "rare": np.zeros(n)}
    truth["rare"][:3] = 1
    return EvaluationImages(csr_matrix(codes), np.arange(n) // 2, truth, x)


def test_latents_chosen_on_train_predict_the_label_on_test():
    report = probe_report(planted(400, 0), planted(300, 1), n_draws=100)
    ruler, ink = report["labels"]["ruler"], report["labels"]["ink"]
    assert ink["k=1"]["latents"] == [5] and ink["k=1"]["value"] == pytest.approx(0.95, abs=0.03)
    assert set(ruler["k=2"]["latents"]) == {3, 8}
    assert ruler["k=1"]["value"] == pytest.approx(0.75, abs=0.06)
    assert ruler["k=2"]["value"] > 0.97
    for entry in (ruler["k=2"], ink["k=1"]):
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert abs(entry["control"] - 0.5) < 0.15 and entry["n"] == 300
    # One coordinate of the embedding predicts little, all of them much.
    assert ruler["coordinates k=1"]["value"] < ruler["whole embedding"]["value"]
    assert report["labels"]["rare"]["reason"] == "n too small in train: 3 of 400"
    assert report["mean"]["k=1"]["n"] == 2


def test_shuffled_test_labels_are_predicted_at_chance():
    test, rng = planted(300, 1), np.random.default_rng(0)
    mixed = {name: rng.permutation(values) for name, values in test.truth.items()}
    report = probe_report(
        planted(400, 0), replace(test, truth=mixed, x=None), n_draws=100, n_shuffles=1
    )
    for label in ("ruler", "ink"):
        entry = report["labels"][label]["k=5"]
        assert entry["low"] - 0.02 < 0.5 < entry["high"] + 0.02
        assert "whole embedding" not in report["labels"][label]


def test_latents_are_chosen_on_train_alone():
    test = planted(300, 1)
    codes = test.codes.toarray()
    codes[:, 20] = 5.0 * test.truth["ink"]  # perfect, on test only
    report = probe_report(planted(400, 0), replace(test, codes=csr_matrix(codes)), n_draws=0)
    assert report["labels"]["ink"]["k=1"]["latents"] == [5]
    assert report["labels"]["ink"]["k=1"]["low"] is None


def test_unknown_labels_are_left_out():
    test = planted(300, 1)
    test.truth["ink"][:200] = np.nan
    report = probe_report(planted(400, 0), test, ks=(1,), n_draws=50)
    assert report["labels"]["ink"]["n"] == 100 and report["labels"]["ruler"]["n"] == 300


def test_best_columns_include_negative_associations():
    truth = np.array([1, 1, 1, 0, 0, 0])
    codes = csr_matrix(
        np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0], [2, 0, 1], [1, 0, 0], [3, 1, 0.0]])
    )
    assert best_columns(codes, truth, 1).tolist() == [0]
