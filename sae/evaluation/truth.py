"""Latents against factors whose truth is known (phantoms, synthetic rows): found, split, absorbed?

The groups are cut in two halves, and each chooses for the other: for each factor the latent and the
threshold with the best F1, and the one-to-one matchings; figures are means over the two. A latent must
fire to say "present". Choosing among thousands of latents is rewarded by chance alone, so the same is
done with the truth shuffled, whole groups at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.intervals import auroc, percentile_interval

from .dictionary import decoder_report
from .figure import bunches, draws, figure, number
from .stability import match

MIN_POSITIVE = 10  # of a factor in each half; with fewer it is left out and named
SPLIT_F1 = 0.3


def halves(groups: Sequence[object], seed: int = 0) -> np.ndarray:
    """True for the rows of the half on which things are chosen: (n,) bool, whole groups."""
    member = bunches(groups, most=1 << 62)
    count = int(member.max()) + 1 if len(member) else 0
    return (np.random.default_rng([seed, 3]).permutation(count) % 2 == 0)[member]


def best_f1(codes: Any, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F1, threshold), both (m, h): of each latent as a detector `code > threshold ≥ 0` of each factor,
    at its best threshold. codes csr (n, h) ≥ 0; truth (n, m) of 1, 0, nan = unknown. The threshold
    lies between two values that occur. F1 = 2 TP / (predicted + positive)."""
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
        hits, said = filled[row].cumsum(0)[last], known[row].cumsum(0)[last]
        score = 2 * hits / np.maximum(said + positive, 1e-12)
        at = score.argmax(0)
        below = np.append(value, 0.0)[last + 1]
        f1[:, latent] = score[at, np.arange(len(at))]
        threshold[:, latent] = (value[last[at]] + below[at]) / 2
    return f1, threshold


def correlations(codes: Any, truth: np.ndarray) -> np.ndarray:
    """|Pearson correlation| of each factor with each latent over the rows where it is known: (m, h)."""
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
    groups: Sequence[object],
    *,
    names: Sequence[str],
    hierarchy: Sequence[tuple[int, int]] = (),
    W_dec: np.ndarray | None = None,
    dictionary: np.ndarray | None = None,
    n_draws: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """codes csr (n, h) ≥ 0; truth (n, m): above 0 is present (its size counts for `mcc` only), nan =
    unknown; groups (n,); hierarchy: (parent, child) factors, a child never without its parent.

    Figures over factors, scored on the half of the groups that did not choose, both ways round,
    intervals by bootstrap over the groups (choices stay), control = the same with shuffled truth:
    `matched_f1` (best latent each), `one_to_one_f1` and `mcc` (Hungarian, on F1 and |correlation|),
    `splitting` (mean number of latents with F1 > .3), `distinct` (different latents among the best,
    over factors), `absorption` with a hierarchy (parent there, its latent silent and the child's
    firing; control: parent's latent silent where the parent comes without the child; `pairs` by name).
    `decoder` with W_dec and dictionary. `per_factor` {name: …} and `left_out` {name: positives} with
    fewer than 10 in a half.
    Errors: UserInputError for shapes; EvidenceError when no factor has enough.
    """
    truth = np.asarray(truth, dtype=np.float64)
    if not (codes.shape[0] == len(truth) == len(groups)) or truth.shape[1] != len(names):
        raise UserInputError(
            f"codes {codes.shape}, truth {truth.shape}, {len(groups)} groups and {len(names)} names "
            "do not go together"
        )
    choose = halves(groups, seed)
    present = np.where(np.isfinite(truth), (truth > 0).astype(float), np.nan)
    enough = np.ones(truth.shape[1], dtype=bool)
    for half in (choose, ~choose):
        yes, no = (np.nansum(present[half] == value, axis=0) for value in (1, 0))
        enough &= (yes >= MIN_POSITIVE) & (no >= MIN_POSITIVE)
    kept = np.flatnonzero(enough)
    left_out = {names[j]: int(np.nansum(present[:, j])) for j in np.flatnonzero(~enough)}
    if not len(kept):
        raise EvidenceError(
            f"no factor is present and absent in {MIN_POSITIVE} rows of each half of the groups",
            None,
            {"factors": truth.shape[1], "n": len(truth)},
        )
    codes = codes.tocsr()
    shuffled = _shuffle(np.asarray(groups), choose, seed)
    ways, chance = (
        [
            _Scored(codes, truth[rows][:, kept], present[rows][:, kept], half)
            for half in (choose, ~choose)
        ]
        for rows in (np.arange(len(truth)), shuffled)
    )
    member = bunches(np.asarray(groups))
    w = draws(int(member.max()) + 1, n_draws, seed)[:, member]
    n = len(truth)

    def over(of: Callable[[_Scored, np.ndarray], np.ndarray]) -> dict[str, Any]:
        """The figure, and its control, of `of(way, weights (draws, its rows)) -> (draws,)`."""

        def mean(ways: list[_Scored], weights: np.ndarray) -> np.ndarray:
            return np.mean([of(way, weights[:, way.held]) for way in ways], axis=0)

        once = np.ones((1, n))
        return figure(
            mean(ways, once)[0],
            n,
            percentile_interval(mean(ways, w)),
            control=mean(chance, once)[0],
            control_is="shuffled truth",
        )

    found: dict[str, Any] = {
        "matched_f1": over(lambda way, u: way.mean_f1(way.best_says, u)),
        "one_to_one_f1": over(lambda way, u: way.mean_f1(way.own_says, u)),
        "mcc": over(lambda way, u: way.correlation(u).mean(1)),
        "splitting": over(lambda way, u: way.splitting(u).mean(1)),
        "distinct": figure(
            float(np.mean([len(set(way.best.tolist())) for way in ways])) / len(kept), n
        ),
    }
    place = {factor: i for i, factor in enumerate(kept.tolist())}
    pairs = [(place[p], place[c]) for p, c in hierarchy if p in place and c in place]
    if pairs:
        found["absorption"] = _absorption(ways, pairs, [names[j] for j in kept], w)
    if W_dec is not None and dictionary is not None:
        alive = codes.getnnz(axis=0) > 0
        found["decoder"] = {
            k: number(v) for k, v in decoder_report(W_dec, dictionary[kept], alive).items()
        }
    found["per_factor"] = {names[j]: _row(ways, i) for i, j in enumerate(kept.tolist())}
    found["left_out"] = left_out
    return found


