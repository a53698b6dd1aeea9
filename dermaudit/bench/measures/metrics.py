"""Measures of a classifier, for many resamples at once: (draws, n) weights -> (draws, measures).

Only true positives and the row and column sums of the confusion matrix are needed, so that hundreds of
classes cost three matrix products. Classes that a resample lacks are left out of its means, as in
scikit-learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from dermaudit.stats.intervals import auroc_draws
from dermaudit.stats.paired import Figures, bootstrap_figures

from ..inputs.saved_predictions import Predictions
from ..options import Resampling

DEFAULT = Resampling()

#: sensitivity is the same number as balanced accuracy; the published table prints both.
METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "weighted_f1",
    "sensitivity",
    "specificity",
    "auroc",
)
#: what models are compared by: one of each kind, to keep Holm's correction small.
TESTED = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "specificity", "auroc")


def metric_draws(
    truth: np.ndarray, predicted: np.ndarray, probs: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return METRICS for each row of `weights` (draws, n): (draws, 7) float64.

    `truth` and `predicted` (n,) are columns of `probs` (n, classes). Accuracy; mean recall; mean and
    support-weighted mean of F1; mean of tn / (tn + fp); mean one-against-rest AUROC, ties one half.
    """
    n_classes = probs.shape[1]
    is_class = np.eye(n_classes)
    is_predicted, right = is_class[predicted], is_class[truth] * (truth == predicted)[:, None]
    support, called = weights @ is_class[truth], weights @ is_predicted
    hits = weights @ right
    total = weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        # A resample with none of a class: 0 / 0 = nan, which nanmean leaves out.
        warnings.simplefilter("ignore", RuntimeWarning)
        recall = hits / support
        f1 = 2 * hits / (support + called)
        others = total - support
        specificity = (others - called + hits) / others
        auroc = np.stack(
            [auroc_draws(truth == c, probs[:, c], weights) for c in range(n_classes)], axis=1
        )
        balanced = np.nanmean(recall, axis=1)
        return np.stack(
            [
                hits.sum(1) / total[:, 0],
                balanced,
                np.nanmean(f1, axis=1),
                (support * np.nan_to_num(f1)).sum(1) / total[:, 0],
                balanced,
                np.nanmean(specificity, axis=1),
                np.nanmean(auroc, axis=1),
            ],
            axis=1,
        )


def score_predictions(models: dict[str, Predictions], resampling: Resampling = DEFAULT) -> Figures:
    """Return METRICS of several models on the same images in the same order."""
    first = next(iter(models.values()))
    statistics = {
        name: lambda w, p=p: metric_draws(p.truth, p.predicted, p.probs, w)
        for name, p in models.items()
    }
    bootstrap = resampling.bootstrap(first.groups)
    return bootstrap_figures(statistics, METRICS, len(first.truth), bootstrap)


def recall_figures(
    models: dict[str, Predictions], resampling: Resampling = DEFAULT
) -> tuple[Figures, np.ndarray]:
    """Return the recall of every class: (figures with the classes as metrics, images of each class)."""
    first = next(iter(models.values()))
    is_true = np.eye(len(first.classes))[first.truth]

    def recall(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
        right = is_true * (predictions.predicted == predictions.truth)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ right) / (weights @ is_true)

    statistics = {name: lambda w, p=p: recall(p, w) for name, p in models.items()}
    bootstrap = resampling.bootstrap(first.groups)
    figures = bootstrap_figures(statistics, first.classes, len(first.truth), bootstrap)
    return figures, is_true.sum(0).astype(int)


def confusion(predictions: Predictions) -> np.ndarray:
    """Return counts (classes, classes); rows are the true classes."""
    n = len(predictions.classes)
    cells = predictions.truth * n + predictions.predicted
    return np.bincount(cells, minlength=n * n).reshape(n, n)


def columns(figures: Figures, names: Sequence[str]) -> Figures:
    """Return the same figures with only some metrics."""
    keep = [figures.metrics.index(name) for name in names]
    return Figures(figures.models, tuple(names), figures.points[:, keep], figures.draws[:, :, keep])
