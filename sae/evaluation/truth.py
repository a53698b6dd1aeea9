"""Latents compared with labels as known factors: matched F1, one-to-one F1, splitting, absorption.

The groups are divided into two halves, and each chooses for the other: for each factor the latent and the
threshold with the best F1, and the one-to-one matchings. Figures are means over the two. A latent predicts
"present" only if it is active. Choosing among thousands of latents gives a score by chance alone, so the
control repeats it with the truth shuffled, whole groups at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.intervals import auroc, percentile_interval

from .figure import bootstrap_weights, figure, group_numbers, json_number
from .stability import match

MIN_POSITIVE = 10  # of a factor in each half; with fewer it is left out and named
SPLIT_F1 = 0.3


def halves(groups: Sequence[object] | np.ndarray, seed: int = 0) -> np.ndarray:
    """Return a mask (n,) of the rows of the half on which latents are chosen; groups stay whole."""
    member = group_numbers(groups, most=1 << 62)
    count = int(member.max()) + 1 if len(member) else 0
    return (np.random.default_rng([seed, 3]).permutation(count) % 2 == 0)[member]


def best_f1(codes: Any, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (F1, threshold), both (m, h), of each latent as a detector of each factor.

    A latent detects where its code is above its best threshold ≥ 0, which lies between two values that
    occur. codes csr (n, h) ≥ 0; truth (n, m) of 1, 0, nan = unknown. F1 = 2 TP / (predicted + positive).
    """
    known = np.isfinite(truth)
    filled = np.where(known, truth, 0.0)
    positive = filled.sum(0)
    columns = codes.tocsc()
    f1 = np.zeros((truth.shape[1], codes.shape[1]))
    threshold = np.full(f1.shape, np.inf)
    for latent in range(codes.shape[1]):
        span = slice(columns.indptr[latent], columns.indptr[latent + 1])
        value, row = columns.data[span], columns.indices[span]
        fires = value > 0
        value, row = value[fires], row[fires]
        if not len(value):
            continue
        order = np.argsort(-value, kind="stable")
        value, row = value[order], row[order]
        last = np.flatnonzero(np.append(value[:-1] != value[1:], True))
        hits, predicted = filled[row].cumsum(0)[last], known[row].cumsum(0)[last]
        score = 2 * hits / np.maximum(predicted + positive, 1e-12)
        at = score.argmax(0)
        below = np.append(value, 0.0)[last + 1]
        f1[:, latent] = score[at, np.arange(len(at))]
        threshold[:, latent] = (value[last[at]] + below[at]) / 2
    return f1, threshold


def correlations(codes: Any, truth: np.ndarray) -> np.ndarray:
    """Return |Pearson correlation| (m, h) of factors and latents over the rows with known truth."""
    out = np.zeros((truth.shape[1], codes.shape[1]))
    codes = codes.astype(np.float64)
    squared = codes.multiply(codes).tocsr()
    for j in range(truth.shape[1]):
        known = np.isfinite(truth[:, j])
        a, t = codes[known], truth[known, j]
        n = len(t)
        if not n or not t.std() > 0:
            continue
        mean = np.asarray(a.mean(0)).ravel()
        variance = np.asarray(squared[known].mean(0)).ravel() - mean**2
        spread = np.sqrt(np.where(variance > 1e-12 * np.maximum(mean**2, 1e-300), variance, np.inf))
        out[j] = np.abs((a.T @ (t - t.mean())) / n / (spread * t.std()))
    return out


