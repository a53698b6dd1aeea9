"""Directions that many fits of one SAE agree on.

Each fit has its own first weights, and finds some directions that the data determine and some that it does
not. Clusters of decoder directions over the fits, as in consensus NMF (doi:10.7554/eLife.43803), separate
the two. A cluster has at most one latent of each fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.stability import match, unit

if TYPE_CHECKING:
    from jaxtyping import Float

JOIN = 0.7  # cosine from which a latent belongs to a cluster
#: Agreement from which a cluster is kept, at sites with one row for each image and with several (docs/labbook.md).
KEEP, KEEP_TOKENS = 0.8, 0.7
_SAME = 0.9  # cosine from which two clusters are one
_ROUNDS = 10  # at most, in which a centre moves


@dataclass(frozen=True)
class Consensus:
    """Directions (c, d) of unit length, in descending order of `agreement` (c,): the mean over the fits of the
    cosine with the latent that a one-to-one matching gives it. `share` (c,) is the fraction of the fits in which
    that latent is within JOIN.
    """

    directions: np.ndarray
    agreement: np.ndarray
    share: np.ndarray

    def __len__(self) -> int:
        return len(self.directions)


def consensus(
    decoders: Sequence[Float[np.ndarray, "h d"]], *, keep: float = KEEP, method: str = "density"
) -> Consensus:
    """Cluster the decoders of several fits, and keep the clusters with an agreement of at least `keep`.

    `method` is a name of `METHODS`: density (the latent with the best agreement first), linkage (average
    linkage), or tracks (Hungarian matching to running means).
    """
    sets = [unit(decoder) for decoder in decoders]
    centres = METHODS[method](sets, keep)
    if not len(centres):
        return Consensus(np.empty((0, sets[0].shape[1]), np.float32), np.empty(0), np.empty(0))
    matched = np.zeros((len(centres), len(sets)))
    for i, one in enumerate(sets):
        cosine = centres @ one.T
        rows, columns = match(cosine)
        matched[rows, i] = np.clip(cosine[rows, columns], 0, None)
    agreement = matched.mean(1)
    order = np.argsort(-agreement, kind="stable")
    order = order[agreement[order] >= keep]
    kept: list[int] = []
    for i in order:
        if not kept or (centres[kept] @ centres[i]).max() < _SAME:
            kept.append(int(i))
    share = (matched[kept] >= JOIN).mean(1)
    return Consensus(centres[kept].astype(np.float32), agreement[kept], share)


def by_density(sets: list[np.ndarray], keep: float) -> np.ndarray:
    """Return centres (c, d): the latent whose nearest neighbours in the other fits are nearest begins.

    Its cluster takes the nearest free latent of each fit within JOIN of the mean, until the mean stays.
    """
    latents = np.concatenate(sets)
    spans = [
        slice(lo, hi) for lo, hi in itertools.pairwise(np.cumsum([0, *map(len, sets)]).tolist())
    ]
    cosine = np.clip(latents @ latents.T, 0, None)
    free = np.ones(len(latents), bool)
    # The nearest free latent of each fit, and its cosine: (latents, fits).
    nearest = np.stack([span.start + cosine[:, span].argmax(1) for span in spans], axis=1)
    value = np.take_along_axis(cosine, nearest, axis=1)
    centres = []
    while free.any():
        agreement = value.mean(1)
        first = int(np.argmax(np.where(free, agreement, -1)))
        if agreement[first] < keep - (1 - JOIN) / 2:  # its mean with others can agree better
            break
        centre, members = latents[first], [first]
        for _ in range(_ROUNDS):
            near = np.where(free, latents @ centre, -1)
            members = [span.start + int(near[span].argmax()) for span in spans]
            members = [i for i in members if near[i] >= JOIN]
            if not members:
                break
            moved = unit(latents[members].mean(0)[None])[0]
            if np.allclose(moved, centre):
                break
            centre = moved
        centres.append(centre)
        taken = np.array([first, *members])
        free[taken] = False
        for i, span in enumerate(spans):
            lost = np.flatnonzero(np.isin(nearest[:, i], taken) & free)
            if len(lost):
                visible = np.where(free[span], cosine[lost, span], 0)
                nearest[lost, i] = span.start + visible.argmax(1)
                value[lost, i] = visible.max(1)
    return np.array(centres).reshape(-1, latents.shape[1])


def by_linkage(sets: list[np.ndarray], keep: float) -> np.ndarray:
    """Return centres (c, d) of average linkage, cut where the mean cosine in a cluster is JOIN."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    latents = np.concatenate(sets)
    distance = np.clip(1 - latents @ latents.T, 0, None)
    np.fill_diagonal(distance, 0)
    labels = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - JOIN, "distance")
    return unit(np.stack([latents[labels == label].mean(0) for label in np.unique(labels)]))


def by_tracks(sets: list[np.ndarray], keep: float) -> np.ndarray:
    """Return centres (≤ h, d) that begin at the latents of the first fit: each round matches every fit to them
    one to one, and they become the means of what lies within JOIN.
    """
    centres = sets[0]
    for _ in range(_ROUNDS):
        sums = np.zeros_like(centres)
        for one in sets:
            cosine = centres @ one.T
            rows, columns = match(cosine)
            near = cosine[rows, columns] >= JOIN
            sums[rows[near]] += one[columns[near]]
        moved = np.where(np.any(sums, axis=1, keepdims=True), unit(sums), centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres


METHODS: dict[str, Callable[[list[np.ndarray], float], np.ndarray]] = {
    "density": by_density,
    "linkage": by_linkage,
    "tracks": by_tracks,
}
