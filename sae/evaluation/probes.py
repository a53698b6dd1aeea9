"""k-sparse probes: how well k latents predict a label (arXiv 2305.01610).

On the train rows the k latents whose AUROC is farthest from one half are chosen, and a logistic head is
fitted on them (with one latent it only decides the sign); the AUROC is measured on the test rows. It is
compared with the same on shuffled train labels (the result of choosing among thousands by chance), with
coordinates of the embedding instead of latents (the gain of a dictionary), and with a probe of the whole
embedding (the most that can be predicted).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.stats.intervals import MIN_CELL, auroc, auroc_draws, auroc_many, percentile_interval

from .figure import bootstrap_weights, figure, group_numbers, json_number
from .images import EvaluationImages

KS = (1, 2, 5)
MIN_CLASS = 10  # positives and negatives that train and test rows must have


def column_aurocs(codes: Any, truth: np.ndarray) -> np.ndarray:
    """Return the AUROC (h,) of each column of sparse codes (n, h) ≥ 0 for 0/1 truth (n,).

    Mann-Whitney with mid-ranks; only non-zero codes are sorted, all zeros are one tie.
    """
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
    """Return the k columns of csr codes whose AUROC is farthest from one half, the farthest first."""
    distance = np.abs(column_aurocs(codes, truth) - 0.5)
    return np.argsort(-distance, kind="stable")[:k]


def probe_report(
    train: EvaluationImages,
    test: EvaluationImages,
    *,
    ks: Sequence[int] = KS,
    n_shuffles: int = 5,
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return {"mean": …, "labels": {label: {"k=1": figure, …, "coordinates k=1", "whole embedding"}}}.

    Each "k=…" figure is the AUROC on test with its interval over groups, the mean over shuffled train
    labels as control, and the chosen `latents`. Coordinates and whole embedding need `x` in both splits.
    A label with fewer than 30 known rows, or 10 of either class, in train or test has the reason
    instead. The interval of the mean is over labels with the same draws of groups.
    """
    member = group_numbers(test.groups)
    weights = bootstrap_weights(int(member.max(initial=-1)) + 1, n_draws, seed)[:, member]
    found: dict[str, Any] = {}
    drawn: dict[str, list[np.ndarray]] = {}
    for label, values in train.truth.items():
        fit, seen = (np.flatnonzero(np.isfinite(t)) for t in (values, test.truth[label]))
        truth = test.truth[label][seen]
        entry: dict[str, Any] = {"n": len(seen), "n_positive": int(truth.sum())}
        if short := too_few(values[fit], "train") or too_few(truth, "test"):
            found[label] = {"reason": short, **entry}
            continue
        found[label] = entry
        probe = _LabelProbe(train.take(fit), values[fit], test.take(seen), truth, seed)
        columns, controls = probe.chosen_latents(max(ks), n_shuffles)
        for k in ks:
            control = [probe.auroc(chosen[:k], y) for chosen, y in controls]
            entry[f"k={k}"], draws = probe.figure(
                columns[:k],
                weights[:, seen],
                control=float(np.mean(control)) if control else None,
                control_is="shuffled train labels",
                latents=columns[:k].tolist(),
            )
            drawn.setdefault(f"k={k}", []).extend(draws)
        if train.x is not None and test.x is not None:
            for name, part in probe.embedding_columns(ks).items():
                entry[name], draws = probe.embedding_figure(part, weights[:, seen])
                drawn.setdefault(name, []).extend(draws)
    return {"mean": _mean(found, drawn, ks), "labels": found}


def too_few(truth: np.ndarray, split: str) -> str | None:
    """Return why a label cannot be probed on these rows, or None."""
    positive = int(truth.sum())
    if len(truth) < MIN_CELL or min(positive, len(truth) - positive) < MIN_CLASS:
        return f"n too small in {split}: {positive} of {len(truth)}"
    return None


