"""Stability that shared first weights or shared images cannot raise.

Two consensus dictionaries are made of disjoint halves of the groups with disjoint seeds, and compared with each
other on images that neither has seen (arXiv 2505.20254 for the mean matched cosine; arXiv 2606.02061 for why
nothing may be shared). Only the latents of the consensus are compared: the residual ones claim nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dermaudit.errors import EvidenceError
from dermaudit.stats.intervals import percentile_interval

from .figure import figure
from .stability import CLOSE, SHARED, match, stability_report, unit

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..inference.model import ThresholdSAE

_DRAWS = 1000
_CHUNK = 8192  # rows that are encoded at a time


def first_latents(sae: ThresholdSAE) -> ThresholdSAE:
    """Return the SAE of the latents of the consensus alone; all of them in an SAE of one fit."""
    count = int(sae.metadata.get("consensus_latents", sae.d_sae))
    return replace(
        sae,
        W_enc=sae.W_enc[:, :count],
        W_dec=sae.W_dec[:count],
        b_enc=sae.b_enc[:count],
        threshold=sae.threshold[:count],
    )


def halves_report(
    sae: ThresholdSAE,
    halves: Sequence[ThresholdSAE],
    rows: Float[np.ndarray, "n d"],
    images: np.ndarray,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the dictionaries of two halves with each other, and that of the run with both.

    `rows` (n, d) are held-out, `images` (n,) say which image each is of; rows of an image are neighbours.

    Returns `pw_mcc`, `share_above_0.9`, `subspace` and `rank_correlation` of the two halves (figures with
    intervals over latents), and the figures of `stability_report` of the dictionary of the run against both, of
    which `per_latent` has None for residual latents. EvidenceError where one of them agrees on no direction.
    """
    named = [first_latents(one) for one in (sae, *halves)]
    for name, one in zip(("the run", "half 1", "half 2"), named, strict=True):
        if not one.d_sae:
            raise EvidenceError(f"the fits of {name} agree on no direction", None, {"latents": 0})
    found = stability_report(named, rows, names=["the run", "half 1", "half 2"], seed=seed)
    missing = [None] * (sae.d_sae - named[0].d_sae)
    for values in found["per_latent"].values():
        values += missing
    return {**between_halves(named[1], named[2], rows, images, seed=seed), **found}


def between_halves(
    one: ThresholdSAE,
    other: ThresholdSAE,
    rows: Float[np.ndarray, "n d"],
    images: np.ndarray,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how alike two dictionaries are; the smaller is matched one to one into the larger."""
    rng = np.random.default_rng([seed, 12])
    a, b = unit(one.W_dec.numpy()), unit(other.W_dec.numpy())
    cosine = a @ b.T
    pairs = match(cosine)
    matched = cosine[pairs]
    draws = rng.integers(0, len(matched), (_DRAWS, len(matched)))
    chance = _matched_by_chance(a, len(b), rng)
    near = matched >= SHARED
    correlations = rank_correlations(
        [_by_image(one, rows, images), _by_image(other, rows, images)],
        (pairs[0][near], pairs[1][near]),
    )
    known = correlations[np.isfinite(correlations)]
    return {
        "latents": [len(a), len(b)],
        "pw_mcc": figure(
            float(matched.mean()),
            len(matched),
            percentile_interval(matched[draws].mean(1)),
            control=float(chance.mean()),
            control_is="random unit vectors",
        ),
        "share_above_0.9": figure(
            float((matched > CLOSE).mean()),
            len(matched),
            percentile_interval((matched > CLOSE)[draws].mean(1)),
            control=float((chance > CLOSE).mean()),
            control_is="random unit vectors",
        ),
        "subspace": figure(
            _subspace(a, b),
            min(len(a), len(b)),
            control=_subspace(a, unit(rng.normal(size=b.shape))),
            control_is="random unit vectors",
        ),
        "rank_correlation": figure(
            float(known.mean()) if len(known) else None,
            len(known),
            percentile_interval(known[rng.integers(0, len(known), (_DRAWS, len(known)))].mean(1))
            if len(known) > 1
            else None,
        ),
    }


def _matched_by_chance(a: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    cosine = a @ unit(rng.normal(size=(count, a.shape[1]))).T
    return cosine[match(cosine)]


def _subspace(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean squared cosine of the principal angles between the spans of rows of a and b."""
    bases = []
    for rows in (a, b):
        _, values, basis = np.linalg.svd(rows, full_matrices=False)
        bases.append(basis[values > 1e-6 * values[0]])
    cosines = np.linalg.svd(bases[0] @ bases[1].T, compute_uv=False)
    return float(np.mean(cosines**2))


@torch.no_grad()
def _by_image(sae: ThresholdSAE, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the largest code of the rows of each image (n_images, d_sae)."""
    starts = np.flatnonzero(np.r_[True, images[1:] != images[:-1]])
    codes = torch.cat(
        [sae.encode(torch.from_numpy(rows[at : at + _CHUNK])) for at in range(0, len(rows), _CHUNK)]
    )
    return np.maximum.reduceat(codes.numpy(), starts, axis=0)


def rank_correlations(codes: list[np.ndarray], pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return Spearman's correlation over images of each pair of latents; nan for one that is constant."""
    from scipy.stats import rankdata

    ranks = [
        rankdata(table[:, columns], axis=0) for table, columns in zip(codes, pairs, strict=True)
    ]
    centred = [table - table.mean(0) for table in ranks]
    covariance = (centred[0] * centred[1]).sum(0)
    spread = np.sqrt((centred[0] ** 2).sum(0) * (centred[1] ** 2).sum(0))
    return np.divide(covariance, spread, out=np.full(len(spread), np.nan), where=spread > 0)
