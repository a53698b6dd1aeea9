"""Synthetic rows whose dictionary is known, and codes by that dictionary.

x = Σ_j f_j D_j + b + noise. What makes real dictionaries hard can be switched on: atoms that overlap
(`coherence`), factors that come together (`correlation`), children that never come without their
parent (`children`), frequencies over orders of magnitude (`heavy_tail`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import ndtri
from sklearn.linear_model import orthogonal_mp


@dataclass(frozen=True)
class SyntheticRows:
    """x (n, d) float32; factors (n, m) ≥ 0, 0 where absent; dictionary (m, d) of unit atoms;
    groups (n,); hierarchy: (parent, child) pairs of factors; bias (d,)."""

    x: np.ndarray
    factors: np.ndarray
    dictionary: np.ndarray
    groups: np.ndarray
    hierarchy: tuple[tuple[int, int], ...]
    bias: np.ndarray


def synthetic_rows(
    n: int,
    *,
    d: int = 32,
    factors: int = 48,
    active: float = 4.0,
    coherence: float = 0.0,
    correlation: float = 0.0,
    children: int = 0,
    heavy_tail: float = 0.0,
    noise: float = 0.05,
    per_group: int = 1,
    seed: int = 0,
) -> SyntheticRows:
    """Draw `n` rows; dictionary, bias and frequencies do not depend on `seed`.

    `active`: mean number of factors in a row. `coherence` in [0, 1): the cosine between atoms.
    `correlation` in [0, 1): of the Gaussians behind factors of one block of six. `children`: how many
    of the last factors occur only with one of the first. `heavy_tail`: frequencies ∝ rank^(−heavy_tail).
    """
    fixed = np.random.default_rng([0, 10])
    atoms = fixed.normal(size=(factors, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    common = fixed.normal(size=d)
    common /= np.linalg.norm(common)
    dictionary = np.sqrt(1 - coherence) * atoms + np.sqrt(coherence) * common
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    bias = fixed.normal(size=d) / np.sqrt(d)
    rate = np.arange(1, factors + 1) ** -heavy_tail
    # Frequent factors come first, parents among them; none is present in more than half of the rows.
    rate = np.minimum(active * rate / rate.sum(), 0.5)

    rng = np.random.default_rng([seed, 11])
    block = rng.normal(size=(n, -(-factors // 6)))[:, np.arange(factors) // 6]
    latent = np.sqrt(correlation) * block + np.sqrt(1 - correlation) * rng.normal(size=(n, factors))
    present = latent > ndtri(1 - rate)
    hierarchy = tuple((i, factors - children + i) for i in range(children))
    for parent, child in hierarchy:
        present[:, child] = present[:, parent] & (rng.random(n) < 0.4)
    values = np.where(present, 0.5 + rng.random((n, factors)), 0.0)
    x = values @ dictionary + bias + noise * rng.normal(size=(n, d))
    return SyntheticRows(
        x.astype(np.float32), values, dictionary, np.arange(n) // per_group, hierarchy, bias
    )


def oracle_codes(data: SyntheticRows, active: int) -> csr_matrix:
    """Codes by the true dictionary (orthogonal matching pursuit): the most that an SAE can find."""
    atoms = data.dictionary.astype(np.float64)
    code = orthogonal_mp(atoms.T, (data.x - data.bias).T, n_nonzero_coefs=min(active, len(atoms)))
    return csr_matrix(np.maximum(code.reshape(len(atoms), -1).T, 0.0))