class _LabelProbe:
    """Heads for one label: fitted on some columns of the train rows, measured on the test rows."""

    def __init__(
        self,
        train: EvaluationImages,
        y: np.ndarray,
        test: EvaluationImages,
        truth: np.ndarray,
        seed: int,
    ) -> None:
        self.train, self.y, self.test, self.truth, self.seed = train, y, test, truth, seed

    def chosen_latents(
        self, k: int, n_shuffles: int
    ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Return the k best latents, and those of shuffled labels with these labels."""
        rng = np.random.default_rng([self.seed, 6])
        shuffled = [rng.permutation(self.y) for _ in range(n_shuffles)]
        controls = [(best_columns(self.train.codes, y, k), y) for y in shuffled]
        return best_columns(self.train.codes, self.y, k), controls

    def auroc(self, latents: np.ndarray, y: np.ndarray) -> float:
        """Return the AUROC of a head fitted with the labels y; nan if they are too few to fit."""
        scores = self._scores(self.train.codes[:, latents], self.test.codes[:, latents], y)
        return float("nan") if scores is None else auroc(self.truth, scores)

    def figure(
        self, columns: np.ndarray, weights: np.ndarray, **more: Any
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Return the figure of a head on some latents, and its draws for weights (draws, n)."""
        scores = self._scores(self.train.codes[:, columns], self.test.codes[:, columns], self.y)
        return self._figure(scores, weights, **more)

    def embedding_columns(self, ks: Sequence[int]) -> dict[str, np.ndarray | None]:
        """Return the coordinates of the embedding to probe, {name: numbers, or None for all}."""
        distance = np.abs(auroc_many(self.y, np.asarray(self.train.x)) - 0.5)
        order = np.argsort(-np.nan_to_num(distance), kind="stable")
        return {**{f"coordinates k={k}": order[:k] for k in ks}, "whole embedding": None}

    def embedding_figure(
        self, columns: np.ndarray | None, weights: np.ndarray
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Return the figure of a head on coordinates of the embedding, and its draws."""
        a, b = np.asarray(self.train.x), np.asarray(self.test.x)
        a, b = (a, b) if columns is None else (a[:, columns], b[:, columns])
        return self._figure(self._scores(a, b, self.y), weights)

    def _figure(
        self, scores: np.ndarray | None, weights: np.ndarray, **more: Any
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        if scores is None:
            return figure(None, len(self.truth), **more), []
        draws = auroc_draws(self.truth, scores, weights)
        interval = percentile_interval(draws)
        return figure(auroc(self.truth, scores), len(self.truth), interval, **more), [draws]

    def _scores(self, fit: Any, seen: Any, y: np.ndarray) -> np.ndarray | None:
        try:
            return _score(_dense(fit), y, np.asarray(self.train.groups), _dense(seen), self.seed)
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
    # With a few columns the strength of the regularisation does not matter, so it is not chosen.
    mean, scale = fit.mean(0), fit.std(0) + 1e-8
    with threadpool_limits(1, "blas"):
        model = LogisticRegression(C=1.0, max_iter=2000).fit((fit - mean) / scale, y > 0.5)
    return ((seen - mean) / scale) @ model.coef_[0]


def _dense(table: Any) -> np.ndarray:
    return np.asarray(table.toarray() if hasattr(table, "toarray") else table, dtype=np.float64)


def _mean(
    found: dict[str, Any], drawn: dict[str, list[np.ndarray]], ks: Sequence[int]
) -> dict[str, Any]:
    """Return means over the labels that could be probed; `n` counts them."""
    scored = [entry for entry in found.values() if "reason" not in entry]
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
                # A draw may have no positive of a label; the mean is over the other labels.
                percentile_interval(np.nanmean(np.stack(drawn[name]), axis=0)),
                control=json_number(float(np.mean(controls))) if controls else None,
                control_is="shuffled train labels" if controls else None,
            )
    return out