class _Scored:
    """Choices made on one half (`choose`), scored on the other (`held`)."""

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
        self.best_says = self._says(self.best, threshold[factor, self.best])
        self.own_says = self._says(own, threshold[factor, own])
        # Latents that tell a factor with F1 > .3 on the half of choice: (factor, latent) pairs.
        self._split_of, split = np.nonzero(f1 > SPLIT_F1)
        self._split_says = self._says(split, threshold[self._split_of, split])
        rows, columns = match(correlations(codes[choose], truth[choose]))
        self._matched = rows
        self._matched_codes = held[:, columns].toarray().astype(np.float64)
        self._matched_truth = truth[~choose][:, rows]
        self.n_factors = len(factor)

    def _says(self, latents: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """(n_held, factors) bool; a factor without a latent (-1) is never said to be there."""
        says = np.zeros((self._held.shape[0], len(latents)), dtype=bool)
        for j, (latent, threshold) in enumerate(zip(latents, thresholds, strict=True)):
            if latent >= 0:
                says[:, j] = self._held[:, [latent]].toarray().ravel() > threshold
        return says

    def splitting(self, weights: np.ndarray) -> np.ndarray:
        """Latents with F1 > .3 on both halves, for each factor: (draws, factors) of weights (draws, n)."""
        found = np.zeros((len(weights), self.n_factors))
        for j in np.unique(self._split_of):
            mine = self._split_of == j
            truth = np.broadcast_to(self.present[:, [j]], (len(self.present), int(mine.sum())))
            with np.errstate(invalid="ignore"):
                found[:, j] = (_f1(self._split_says[:, mine], truth, weights) > SPLIT_F1).sum(1)
        return found

    def correlation(self, weights: np.ndarray) -> np.ndarray:
        """|Pearson correlation| of each factor with its matched latent, 0 without one or without
        variance: (draws, factors) of weights (draws, n), rows of unknown truth left out."""
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

    def mean_f1(self, says: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Over factors, of weights (draws, n): (draws,)."""
        return np.nanmean(_f1(says, self.present, weights), axis=1)

    def row(self, j: int) -> dict[str, Any]:
        """What factor j comes to."""
        known = np.isfinite(self.present[:, j])
        truth = self.present[known, j]
        once, column = np.ones((1, len(self.present))), self.present[:, [j]]
        return {
            "f1": float(_f1(self.best_says[:, [j]], column, once)[0, 0]),
            "one_to_one_f1": float(_f1(self.own_says[:, [j]], column, once)[0, 0]),
            "auroc": auroc(truth, self._held[:, [int(self.best[j])]].toarray().ravel()[known]),
            "correlation": float(self.correlation(once)[0, j]),
            "splitting": float(self.splitting(once)[0, j]),
            "n": int(known.sum()),
            "n_positive": int(truth.sum()),
        }


def _row(ways: list[_Scored], j: int) -> dict[str, Any]:
    """One factor: which latents the two halves chose, the means of its scores, and its rows."""
    rows = [way.row(j) for way in ways]
    return {
        "latents": [int(way.best[j]) for way in ways],
        "one_to_one_latents": [int(way.own[j]) if way.own[j] >= 0 else None for way in ways],
        **{
            name: number(float(np.mean([row[name] for row in rows])))
            for name in ("f1", "one_to_one_f1", "auroc", "correlation", "splitting")
        },
        **{name: sum(row[name] for row in rows) for name in ("n", "n_positive")},
    }


def _f1(says: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F1 of each column (draws, columns), over the rows where its truth is known; nan without a
    positive row. says, truth (n, columns); weights (draws, n)."""
    hits = weights @ (says & (truth == 1))
    said, positive = weights @ (says & np.isfinite(truth)), weights @ (truth == 1)
    return np.where(positive > 0, 2 * hits / np.maximum(said + positive, 1e-12), np.nan)


def _absorption(
    ways: list[_Scored], pairs: Sequence[tuple[int, int]], names: Sequence[str], weights: np.ndarray
) -> dict[str, Any]:
    """Share of the rows with the child (and so the parent) on which the parent's latent is silent
    while the child's fires; beside it the parent's misses where there is no child to absorb it."""
    used: dict[str, None] = {}
    taken, misses, n = [], [], 0
    for way in ways:
        for parent, child in pairs:
            there, own = way.present[:, parent] == 1, way.present[:, child] == 1
            with_child, alone = there & own, there & ~own
            if not with_child.any() or not alone.any() or way.own[parent] < 0:
                continue
            silent = ~way.own_says[:, parent]
            used[f"{names[parent]} > {names[child]}"] = None
            taken.append((way.held, silent & way.own_says[:, child] & with_child, with_child))
            misses.append(silent[alone].mean())
            n += int(with_child.sum())
    if not taken:
        return figure(None, 0, pairs=[])

    def share(w: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.mean(
                [(w[:, held] @ absorbed) / (w[:, held] @ of) for held, absorbed, of in taken],
                axis=0,
            )

    return figure(
        share(np.ones((1, weights.shape[1])))[0],
        n,
        percentile_interval(share(weights)),
        control=float(np.mean(misses)),
        control_is="parent's latent silent without the child",
        pairs=list(used),
    )


def implied_pairs(truth: np.ndarray) -> list[tuple[int, int]]:
    """The hierarchy that labels (n, m) of 1, 0, nan = unknown have of themselves: (parent, child) where
    no row has the child without its parent, and that is no accident: with the parent's frequency p and n
    rows with the child pⁿ is below 1e-6. A child's own twin (always together) is no hierarchy."""
    found = []
    for parent in range(truth.shape[1]):
        for child in range(truth.shape[1]):
            known = np.isfinite(truth[:, parent]) & np.isfinite(truth[:, child])
            has, own = truth[known, parent] > 0, truth[known, child] > 0
            if parent == child or (own & ~has).any() or (has & ~own).sum() < MIN_POSITIVE:
                continue
            if own.sum() * np.log(max(has.mean(), 1e-300)) < np.log(1e-6):
                found.append((parent, child))
    return found


def _shuffle(groups: np.ndarray, choose: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers that give each row the truth of another one of its half. Groups go in blocks: rows
    ordered by a random order of groups are shifted by half their number, so that rows of one group
    get the truth of (nearly) one group."""
    rng = np.random.default_rng([seed, 4])
    out = np.arange(len(groups))
    for half in (choose, ~choose):
        rows = np.flatnonzero(half)
        _, member = np.unique(groups[rows].astype(str), return_inverse=True)
        order = rows[np.argsort(rng.permutation(member.max() + 1)[member], kind="stable")]
        out[order] = np.roll(order, len(order) // 2)
    return out
