"""The figures of a cross-fitted suppression, and the decision whether a recipe may be written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dermaudit.stats.intervals import GroupBootstrap, percentile_interval

from .cross_fit import CrossFitMethod, CrossFitted, Fold, TrapData, counted, cross_fit
from .edited_head import EditedHead, random_suppressor
from .effect_figures import EffectFigures
from .operating_points import Flips, GroupRates, count_flips, flip_cause, fold_auroc, group_rates

RANDOM_LATENTS = 100
MIN_BEATEN = 95
MAX_CLEAN_LOSS = 0.03
DRAWS = 1000


@dataclass(frozen=True)
class SuppressionEffect:
    """Cross-fitted figures of one method for one artifact; AUROCs in 0 … 1, intervals 95 % over groups.

    `clean_*`: AUROC of images without the artifact. `gap_closed` = (after − before) / (oracle − before);
    nan where the oracle is not above the head. `random_changes` are the changes that RANDOM_LATENTS sets of
    random latents of the same firing rate and size make, `random_beaten` how many of them are smaller; None
    where the method suppresses no latents.
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
    random_changes: list[float] | None
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
    others = None
    if random_scores is not None:
        after_random = [fold_auroc(score[rows], *cross, fold)[0] for score in random_scores]
        others = [float(value - cross_before[0]) for value in after_random]
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
        flips=count_flips(flip_causes(result)[rows]),
        identity_share=float(result.unchanged[rows].mean()),
        random_beaten=None if others is None else sum(float(change[0]) > c for c in others),
        random_changes=others,
        n=dict(counted(data)),
    )


def effect_figures(effect: SuppressionEffect) -> EffectFigures:
    """Return the figures of an effect as they are written, without the changes by random latents."""
    before, fixed, matched = effect.rates_before, effect.rates_fixed, effect.rates_prevalence
    return EffectFigures(
        cross_group_auroc_before=effect.cross_group_auroc_before,
        cross_group_auroc_after=effect.cross_group_auroc_after,
        oracle=effect.oracle,
        gap_closed=effect.gap_closed,
        ci=effect.ci,
        auroc_before=effect.auroc_before,
        auroc_after=effect.auroc_after,
        clean_auroc_delta=effect.clean_auroc_delta,
        clean_auroc_ci=effect.clean_auroc_ci,
        worst_group_before=before.worst,
        worst_group_fixed=fixed.worst,
        worst_group_prevalence=matched.worst,
        sensitivity_before=before.sensitivity,
        specificity_before=before.specificity,
        sensitivity_fixed=fixed.sensitivity,
        specificity_fixed=fixed.specificity,
        sensitivity_prevalence=matched.sensitivity,
        specificity_prevalence=matched.specificity,
        flips=vars(effect.flips),
        identity_share=effect.identity_share,
        random_beaten=effect.random_beaten,
        n=effect.n,
    )


def flip_causes(result: CrossFitted) -> np.ndarray:
    """Return why the decision of each row flips (n,); see `flip_cause`."""
    return flip_cause(result.before, result.after_fixed, result.after_matched, ~result.unchanged)


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


def random_control(found: list[Fold], result: CrossFitted) -> list[np.ndarray] | None:
    """Return the scores (n,) behind RANDOM_LATENTS sets of random latents; None where the method that was
    cross-fitted suppresses no latents.
    """
    suppressors = [getattr(fitted, "suppressor", None) for fitted in result.fitted]
    if all(one is None for one in suppressors):
        return None
    out = []
    for number in range(RANDOM_LATENTS):
        score = result.score_before.copy()  # of a fold in which no latent was chosen
        for fold, suppressor in zip(found, suppressors, strict=True):
            if suppressor is not None:
                generator = np.random.default_rng([fold.data.seed, fold.number, 2, number])
                control = random_suppressor(fold, suppressor, generator)
                edited = EditedHead.of_suppressor(fold.head, control)
                score[fold.held] = edited.score(fold.data.x[fold.held])
        out.append(score)
    return out


def measure(
    method: CrossFitMethod, found: list[Fold], oracle: np.ndarray
) -> tuple[CrossFitted, SuppressionEffect]:
    """Cross-fit a method, and return its scores and figures. Errors: those of the method."""
    result = cross_fit(method, found)
    control = random_control(found, result)
    return result, suppression_effect(found[0].data, result, oracle, control)