def truth_report(
    codes: Any,
    truth: np.ndarray,
    groups: Sequence[object] | np.ndarray,
    *,
    names: Sequence[str],
    hierarchy: Sequence[tuple[int, int]] = (),
    n_draws: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare codes csr (n, h) ≥ 0 with factors: truth (n, m), groups (n,).

    Truth above 0 is present (its size counts for `mcc` only), nan is unknown. `hierarchy` has (parent,
    child) factors; a child never occurs without its parent.

    Figures are over factors, measured on the half of the groups on which nothing was chosen, in both
    directions; intervals by bootstrap over the groups with the same choices, control = shuffled truth:
    `matched_f1` (best latent of each factor), `one_to_one_f1` and `mcc` (Hungarian, on F1 and
    |correlation|), `splitting` (mean number of latents with F1 > .3), `distinct` (different latents among
    the best, divided by factors), `absorption` with a hierarchy (its control: the latent of the parent
    is silent where the parent occurs without the child; `pairs` by name). `per_factor` is {name: …},
    `left_out` {name: positives} has the factors with fewer than 10 rows in a half.
    Errors: UserInputError for shapes that do not match; EvidenceError if no factor has enough rows.
    """
    truth = np.asarray(truth, dtype=np.float64)
    if not (codes.shape[0] == len(truth) == len(groups)) or truth.shape[1] != len(names):
        raise UserInputError(
            f"codes {codes.shape}, truth {truth.shape}, {len(groups)} groups and {len(names)} names "
            "do not match"
        )
    choose, codes, n = halves(groups, seed), codes.tocsr(), len(truth)
    present = np.where(np.isfinite(truth), (truth > 0).astype(float), np.nan)
    enough = _frequent_enough(present, choose)
    kept = np.flatnonzero(enough)
    kept_names = [names[j] for j in kept.tolist()]
    shuffled = _shuffle(np.asarray(groups), choose, seed)
    scored, chance = (
        [
            _ScoredHalf(codes, truth[rows][:, kept], present[rows][:, kept], half)
            for half in (choose, ~choose)
        ]
        for rows in (np.arange(n), shuffled)
    )
    member = group_numbers(groups)
    weights = bootstrap_weights(int(member.max()) + 1, n_draws, seed)[:, member]

    def mean_figure(score: Callable[[_ScoredHalf, np.ndarray], np.ndarray]) -> dict[str, Any]:
        """Return the mean figure, with its control, of `score(half, weights (draws, its rows))`."""

        def mean(halves: list[_ScoredHalf], w: np.ndarray) -> np.ndarray:
            return np.mean([score(half, w[:, half.held]) for half in halves], axis=0)

        once = np.ones((1, n))
        return figure(
            mean(scored, once)[0],
            n,
            percentile_interval(mean(scored, weights)),
            control=mean(chance, once)[0],
            control_is="shuffled truth",
        )

    distinct = np.mean([len(set(half.best.tolist())) for half in scored])
    found: dict[str, Any] = {
        "matched_f1": mean_figure(lambda half, w: half.mean_f1(half.best_predicts, w)),
        "one_to_one_f1": mean_figure(lambda half, w: half.mean_f1(half.own_predicts, w)),
        "mcc": mean_figure(lambda half, w: half.correlation(w).mean(1)),
        "splitting": mean_figure(lambda half, w: half.splitting(w).mean(1)),
        "distinct": figure(float(distinct) / len(kept), n),
        "per_factor": {name: _factor(scored, i) for i, name in enumerate(kept_names)},
        "left_out": {
            names[j]: int(np.nansum(present[:, j])) for j in np.flatnonzero(~enough).tolist()
        },
    }
    place = {factor: i for i, factor in enumerate(kept.tolist())}
    pairs = [(place[p], place[c]) for p, c in hierarchy if p in place and c in place]
    if pairs:
        found["absorption"] = _absorption(scored, pairs, kept_names, weights)
    return found


def _frequent_enough(present: np.ndarray, choose: np.ndarray) -> np.ndarray:
    """Return a mask of the factors that are present and absent often enough in both halves."""
    enough = np.ones(present.shape[1], dtype=bool)
    for half in (choose, ~choose):
        for value in (1, 0):
            enough &= np.nansum(present[half] == value, axis=0) >= MIN_POSITIVE
    if not enough.any():
        raise EvidenceError(
            f"no factor is present and absent in {MIN_POSITIVE} rows of each half of the groups",
            None,
            {"factors": present.shape[1], "n": len(present)},
        )
    return enough


class _ScoredHalf:
    """Latents and thresholds chosen on one half (`choose`), scored on the other (`held`)."""

    def __init__(
        self, codes: Any, truth: np.ndarray, present: np.ndarray, choose: np.ndarray
    ) -> None:
        f1, threshold = best_f1(codes[choose], present[choose])
        factor = np.arange(f1.shape[0])
        self.best = f1.argmax(1)
        own = np.full(len(factor), -1)
        rows, columns = match(f1)
        own[rows] = columns
        self.own = own
        self.held = ~choose
        held = codes[~choose]
        self._held = held.tocsc()
        self.present = present[~choose]
        self.best_predicts = self._predictions(self.best, threshold[factor, self.best])
        self.own_predicts = self._predictions(own, threshold[factor, own])
        # (factor, latent) pairs with F1 > .3 on the half of choice.
        self._split_of, split = np.nonzero(f1 > SPLIT_F1)
        self._split_predicts = self._predictions(split, threshold[self._split_of, split])
        rows, columns = match(correlations(codes[choose], truth[choose]))
        self._matched = rows
        self._matched_codes = held[:, columns].toarray().astype(np.float64)
        self._matched_truth = truth[~choose][:, rows]
        self.n_factors = len(factor)

    def _predictions(self, latents: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """Return (n_held, factors) bool; a factor without a latent (-1) is never predicted."""
        predicted = np.zeros((self._held.shape[0], len(latents)), dtype=bool)
        for j, (latent, threshold) in enumerate(zip(latents, thresholds, strict=True)):
            if latent >= 0:
                predicted[:, j] = self._held[:, [latent]].toarray().ravel() > threshold
        return predicted

    def splitting(self, weights: np.ndarray) -> np.ndarray:
        """Return the number of latents with F1 > .3 on both halves: (draws, factors)."""
        found = np.zeros((len(weights), self.n_factors))
        for j in np.unique(self._split_of):
            mine = self._split_of == j
            truth = np.broadcast_to(self.present[:, [j]], (len(self.present), int(mine.sum())))
            with np.errstate(invalid="ignore"):
                found[:, j] = (_f1(self._split_predicts[:, mine], truth, weights) > SPLIT_F1).sum(1)
        return found

    def correlation(self, weights: np.ndarray) -> np.ndarray:
        """Return |Pearson correlation| (draws, factors) of each factor with its matched latent.

        It is over rows with known truth, for weights (draws, n), and 0 without a latent or variance.
        """
        a, t = self._matched_codes, self._matched_truth
        known = np.isfinite(t)
        a, t = np.where(known, a, 0.0), np.where(known, t, 0.0)
        total, sum_a, sum_t, aa, tt, at = (
            weights @ part for part in (known, a, t, a * a, t * t, a * t)
        )
        total = np.maximum(total, 1e-12)
        spread_a, spread_t = (
            np.where(
                square - mean**2 > 1e-12 * np.maximum(mean**2, 1e-300), square - mean**2, np.inf
            )
            for square, mean in ((aa / total, sum_a / total), (tt / total, sum_t / total))
        )
        found = np.zeros((len(weights), self.n_factors))
        covariance = at / total - sum_a * sum_t / total**2
        found[:, self._matched] = np.abs(covariance) / np.sqrt(spread_a * spread_t)
        return found

    def mean_f1(self, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the mean F1 over factors (draws,), for weights (draws, n)."""
        return np.nanmean(_f1(predicted, self.present, weights), axis=1)

    def row(self, j: int) -> dict[str, Any]:
        """Return the scores of factor j."""
        known = np.isfinite(self.present[:, j])
        truth = self.present[known, j]
        once, column = np.ones((1, len(self.present))), self.present[:, [j]]
        return {
            "f1": float(_f1(self.best_predicts[:, [j]], column, once)[0, 0]),
            "one_to_one_f1": float(_f1(self.own_predicts[:, [j]], column, once)[0, 0]),
            "auroc": auroc(truth, self._held[:, [int(self.best[j])]].toarray().ravel()[known]),
            "correlation": float(self.correlation(once)[0, j]),
            "splitting": float(self.splitting(once)[0, j]),
            "n": int(known.sum()),
            "n_positive": int(truth.sum()),
        }


def _factor(halves: list[_ScoredHalf], j: int) -> dict[str, Any]:
    """Return the latents that the two halves chose for factor j, its mean scores, and its n."""
    rows = [half.row(j) for half in halves]
    return {
        "latents": [int(half.best[j]) for half in halves],
        "one_to_one_latents": [int(half.own[j]) if half.own[j] >= 0 else None for half in halves],
        **{
            name: json_number(float(np.mean([row[name] for row in rows])))
            for name in ("f1", "one_to_one_f1", "auroc", "correlation", "splitting")
        },
        **{name: sum(row[name] for row in rows) for name in ("n", "n_positive")},
    }


def _f1(predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the F1 (draws, columns) over rows with known truth; nan without a positive row.

    predicted, truth (n, columns); weights (draws, n).
    """
    hits = weights @ (predicted & (truth == 1))
    total = weights @ (predicted & np.isfinite(truth)) + weights @ (truth == 1)
    positive = weights @ (truth == 1)
    return np.where(positive > 0, 2 * hits / np.maximum(total, 1e-12), np.nan)


def _absorption(
    halves: list[_ScoredHalf],
    pairs: Sequence[tuple[int, int]],
    names: Sequence[str],
    weights: np.ndarray,
) -> dict[str, Any]:
    """Return the fraction of rows with a child on which only the latent of the child is active.

    The parent is present in these rows too. The control is how often the latent of the parent is silent
    where the parent occurs without the child.
    """
    used: dict[str, None] = {}
    counted, misses, n = [], [], 0
    for half in halves:
        for parent, child in pairs:
            has_parent, has_child = half.present[:, parent] == 1, half.present[:, child] == 1
            with_child, alone = has_parent & has_child, has_parent & ~has_child
            if not with_child.any() or not alone.any() or half.own[parent] < 0:
                continue
            silent = ~half.own_predicts[:, parent]
            used[f"{names[parent]} > {names[child]}"] = None
            absorbed = silent & half.own_predicts[:, child] & with_child
            counted.append((half.held, absorbed, with_child))
            misses.append(silent[alone].mean())
            n += int(with_child.sum())
    if not counted:
        return figure(None, 0, pairs=[])

    def fraction(w: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.mean(
                [(w[:, held] @ absorbed) / (w[:, held] @ of) for held, absorbed, of in counted],
                axis=0,
            )

    return figure(
        fraction(np.ones((1, weights.shape[1])))[0],
        n,
        percentile_interval(fraction(weights)),
        control=float(np.mean(misses)),
        control_is="parent's latent silent without the child",
        pairs=list(used),
    )


def implied_pairs(truth: np.ndarray) -> list[tuple[int, int]]:
    """Return the (parent, child) pairs of labels (n, m) of 1, 0, nan = unknown.

    No row has the child without its parent, and not by accident: with the frequency p of the parent and
    n rows with the child, pⁿ is below 1e-6. Labels that always occur together are no pair.
    """
    found = []
    for parent in range(truth.shape[1]):
        for child in range(truth.shape[1]):
            known = np.isfinite(truth[:, parent]) & np.isfinite(truth[:, child])
            has_parent, has_child = truth[known, parent] > 0, truth[known, child] > 0
            alone = (has_parent & ~has_child).sum()
            if parent == child or (has_child & ~has_parent).any() or alone < MIN_POSITIVE:
                continue
            if has_child.sum() * np.log(max(has_parent.mean(), 1e-300)) < np.log(1e-6):
                found.append((parent, child))
    return found


def _shuffle(groups: np.ndarray, choose: np.ndarray, seed: int) -> np.ndarray:
    """Return row numbers that give each row the truth of another row of its half.

    Rows in a random order of groups are shifted by half of their number, so that the rows of one group
    get the truth of (nearly) one group.
    """
    rng = np.random.default_rng([seed, 4])
    out = np.arange(len(groups))
    for half in (choose, ~choose):
        rows = np.flatnonzero(half)
        _, member = np.unique(groups[rows].astype(str), return_inverse=True)
        order = rows[np.argsort(rng.permutation(member.max() + 1)[member], kind="stable")]
        out[order] = np.roll(order, len(order) // 2)
    return out
