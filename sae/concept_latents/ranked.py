"""A concept latent fitted without labels, from a score that ranks the rows: of a text, or of drawn artifacts.

The encoder separates the tenth of the rows with the highest score from the half with the lowest, and the
latent fires above the 75 % quantile of that half. The decoder is

    D = cov(u, score) / cov(z, score)

over all rows: after the edit u − z D no coordinate is correlated with the score. This is the condition of
LEACE (arXiv 2306.03819) for a score in place of a label; for a score of 0 and 1 it is the decoder of
`ConceptLatent.fit`. The length does not depend on how extreme the rows are that the encoder was fitted on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from dermaudit.errors import EvidenceError
from dermaudit.stats.intervals import auroc, auroc_interval

from .latent import (
    FREE_QUANTILE,
    MIN_IMAGES,
    ConceptLatent,
    FitFigures,
    Standardised,
    fit_encoder,
    on_raw_rows,
    out_of_fold_scores,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Int

TOP, BOTTOM = 0.1, 0.5  # shares of the rows that the encoder is fitted on


def seeds(score: Float[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " m"]]:
    """Return the rows that stand for the concept, and those that stand for its absence.

    Raises EvidenceError with the counts for fewer than ten times MIN_IMAGES rows.
    """
    order = np.argsort(-score, kind="stable")
    top, bottom = int(TOP * len(order)), int(BOTTOM * len(order))
    if top < MIN_IMAGES:
        raise EvidenceError(
            f"too few images to rank: {len(order)}",
            f"at least {round(MIN_IMAGES / TOP)} without the target are needed",
            {"n": len(order)},
        )
    return order[:top], order[len(order) - bottom :]


def fit_by_ranking(
    x: Float[np.ndarray, "n d"],
    score: Float[np.ndarray, " n"],
    groups: np.ndarray,
    *,
    seed: int = 0,
) -> ConceptLatent:
    """Fit on rows x (n, d) of one class of the prediction, with a score (n,) that is higher where the concept
    is more likely. Rows of a group stay together in the folds.

    The figures of the latent are of the seeds, which the score chose: they say nothing of real labels.
    Raises EvidenceError for too few rows, and where the latent does not follow the score.
    """
    x = x.astype(np.float64)
    mean, sd = x.mean(0), x.std(0) + 1e-8
    u = (x - mean) / sd
    top, bottom = seeds(score)
    chosen = np.concatenate([top, bottom])
    present = np.repeat([1, 0], [len(top), len(bottom)])
    with threadpool_limits(1, "blas"):
        weight, intercept = fit_encoder(u[chosen], present)
        s = u @ weight + intercept
        s[chosen] = out_of_fold_scores(u[chosen], present, groups[chosen], seed=seed)
    level = s[bottom].mean()
    threshold = max(float(np.quantile(s[bottom], FREE_QUANTILE)), float(level))
    z = np.where(s > threshold, s - level, 0.0)
    ranked = score - score.mean()
    low, high = auroc_interval(present, s[chosen], groups[chosen], seed=seed)
    figures = FitFigures(
        n_with=len(top),
        n_without=len(bottom),
        auroc=auroc(present, s[chosen]),
        auroc_ci=(low, high),
        fires_with=float((z[top] > 0).mean()),
        fires_without=float((z[bottom] > 0).mean()),
    )
    if not (low > 0.5 and z @ ranked > 0):
        raise EvidenceError(
            f"the embeddings do not follow the score: AUROC {figures.auroc:.2f} [{low:.2f}, {high:.2f}] "
            f"between the {len(top)} highest and the {len(bottom)} lowest images",
            "teach the concept with labels",
            {"auroc": figures.auroc, "auroc_ci": [low, high], "n": len(x)},
        )
    step = ranked @ u / (ranked @ z)
    return on_raw_rows(Standardised(mean, sd, weight, intercept, level, threshold, step), figures)


def drawn_score(
    x: Float[np.ndarray, "n d"],
    drawn: Float[np.ndarray, "n d"],
    groups: np.ndarray,
    *,
    seed: int = 0,
) -> Float[np.ndarray, " n"]:
    """Return the out-of-fold score (n,) of rows x by an encoder of rows with the artifact drawn onto the image
    (`drawn`, of the same images; rows of nan were not drawn) against those without.

    Raises EvidenceError where the two are not told apart.
    """
    have = np.flatnonzero(np.isfinite(drawn).all(1))
    if len(have) < MIN_IMAGES:
        raise EvidenceError(
            f"the artifact was drawn onto {len(have)} images only",
            f"at least {MIN_IMAGES} are needed",
            {"n": len(have)},
        )
    mean, sd = x.astype(np.float64).mean(0), x.astype(np.float64).std(0) + 1e-8
    u = (x - mean) / sd
    pairs = np.concatenate([u[have], (drawn[have] - mean) / sd])
    present = np.repeat([0, 1], len(have))
    both = np.concatenate([groups[have], groups[have]])
    with threadpool_limits(1, "blas"):
        weight, intercept = fit_encoder(pairs, present)
        found = out_of_fold_scores(pairs, present, both, seed=seed)
    low, high = auroc_interval(present, found, both, seed=seed)
    if not low > 0.5:
        raise EvidenceError(
            "images with and without the drawn artifact are not told apart: AUROC "
            f"{auroc(present, found):.2f} [{low:.2f}, {high:.2f}] of {len(have)} images",
            "teach the concept with labels",
            {"auroc": auroc(present, found), "auroc_ci": [low, high], "n": len(have)},
        )
    score = u @ weight + intercept
    score[have] = found[: len(have)]
    return score
