"""Directions that need no SAE: random ones, and those of scikit-learn's methods.

Each function takes rows x (n, d), the number of directions and a seed, and returns at most that many directions
of unit length. A signed component gives two, one for each sign.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from ..evaluation.stability import unit

FROZEN = "frozen random decoder"
_ROWS = 20_000  # at most: these methods do not improve with more
_ATOM_STEPS = 1000  # of dictionary learning


def random_directions(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return directions that know nothing of the rows."""
    return unit(np.random.default_rng([seed, 13]).normal(size=(count, x.shape[1])))


def pca(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the directions of the largest variance."""
    from sklearn.decomposition import PCA

    fitted = PCA(_components(x, count), random_state=seed).fit(x)
    return _both_signs(np.asarray(fitted.components_))


def ica(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the mixing directions of FastICA."""
    from sklearn.decomposition import FastICA

    fitted = FastICA(
        _components(x, count), random_state=seed, whiten="unit-variance", max_iter=400
    ).fit(x)
    return _both_signs(np.asarray(fitted.mixing_).T)


def k_means(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the centres of clusters, seen from the mean of all rows."""
    from sklearn.cluster import KMeans

    count = min(count, len(x))
    return unit(KMeans(count, n_init=1, random_state=seed).fit(x).cluster_centers_)  # pyright: ignore[reportArgumentType]  # stub: str


def dictionary_learning(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the atoms of MiniBatchDictionaryLearning with positive codes."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    fitted = MiniBatchDictionaryLearning(
        count,
        alpha=0.1 * float(np.sqrt((x**2).sum(1).mean())),  # pyright: ignore[reportArgumentType]  # stub: int
        batch_size=256,
        max_iter=max(1, _ATOM_STEPS * 256 // len(x)),
        positive_code=True,
        fit_algorithm="cd",
        random_state=seed,
    ).fit(x)
    atoms = fitted.components_
    return unit(atoms[np.linalg.norm(atoms, axis=1) > 0])


DICTIONARIES: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    FROZEN: random_directions,
    "PCA": pca,
    "ICA": ica,
    "k-means": k_means,
    "dictionary learning": dictionary_learning,
}


def directions_of(name: str, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the directions (≤ count, d) float32 of a method of `DICTIONARIES`, fitted on rows (n, d) without
    their mean.
    """
    from sklearn.exceptions import ConvergenceWarning

    rng = np.random.default_rng([seed, 14])
    if len(rows) > _ROWS:
        rows = rows[np.sort(rng.choice(len(rows), _ROWS, replace=False))]
    x = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a control need not converge completely
        return DICTIONARIES[name](x, count, seed).astype(np.float32)


def _components(x: np.ndarray, count: int) -> int:
    return max(1, min(count // 2, *x.shape))


def _both_signs(signed: np.ndarray) -> np.ndarray:
    return unit(np.concatenate([signed, -signed]))
