"""Rows whose dictionary is known, for tests and for trying a recipe before spending it on real data.

x = Σ_j f_j D_j + b + noise. What makes real dictionaries hard can be switched on: atoms that overlap
(`coherence`), factors that come together (`correlation`), children that never come without their
parent (`children`), frequencies over orders of magnitude (`heavy_tail`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dermaudit.errors import UserInputError


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
    dictionary_seed: int = 0,
    seed: int = 0,
) -> SyntheticRows:
    """Draw `n` rows; the dictionary, bias and frequencies depend on `dictionary_seed` alone.

    `active`: mean number of factors a row (before `children` are held to their parents).
    `coherence` in [0, 1): the cosine to which random atoms are drawn together. `correlation` in
    [0, 1): of the Gaussians behind factors of one block of six. `children`: how many pairs; the last
    factors are children of the first ones. `heavy_tail`: frequencies ∝ rank^(−heavy_tail).
    Errors: UserInputError for values outside.
    """
    for name, value in (("coherence", coherence), ("correlation", correlation)):
        if not 0 <= value < 1:
            raise UserInputError(f"{name} {value} is not in [0, 1)")
    if not 0 < active < factors or not 0 <= 2 * children <= factors:
        raise UserInputError(
            f"{active:g} active and {children} children do not go with {factors} factors",
            "fewer than all may be active, and at most half of them children",
        )
    from scipy.special import ndtri

    fixed = np.random.default_rng([dictionary_seed, 10])
    atoms = fixed.normal(size=(factors, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    common = fixed.normal(size=d)
    common /= np.linalg.norm(common)
    dictionary = np.sqrt(1 - coherence) * atoms + np.sqrt(coherence) * common
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    bias = fixed.normal(size=d) / np.sqrt(d)
    rate = np.arange(1, factors + 1) ** -heavy_tail
    # Common factors come first, parents among them; none is there more than half of the time.
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
