"""A head behind an edit of its embeddings, and the concept latent as a method of suppression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from dermaudit.heads import LinearHead, probe_score
from dermaudit.sae import LatentSuppressor
from dermaudit.sae.concept_latents.latent import ConceptLatent

from .cross_fit import Fold


@dataclass(frozen=True)
class EditedHead:
    """`head` on rows that `edit` changes first: (n, d) → (n, d)."""

    head: LinearHead
    edit: Callable[[np.ndarray], np.ndarray]

    def score(self, x: np.ndarray) -> np.ndarray:
        """Return the logit (n,) of edited rows x (n, d)."""
        return probe_score(self.head, self.edit(x))

    def unchanged(self, x: np.ndarray) -> np.ndarray:
        """Return which rows (n,) the edit leaves bit for bit."""
        return (self.edit(x) == x).all(1)


def latent_edit(
    latent: ConceptLatent, mode: str = "subtract", level: float | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the edit of float32 rows (n, d) by a concept latent; changed rows keep their length."""
    module = LatentSuppressor(latent.as_sae(), [0], mode=mode, level=level)
    return lambda x: module.apply_to(torch.from_numpy(np.ascontiguousarray(x))).x.numpy()


def codes_of(latent: ConceptLatent, x: np.ndarray) -> np.ndarray:
    """Return the codes (n,) of rows x (n, d)."""
    return latent.as_sae().encode(torch.from_numpy(np.ascontiguousarray(x)))[:, 0].numpy()


def fit_latent(fold: Fold, rows: np.ndarray | None = None) -> ConceptLatent:
    """Fit a concept latent on training rows of the fold: by default all negatives (benign), so that its
    direction holds nothing of the target.
    """
    data = fold.data
    rows = fold.rows_of(0) if rows is None else rows
    present, absent = rows[data.a[rows] == 1], rows[data.a[rows] == 0]
    return ConceptLatent.fit(
        data.x[present],
        data.x[absent],
        groups_with=data.groups[present],
        groups_without=data.groups[absent],
        seed=data.seed,
    )


@dataclass(frozen=True)
class ConceptLatentMethod:
    """Suppress by one concept latent. `mean_preserving`: a code that fires is set to the mean of those that
    fire instead of 0, so that the mean of the training rows, and with it the share of positives, stays
    (before the rows are rescaled). `n_labels` images with and as many without the artifact are used: None, all.
    """

    name: str = "concept_latent"
    mean_preserving: bool = False
    n_labels: int | None = None

    def fit(self, fold: Fold) -> EditedHead:
        """Fit the latent on the negatives of the fold."""
        latent = self.latent(fold)
        if not self.mean_preserving:
            return EditedHead(fold.head, latent_edit(latent))
        z = codes_of(latent, fold.data.x[fold.train])
        return EditedHead(fold.head, latent_edit(latent, "mean", float(z[z > 0].mean())))

    def latent(self, fold: Fold) -> ConceptLatent:
        """Return the latent of the fold."""
        if self.n_labels is None:
            return fit_latent(fold)
        rows = fold.rows_of(0)
        generator = np.random.default_rng([fold.data.seed, fold.number, 3])
        kinds = [generator.permutation(rows[fold.data.a[rows] == kind]) for kind in (0, 1)]
        return fit_latent(fold, np.concatenate([kind[: self.n_labels] for kind in kinds]))


def random_latent_scores(
    fold: Fold, latent: ConceptLatent, generator: np.random.Generator
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the scores behind a random latent that fires as often on the training rows as `latent`, and
    changes the rows where it fires as much on average.
    """
    x = fold.data.x[fold.train]
    z = codes_of(latent, x)
    fires = z > 0
    sd = x.std(0) + 1e-8
    encoder = generator.standard_normal(x.shape[1]) / sd
    decoder = generator.standard_normal(x.shape[1]) * sd
    pre = x @ encoder
    threshold = float(np.quantile(pre, 1 - fires.mean()))
    level = float(pre[pre <= threshold].mean())
    size = z[fires].mean() / (pre[pre > threshold] - level).mean()
    control = replace(
        latent,
        encoder=encoder * size,
        bias=-level * size,
        threshold=(threshold - level) * size,
        decoder=decoder / np.linalg.norm(decoder),
    )
    return EditedHead(fold.head, latent_edit(control)).score
