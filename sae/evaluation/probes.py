"""k-sparse probes: how few latents say a label (arXiv 2305.01610)?

On the train rows the k latents with the AUROC farthest from one half are chosen and a logistic head
is fitted on them (with one latent it only turns the sign); the AUROC is of the test rows. Beside it:
the same with train labels shuffled (what choosing among thousands gives by chance), with the
coordinates of the embedding for latents (what a dictionary adds to the neurons), and a probe of the
whole embedding (what is there to be said).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.stats.intervals import MIN_CELL, auroc, auroc_draws, percentile_interval

from .figure import bunches, draws, figure, number

KS = (1, 2, 5)
MIN_CLASS = 10  # positives and negatives on the train and on the test rows


def column_aurocs(codes: Any, truth: np.ndarray) -> np.ndarray:
    """AUROC of each column of a sparse table (n, h) of codes ≥ 0 for 0/1 truth (n,): (h,). Only what is
    not zero is sorted; all zeros are one tie. Mann-Whitney by mid-ranks."""
    from scipy.stats import rankdata

    truth = np.asarray(truth).astype(bool)
    n, n_pos = len(truth), int(truth.sum())
    n_neg = n - n_pos
    if not n_pos or not n_neg:
        return np.full(codes.shape[1], np.nan)
    columns = codes.tocsc()
    out = np.empty(codes.shape[1])
    for latent in range(codes.shape[1]):
        span = slice(columns.indptr[latent], columns.indptr[latent + 1])
        value, active = columns.data[span], truth[columns.indices[span]]
        value, active = value[value > 0], active[value > 0]
        zeros = n - len(value)
        ranks = rankdata(value) + zeros
        total = ranks[active].sum() + (n_pos - active.sum()) * (zeros + 1) / 2
        out[latent] = (total - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)
    return out


def best_columns(codes: Any, truth: np.ndarray, k: int) -> np.ndarray:
    """The k columns of csr codes whose AUROC lies farthest from one half, the farthest first."""
    distance = np.abs(column_aurocs(codes, truth) - 0.5)
    return np.argsort(-distance, kind="stable")[:k]


def probe_report(
    train_codes: Any,
    train_truth: dict[str, np.ndarray],
    train_groups: Sequence[object],
    test_codes: Any,
    test_truth: dict[str, np.ndarray],
    test_groups: Sequence[object],
    *,
    train_x: np.ndarray | None = None,
    test_x: np.ndarray | None = None,
    ks: Sequence[int] = KS,
    n_shuffles: int = 5,
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """{label: {"k=1": figure, …, "coordinates k=1", "whole embedding"}} and `mean` over labels, with the
    interval of the mean: every label sees the same draws of groups.

    codes csr (n, h) ≥ 0; truth {label: (n,) of 1, 0, nan = unknown}; groups (n,); x (n, d) the
    embeddings. Each "k=…" figure: AUROC on test, interval over its groups, control = the mean over
    shuffled train labels, `latents` chosen. Labels with fewer than 30 known rows, or 10 of either
    class, in train or test have None and say why.
    """
    train_groups, test_groups = np.asarray(train_groups), np.asarray(test_groups)
    train_codes, test_codes = train_codes.tocsr(), test_codes.tocsr()
    member = bunches(test_groups)
    weights = draws(int(member.max(initial=-1)) + 1, n_draws, seed)[:, member]
    found: dict[str, Any] = {}
    drawn: dict[str, list[np.ndarray]] = {}
    for label, values in train_truth.items():
        fit, seen = (np.flatnonzero(np.isfinite(t)) for t in (values, test_truth[label]))
        y, truth = values[fit], test_truth[label][seen]
        short = too_few(y, "train") or too_few(truth, "test")
        if short:
            found[label] = {"why": short, "n": len(seen), "n_positive": int(truth.sum())}
            continue
        rng = np.random.default_rng([seed, 6])
        problem = _Problem(y, train_groups[fit], truth, weights[:, seen], seed, drawn)
        entry: dict[str, Any] = {"n": len(seen), "n_positive": int(truth.sum())}
        a, b = train_codes[fit], test_codes[seen]
        shuffled = [rng.permutation(y) for _ in range(n_shuffles)]
        by_chance = [best_columns(a, other, max(ks)) for other in shuffled]
        chosen = best_columns(a, y, max(ks))
        for k in ks:
            control = [
                problem.score(a, b, columns[:k], other)
                for columns, other in zip(by_chance, shuffled, strict=True)
            ]
            entry[f"k={k}"] = problem.figure(
                f"k={k}",
                a,
                b,
                chosen[:k],
                control=float(np.mean(control)) if control else None,
                control_is="shuffled train labels",
                latents=chosen[:k].tolist(),
            )
        if train_x is not None and test_x is not None:
            entry |= _of_embedding(problem, train_x[fit], test_x[seen], ks)
        found[label] = entry
    return {"mean": _mean(found, drawn, ks), "labels": found}


def too_few(truth: np.ndarray, split: str) -> str | None:
    """Why a label cannot be probed on these rows; None when it can."""
    positive = int(truth.sum())
    if len(truth) < MIN_CELL or min(positive, len(truth) - positive) < MIN_CLASS:
        return f"n too small in {split}: {positive} of {len(truth)}"
    return None


class _Problem:
    """One label: fit a head on some columns of the train rows, score it on the test rows. `weights`
    (draws, n) of the test rows; `drawn` {name: [(draws,) of each label]} is added to."""

    def __init__(
        self,
        y: np.ndarray,
        groups: np.ndarray,
        truth: np.ndarray,
        weights: np.ndarray,
        seed: int,
        drawn: dict[str, list[np.ndarray]],
    ) -> None:
        self.y, self.groups, self.truth, self.weights = y, groups, truth, weights
        self.seed, self.drawn = seed, drawn

    def score(self, a: Any, b: Any, columns: np.ndarray | None, y: np.ndarray) -> float:
        """AUROC of a head fitted with the labels y; nan where they are too few to fit."""
        scores = self._scores(a, b, columns, y)
        return float("nan") if scores is None else auroc(self.truth, scores)

    def figure(
        self, name: str, a: Any, b: Any, columns: np.ndarray | None, **more: Any
    ) -> dict[str, Any]:
        scores = self._scores(a, b, columns, self.y)
        if scores is None:
            return figure(None, len(self.truth), **more)
        values = auroc_draws(self.truth, scores, self.weights)
        self.drawn.setdefault(name, []).append(values)
        return figure(
            auroc(self.truth, scores), len(self.truth), percentile_interval(values), **more
        )

    def _scores(
        self, a: Any, b: Any, columns: np.ndarray | None, y: np.ndarray
    ) -> np.ndarray | None:
        fit, seen = (_dense(table, columns) for table in (a, b))
        try:
            return _score(fit, y, self.groups, seen, self.seed)
        except EvidenceError:
            return None


def _score(
    fit: np.ndarray, y: np.ndarray, groups: np.ndarray, seen: np.ndarray, seed: int
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if fit.shape[1] == 1:
        return seen[:, 0] if auroc(y, fit[:, 0]) >= 0.5 else -seen[:, 0]
    if fit.shape[1] > max(KS):
        return probe_score(fit_probe(fit, y, groups, seed=seed), seen)
    # Of a few numbers: how strongly they are held back decides nothing, and need not be chosen.
    mean, scale = fit.mean(0), fit.std(0) + 1e-8
    with threadpool_limits(1, "blas"):
        model = LogisticRegression(C=1.0, max_iter=2000).fit((fit - mean) / scale, y > 0.5)
    return ((seen - mean) / scale) @ model.coef_[0]


def _dense(table: Any, columns: np.ndarray | None) -> np.ndarray:
    part = table if columns is None else table[:, columns]
    return np.asarray(part.toarray() if hasattr(part, "toarray") else part, dtype=np.float64)


def _of_embedding(
    problem: _Problem, a: np.ndarray, b: np.ndarray, ks: Sequence[int]
) -> dict[str, Any]:
    from dermaudit.stats.intervals import auroc_many

    distance = np.abs(auroc_many(problem.y, a) - 0.5)
    order = np.argsort(-np.nan_to_num(distance), kind="stable")
    found = {
        name: problem.figure(name, a, b, order[:k])
        for name, k in ((f"coordinates k={k}", k) for k in ks)
    }
    found["whole embedding"] = problem.figure("whole embedding", a, b, None)
    return found


def _mean(
    found: dict[str, Any], drawn: dict[str, list[np.ndarray]], ks: Sequence[int]
) -> dict[str, Any]:
    """Means over the labels that could be probed; `n` counts them."""
    scored = [entry for entry in found.values() if "why" not in entry]
    out = {}
    names = [*(f"k={k}" for k in ks), *(f"coordinates k={k}" for k in ks), "whole embedding"]
    for name in names:
        values = [e[name]["value"] for e in scored if name in e and e[name]["value"] is not None]
        controls = [
            e[name]["control"] for e in scored if name in e and e[name]["control"] is not None
        ]
        if values:
            out[name] = figure(
                float(np.mean(values)),
                len(values),
                # A draw may leave a label without a positive: the mean is of the others.
                percentile_interval(np.nanmean(np.stack(drawn[name]), axis=0)),
                control=number(float(np.mean(controls))) if controls else None,
                control_is="shuffled train labels" if controls else None,
            )
    return out
