"""The measures of a classifier against scikit-learn, for the sample and for resamples."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from dermaudit.bench.inputs.saved_predictions import Predictions
from dermaudit.bench.measures.metrics import (
    METRICS,
    confusion,
    metric_draws,
    recall_figures,
    score_predictions,
)
from dermaudit.bench.options import Resampling


def synthetic(n=200, n_classes=5, seed=0, skill=2.0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n, n_classes)) + skill * np.eye(n_classes)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # Coarse probabilities have ties, as float16 models do.
    probs = np.round(probs, 2)
    images = [f"{i}.jpg" for i in range(n)]
    classes = [f"c{c}" for c in range(n_classes)]
    return Predictions(images, truth, probs.argmax(1), probs, classes, images, False)


def by_sklearn(p: Predictions, rows: np.ndarray) -> dict[str, float]:
    y, message, probs = p.truth[rows], p.predicted[rows], p.probs[rows]
    matrix = sk.confusion_matrix(y, message, labels=range(probs.shape[1]))
    fp = matrix.sum(0) - np.diag(matrix)
    tn = matrix.sum() - matrix.sum(1) - fp
    return {
        "accuracy": sk.accuracy_score(y, message),
        "balanced_accuracy": sk.balanced_accuracy_score(y, message),
        "macro_f1": sk.f1_score(y, message, average="macro"),
        "weighted_f1": sk.f1_score(y, message, average="weighted"),
        "sensitivity": sk.recall_score(y, message, average="macro"),
        "specificity": float(np.mean(tn / (tn + fp))),
        "auroc": np.mean([sk.roc_auc_score(y == c, probs[:, c]) for c in range(probs.shape[1])]),
    }


def test_metric_draws_equal_scikit_learn_on_resampled_rows():
    p = synthetic()
    rng = np.random.default_rng(1)
    for _ in range(5):
        rows = rng.integers(0, p.n, p.n)
        weights = np.bincount(rows, minlength=p.n)[None].astype(float)
        found = dict(
            zip(METRICS, metric_draws(p.truth, p.predicted, p.probs, weights)[0], strict=True)
        )
        assert found == pytest.approx(by_sklearn(p, rows), abs=1e-12)


def test_metric_draws_by_hand():
    truth, message = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    found = dict(zip(METRICS, metric_draws(truth, message, probs, np.ones((1, 4)))[0], strict=True))
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["auroc"] == 1.0


def test_metric_draws_a_class_that_a_resample_lacks_leaves_the_means():
    p = synthetic(60, 3)
    weights = (p.truth != 2).astype(float)[None]
    found = metric_draws(p.truth, p.predicted, p.probs, weights)[0]
    assert np.isfinite(found).all()
    rows = np.flatnonzero(p.truth != 2)
    recalls = [np.mean(p.predicted[rows][p.truth[rows] == c] == c) for c in (0, 1)]
    assert found[METRICS.index("balanced_accuracy")] == pytest.approx(np.mean(recalls))


def test_score_predictions_point_is_the_full_sample_and_inside():
    p = synthetic()
    figures = score_predictions({"m": p}, Resampling(200))
    assert figures.points[0, 0] == np.mean(p.truth == p.predicted)
    low, high = figures.interval(0, 0)
    assert low < figures.points[0, 0] < high
    assert figures.draws.shape == (1, 200, len(METRICS))


def test_recall_figures_and_confusion():
    p = synthetic()
    figures, counts = recall_figures({"m": p}, Resampling(50))
    matrix = confusion(p)
    assert np.array_equal(matrix, sk.confusion_matrix(p.truth, p.predicted))
    assert np.array_equal(counts, matrix.sum(1))
    assert figures.points[0] == pytest.approx(np.diag(matrix) / matrix.sum(1))
