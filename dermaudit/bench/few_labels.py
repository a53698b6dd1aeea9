"""The few-label curve: a linear probe of the labels on 1 … 100 % of the train split.

A part of train is drawn by whole groups and balanced over the classes (a rare class gives all it has,
the others share the rest), several times; C is chosen on inner folds of the part alone. All models
are fitted on the same parts, and scored on the same test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_head
from dermaudit.stats.intervals import GroupBootstrap
from dermaudit.stats.paired import Comparison, Figures, bootstrap_figures, holm_over

from .measures.metrics import METRICS, metric_draws
from .output.render import TOO_SMALL, WORDS, Sheet, cell, comparison_sheet

FRACTIONS = (0.01, 0.10, 0.30, 0.50, 1.0)
SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
#: what is compared between models at every fraction; the four would cost Holm's correction too much.
TESTED = ("balanced_accuracy", "auroc")


@dataclass(frozen=True)
class Labelled:
    """Embeddings (n, d) with class numbers (n,) and groups, of one split."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray


def quotas(counts: np.ndarray, n: int) -> np.ndarray:
    """Return how many of n images each class gives: the same number, or all that it has."""
    given = np.zeros(len(counts), dtype=int)
    left = min(n, int(counts.sum()))
    open_ = [c for c in np.argsort(counts, kind="stable") if counts[c] > 0]
    while open_:
        share = left // len(open_)
        c = open_.pop(0)
        # The rarest first, so that what it cannot give goes to the others.
        given[c] = min(int(counts[c]), max(share, 1))
        left = max(0, left - given[c])
    return given


def sub_sample(
    y: np.ndarray, groups: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Rows of a class-balanced part of train, ascending; whole groups, so it may hold a few more."""
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


def parts(
    y: np.ndarray, groups: np.ndarray, fractions: Sequence[float], n_parts: int, seed: int
) -> dict[float, list[np.ndarray]]:
    """{fraction: rows of each of its draws}; all of train is drawn once."""
    found = {}
    for number, fraction in enumerate(fractions):
        draws = 1 if fraction >= 1 else n_parts
        found[fraction] = [
            sub_sample(y, groups, fraction, np.random.default_rng([seed, number, draw]))
            for draw in range(draws)
        ]
    return found


def probe_probs(
    train: Labelled, rows: np.ndarray, x: np.ndarray, n_classes: int, seed: int
) -> np.ndarray:
    """Class probabilities (k, n_classes) of x by a probe fitted on `rows` of train; 0 for classes
    that the rows lack. Errors: EvidenceError for fewer than 30 rows or one class."""
    labels, groups = train.y[rows].astype(str).tolist(), train.groups[rows].tolist()
    head = fit_head(train.x[rows], labels, groups, seed=seed)
    probs = np.zeros((len(x), n_classes))
    probs[:, [int(c) for c in head.classes]] = head.probs(x)
    return probs


def curve_figures(
    probs: dict[str, list[np.ndarray]], test: Labelled, *, n_draws: int, seed: int
) -> Figures:
    """Figures of models at one fraction: the mean over its parts, in every resample of test."""

    def statistic(found: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
        return np.mean([metric_draws(test.y, p.argmax(1), p, weights) for p in found], axis=0)

    statistics = {name: lambda w, p=p: statistic(p, w) for name, p in probs.items()}
    bootstrap = GroupBootstrap(test.groups, n_draws, seed)
    return bootstrap_figures(statistics, METRICS, len(test.y), bootstrap)


def curve_sheets(
    dataset: str,
    data: dict[str, tuple[Labelled, Labelled]],
    classes: list[str],
    *,
    fractions: Sequence[float] = FRACTIONS,
    n_parts: int = 3,
    n_draws: int = 1000,
    seed: int = 0,
    reference: str | None = None,
) -> tuple[list[Sheet], dict[str, np.ndarray]]:
    """(sheets, {model: test probabilities at the largest fraction}). `data`: {model: (train, test)},
    the same rows for every model."""
    train, test = next(iter(data.values()))
    rows: list[tuple[str, ...]] = []
    records: list[dict] = []
    comparisons: list[Comparison] = []
    last: dict[str, np.ndarray] = {}
    figures: Figures | None = None
    for fraction, drawn in parts(train.y, train.groups, fractions, n_parts, seed).items():
        size = round(float(np.mean([len(part) for part in drawn])))
        try:
            probs = {
                name: [probe_probs(fit, part, held.x, len(classes), seed) for part in drawn]
                for name, (fit, held) in data.items()
            }
        except EvidenceError:
            rows += [(_percent(fraction), str(size), m, *[TOO_SMALL] * len(SHOWN)) for m in data]
            continue
        figures = curve_figures(probs, test, n_draws=n_draws, seed=seed)
        for m, model in enumerate(figures.models):
            picked = [figures.metrics.index(name) for name in SHOWN]
            cells = [
                cell(figures.points[m, k], *figures.interval(m, k), 3, len(test.y)) for k in picked
            ]
            rows.append((_percent(fraction), str(size), model, *cells))
        records += figures.records(
            table="few labels", dataset=dataset, fraction=fraction, n_train=size, n=len(test.y)
        )
        if len(data) > 1:
            comparisons += [
                replace(c, metric=f"{WORDS[c.metric]}, {_percent(fraction)}")
                for c in figures.compare(TESTED, reference)
            ]
        last = {name: found[0] for name, found in probs.items()}
    sheet = Sheet(
        f"{dataset}: linear probe of the label, {len(test.y)} test images, {len(classes)} classes",
        ("train", "n", "model", *(WORDS[m] for m in SHOWN)),
        rows,
        [
            f"below 100 %: class-balanced parts of train by group, the mean of {n_parts} draws; "
            f"intervals over {len(set(test.groups.tolist()))} test groups"
        ],
        records,
    )
    if not comparisons or figures is None:
        return [sheet], last
    return [sheet, comparison_sheet(figures, holm_over(comparisons), dataset=dataset)], last


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction >= 0.01 else f"{fraction:.1%}"
