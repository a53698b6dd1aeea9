"""The figures of a cross-fitted suppression, and the decision whether a recipe may be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dermaudit.stats.intervals import GroupBootstrap, percentile_interval

from .cross_fit import CrossFitted, Fold, TrapData, counted
from .operating_points import Flips, GroupRates, count_flips, fold_auroc, group_rates

RANDOM_LATENTS = 100
MIN_BEATEN = 95
MAX_CLEAN_LOSS = 0.03
DRAWS = 1000


@dataclass(frozen=True)
class SuppressionEffect:
    """Cross-fitted figures of one method for one artifact; AUROCs in 0 … 1, intervals 95 % over groups.

    `clean_*`: AUROC of images without the artifact. `gap_closed` = (after − before) / (oracle − before);
    nan where the oracle is not above the head. `random_beaten` of RANDOM_LATENTS random latents of the
    same firing rate and size have a smaller effect; None where the method is no latent.
    """

    cross_group_auroc_before: float
    cross_group_auroc_after: float
    oracle: float
    gap_closed: float
    ci: tuple[float, float]
    auroc_before: float
    auroc_after: float
    clean_auroc_before: float
    clean_auroc_delta: float
    clean_auroc_ci: tuple[float, float]
    rates_before: GroupRates
    rates_fixed: GroupRates
    rates_prevalence: GroupRates
    flips: Flips
    identity_share: float
    random_beaten: int | None
    n: dict[str, int]


def suppression_effect(
    data: TrapData,
    result: CrossFitted,
    oracle: np.ndarray,
    random_scores: list[np.ndarray] | None = None,
    draws: int = DRAWS,
) -> SuppressionEffect:
    """Return the figures of the scored rows. `oracle` (n,) and `random_scores` (n,) as `cross_fit` orders
    them.
    """
    rows = np.flatnonzero(data.scored)
    y, a, fold = data.y[rows], data.a[rows], result.fold[rows]
    weights = GroupBootstrap(data.groups[rows], draws, data.seed).matrix()
    one = np.ones((1, len(rows)))
    everything, cross, clean = (
        (y == 1, y == 0),
        ((y == 1) & (a == 0), (y == 0) & (a == 1)),
        ((y == 1) & (a == 0), (y == 0) & (a == 0)),
    )

    def auroc_of(score: np.ndarray, pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The AUROC of the rows, then of every draw."""
        return np.concatenate([fold_auroc(score[rows], *pair, fold, w) for w in (one, weights)])

    before, after = result.score_before, result.score
    cross_before, cross_after = auroc_of(before, cross), auroc_of(after, cross)
    clean_before, clean_after = auroc_of(before, clean), auroc_of(after, clean)
    best = float(fold_auroc(oracle[rows], *cross, fold)[0])
    change = cross_after - cross_before
    gap = best - float(cross_before[0])
    beaten = None
    if random_scores is not None:
        others = [fold_auroc(score[rows], *cross, fold)[0] for score in random_scores]
        beaten = int(sum(cross_after[0] > other for other in others))
    return SuppressionEffect(
        cross_group_auroc_before=float(cross_before[0]),
        cross_group_auroc_after=float(cross_after[0]),
        oracle=best,
        gap_closed=float(change[0] / gap) if gap > 0 else float("nan"),
        ci=percentile_interval(change[1:]),
        auroc_before=float(fold_auroc(before[rows], *everything, fold)[0]),
        auroc_after=float(fold_auroc(after[rows], *everything, fold)[0]),
        clean_auroc_before=float(clean_before[0]),
        clean_auroc_delta=float(clean_after[0] - clean_before[0]),
        clean_auroc_ci=percentile_interval((clean_after - clean_before)[1:]),
        rates_before=group_rates(result.before[rows], y, a),
        rates_fixed=group_rates(result.after_fixed[rows], y, a),
        rates_prevalence=group_rates(result.after_matched[rows], y, a),
        flips=count_flips(
            result.before[rows],
            result.after_fixed[rows],
            result.after_matched[rows],
            ~result.unchanged[rows],
        ),
        identity_share=float(result.unchanged[rows].mean()),
        random_beaten=beaten,
        n=dict(counted(data)),
    )


def reasons_to_refuse(effect: SuppressionEffect) -> list[str]:
    """Return why no recipe may be written, each with its figure; empty if nothing speaks against it."""
    reasons = []
    if not effect.ci[0] > 0:
        reasons.append(
            "the interval of the change in cross-group AUROC, "
            f"[{effect.ci[0]:+.3f}, {effect.ci[1]:+.3f}], is not above 0"
        )
    if not effect.clean_auroc_ci[0] > -MAX_CLEAN_LOSS:
        reasons.append(
            f"images without the artifact may lose {-effect.clean_auroc_ci[0]:.3f} of AUROC "
            f"(at most {MAX_CLEAN_LOSS} is accepted)"
        )
    if effect.random_beaten is None or effect.random_beaten < MIN_BEATEN:
        reasons.append(
            f"it beats {effect.random_beaten or 0} of {RANDOM_LATENTS} random latents "
            f"(at least {MIN_BEATEN} are needed)"
        )
    return reasons


def random_control(
    found: list[Fold],
    draw: Callable[[Fold, np.random.Generator], Callable[[np.ndarray], np.ndarray]],
) -> list[np.ndarray]:
    """Return the scores (n,) of RANDOM_LATENTS controls. `draw` returns the scores of one control in a fold."""
    n = len(found[0].data.x)
    out = []
    for number in range(RANDOM_LATENTS):
        score = np.full(n, np.nan)
        for fold in found:
            generator = np.random.default_rng([fold.data.seed, fold.number, 2, number])
            score[fold.held] = draw(fold, generator)(fold.data.x[fold.held])
        out.append(score)
    return out
