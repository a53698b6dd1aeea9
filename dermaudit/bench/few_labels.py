"""The few-label curve: a linear probe of the labels on 1 … 100 % of the train split.

A subset of train is drawn by whole groups and balanced over the classes (rare classes give all their
images, the others share the rest), several times; C is chosen on inner folds of the subset alone. All
models are fitted on the same subsets and scored on the same test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_head
from dermaudit.stats.paired import Comparison, Figures, bootstrap_figures, holm_over

from .measures.metrics import METRICS, metric_draws
from .options import Resampling
from .output.render import TOO_SMALL, WORDS, Sheet, cells_of, comparison_sheet

FRACTIONS = (0.01, 0.10, 0.30, 0.50, 1.0)
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
#: what is compared between models at every fraction; all four would make Holm's correction too strict.
TESTED = ("balanced_accuracy", "auroc")


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings (n, d) with class numbers (n,) and groups, of one split."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray


def quotas(counts: np.ndarray, n: int) -> np.ndarray:
    """Return how many of n images each class gives: the same number, or all that it has."""
    given = np.zeros(len(counts), dtype=int)
    left = min(n, int(counts.sum()))
    waiting = [c for c in np.argsort(counts, kind="stable") if counts[c] > 0]
    while waiting:
        share = left // len(waiting)
        c = waiting.pop(0)
        # Rare classes come first, so that the others make up for what they lack.
        given[c] = min(int(counts[c]), max(share, 1))
        left = max(0, left - given[c])
    return given


def sub_sample(
    y: np.ndarray, groups: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the rows of a class-balanced subset of train, ascending.

    Groups are kept whole, so it may hold a few more than asked for.
    """
    if fraction >= 1:
        return np.arange(len(y))
    wanted = quotas(np.bincount(y), round(fraction * len(y)))
    _, member = np.unique(groups, return_inverse=True)
    taken = np.zeros(len(y), dtype=bool)
    for c in np.argsort(np.bincount(y), kind="stable"):
        for group in rng.permutation(np.unique(member[y == c])):
            if (y[taken] == c).sum() >= wanted[c]:
                break
            taken |= member == group
    return np.flatnonzero(taken)


def subsets(
    train: LabelledEmbeddings, fractions: Sequence[float], n_subsets: int, seed: int
) -> dict[float, list[np.ndarray]]:
    """Return {fraction: rows of each of its draws}; all of train is drawn once."""
    found = {}
    for number, fraction in enumerate(fractions):
        draws = 1 if fraction >= 1 else n_subsets
        found[fraction] = [
            sub_sample(train.y, train.groups, fraction, np.random.default_rng([seed, number, draw]))
            for draw in range(draws)
        ]
    return found


def probe_probs(
    train: LabelledEmbeddings, rows: np.ndarray, x: np.ndarray, n_classes: int, seed: int
) -> np.ndarray:
    """Return class probabilities (k, n_classes) of x by a probe fitted on `rows` of train.

    Classes that the rows lack have probability 0. Errors: EvidenceError for fewer than 30 rows or one
    class.
    """
    labels, groups = train.y[rows].astype(str).tolist(), train.groups[rows].tolist()
    head = fit_head(train.x[rows], labels, groups, seed=seed)
    probs = np.zeros((len(x), n_classes))
    probs[:, [int(c) for c in head.classes]] = head.probs(x)
    return probs


def curve_figures(
    probs: dict[str, list[np.ndarray]], test: LabelledEmbeddings, resampling: Resampling
) -> Figures:
    """Return the figures of models at one fraction: the mean over its subsets, in every resample."""

    def statistic(found: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
        return np.mean([metric_draws(test.y, p.argmax(1), p, weights) for p in found], axis=0)

    statistics = {name: lambda w, p=p: statistic(p, w) for name, p in probs.items()}
    bootstrap = resampling.bootstrap(test.groups.tolist())
    return bootstrap_figures(statistics, METRICS, len(test.y), bootstrap)


def curve_sheets(
    dataset: str,
    data: dict[str, tuple[LabelledEmbeddings, LabelledEmbeddings]],
    classes: list[str],
    resampling: Resampling,
    *,
    fractions: Sequence[float] = FRACTIONS,
    n_subsets: int = 3,
) -> tuple[list[Sheet], dict[str, np.ndarray]]:
    """Return (sheets, {model: test probabilities at the largest fraction}).

    `data`: {model: (train, test)}, the same rows for every model.
    """
    train, test = next(iter(data.values()))
    rows: list[tuple[str, ...]] = []
    records: list[dict] = []
    comparisons: list[Comparison] = []
    last: dict[str, np.ndarray] = {}
    figures: Figures | None = None
    seed = resampling.seed
    for fraction, drawn in subsets(train, fractions, n_subsets, seed).items():
        size = round(float(np.mean([len(subset) for subset in drawn])))
        try:
            probs = {
                name: [probe_probs(fit, subset, held.x, len(classes), seed) for subset in drawn]
                for name, (fit, held) in data.items()
            }
        except EvidenceError:
            rows += [(_percent(fraction), str(size), m, *[TOO_SMALL] * len(SHOWN)) for m in data]
            continue
        figures = curve_figures(probs, test, resampling)
        for m, model in enumerate(figures.models):
            cells = cells_of(figures, m, SHOWN, n=len(test.y))
            rows.append((_percent(fraction), str(size), model, *cells))
        records += figures.records(
            table="few labels", dataset=dataset, fraction=fraction, n_train=size, n=len(test.y)
        )
        if len(data) > 1:
            comparisons += [
                replace(c, metric=f"{WORDS[c.metric]}, {_percent(fraction)}")
                for c in figures.compare(TESTED, resampling.reference)
            ]
        last = {name: found[0] for name, found in probs.items()}
    sheet = Sheet(
        f"{dataset}: linear probe of the label, {len(test.y)} test images, {len(classes)} classes",
        ("train", "n", "model", *(WORDS[m] for m in SHOWN)),
        rows,
        [
            f"below 100 %: class-balanced parts of train by group, the mean of {n_subsets} draws; "
            f"intervals over {len(set(test.groups.tolist()))} test groups"
        ],
        records,
    )
    if not comparisons or figures is None:
        return [sheet], last
    return [sheet, comparison_sheet(figures, holm_over(comparisons), dataset=dataset)], last


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction >= 0.01 else f"{fraction:.1%}"
