"""Baselines for an SAE: linear probes as the upper bound, methods without sparsity as the lower bound.

Each gives codes (n, m) ≥ 0 that are evaluated like those of the SAE (truth.py). They are fitted on train
rows; a signed component becomes two latents, one for each sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score

from .stability import unit
from .truth import truth_report

FLOORS = ("pca", "ica", "k-means", "random directions")
_FIT_ROWS = 20_000  # at most: PCA, ICA and k-means do not improve with more
_SHOWN = ("matched_f1", "one_to_one_f1", "mcc", "splitting", "distinct", "absorption")


def probe_codes(
    train: np.ndarray,
    truth: np.ndarray,
    groups: Sequence[object] | np.ndarray,
    x: np.ndarray,
    seed: int = 0,
) -> Any:
    """Return the scores csr (n, factors) of a supervised linear probe of each factor.

    Fitted on train rows (m, d) with truth (m, factors) of 1, 0, nan. A factor with too few rows to fit
    stays empty.
    """
    from scipy.sparse import csr_matrix

    codes = np.zeros((len(x), truth.shape[1]))
    groups = np.asarray(groups)
    for j in range(truth.shape[1]):
        known = np.isfinite(truth[:, j])
        try:
            probe = fit_probe(train[known], truth[known, j], groups[known], seed=seed)
        except EvidenceError:
            continue
        codes[:, j] = 1 / (1 + np.exp(-probe_score(probe, x)))
    return csr_matrix(codes)


def floor_codes(train: np.ndarray, x: np.ndarray, n_latents: int, seed: int = 0) -> dict[str, Any]:
    """Return {name of `FLOORS`: codes csr (n, ≤ n_latents)} of rows x (n, d).

    Fitted on train rows (m, d), with as many latents as the SAE if the method has that many.
    """
    import warnings

    from scipy.sparse import csr_matrix
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA, FastICA
    from sklearn.exceptions import ConvergenceWarning

    rng = np.random.default_rng([seed, 5])
    train = np.asarray(train, dtype=np.float64)
    if len(train) > _FIT_ROWS:
        train = train[np.sort(rng.choice(len(train), _FIT_ROWS, replace=False))]
    x = np.asarray(x, dtype=np.float64)
    d = train.shape[1]
    components = max(1, min(n_latents // 2, d, len(train) - 1))
    clusters = max(2, min(n_latents, len(train) // 2))
    found: dict[str, Any] = {}
    with threadpool_limits(1), warnings.catch_warnings():
        # A lower bound need not converge completely.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found["pca"] = _both_signs(PCA(components, random_state=seed).fit(train).transform(x))
        ica = FastICA(components, random_state=seed, whiten="unit-variance", max_iter=200)
        found["ica"] = _both_signs(ica.fit(train).transform(x))
        kmeans = KMeans(clusters, n_init=1, random_state=seed)  # pyright: ignore[reportArgumentType]  # stub: str
        distance = kmeans.fit(train).transform(x)
    # How much nearer than the average cluster: sparse and graded (Coates et al., AISTATS 2011).
    found["k-means"] = np.maximum(distance.mean(1, keepdims=True) - distance, 0.0)
    directions = unit(rng.normal(size=(n_latents, d)))
    found["random directions"] = np.maximum((x - train.mean(0)) @ directions.T, 0.0)
    return {name: csr_matrix(codes) for name, codes in found.items()}


def truth_ladder(
    codes: Any,
    truth: np.ndarray,
    groups: Sequence[object] | np.ndarray,
    baselines: dict[str, Any],
    *,
    n_draws: int = 200,
    seed: int = 0,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Return {"SAE": `truth_report`, baseline: its figures only}, all on the same halves.

    `options` are arguments of `truth_report`.
    """
    found = {"SAE": truth_report(codes, truth, groups, n_draws=n_draws, seed=seed, **options)}
    for name, other in baselines.items():
        report = truth_report(other, truth, groups, n_draws=n_draws, seed=seed, **options)
        found[name] = {key: report[key] for key in _SHOWN if key in report}
    return found


def _both_signs(signed: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(signed, 0.0), np.maximum(-signed, 0.0)], axis=1)
