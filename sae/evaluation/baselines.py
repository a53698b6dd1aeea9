"""What a dictionary is measured between: oracles above, and what knows nothing of sparsity below.

Each gives codes (n, m) ≥ 0 that go through the same protocol as the SAE's (truth.py). Floors are
fitted on the train rows; a signed component becomes two latents, one for each sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.heads import fit_probe, probe_score

from .stability import unit
from .truth import truth_report

FLOORS = ("pca", "ica", "k-means", "random directions")
_FIT_ROWS = 20_000  # at most: PCA, ICA and k-means gain nothing from more
_SHOWN = ("matched_f1", "one_to_one_f1", "mcc", "splitting", "distinct", "absorption")


def oracle_codes(
    x: np.ndarray, dictionary: np.ndarray, *, bias: np.ndarray, active: int, method: str = "omp"
) -> Any:
    """Codes csr (n, m) of rows x (n, d) by the true dictionary (m, d): the most that an SAE can find.

    `omp`: orthogonal matching pursuit with `active` atoms, negative ones dropped. `nnls`: non-negative
    least squares, one row at a time (slow), which needs no number of atoms.
    """
    from scipy.optimize import nnls
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import orthogonal_mp

    atoms = unit(dictionary).astype(np.float64)
    rows = np.asarray(x, dtype=np.float64) - bias
    with threadpool_limits(1, "blas"):
        if method == "omp":
            code = orthogonal_mp(atoms.T, rows.T, n_nonzero_coefs=min(active, len(atoms)))
            return csr_matrix(np.maximum(code.reshape(len(atoms), -1).T, 0.0))
        if method == "nnls":
            return csr_matrix(np.stack([nnls(atoms.T, row)[0] for row in rows]))
    raise UserInputError(f"unknown oracle '{method}'", "known: omp, nnls")


def probe_codes(
    train: np.ndarray, truth: np.ndarray, groups: Sequence[object], x: np.ndarray, seed: int = 0
) -> Any:
    """Where no dictionary is known: a supervised linear probe of each factor, fitted on train rows
    (m, d) with truth (m, factors) of 1, 0, nan: what the rows hold linearly. csr (n, factors); a
    factor with too little to fit stays empty."""
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
    """{one of `FLOORS`: codes csr (n, ≤ n_latents)} of rows x (n, d),
    fitted on train rows (m, d), with as many latents as the SAE where the method has that many."""
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
        # A floor that has not quite converged is a floor.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found["pca"] = _both_signs(PCA(components, random_state=seed).fit(train).transform(x))
        ica = FastICA(components, random_state=seed, whiten="unit-variance", max_iter=200)
        found["ica"] = _both_signs(ica.fit(train).transform(x))
        far = KMeans(clusters, n_init=1, random_state=seed).fit(train).transform(x)
    # How much nearer than the average cluster: sparse, graded (Coates et al., AISTATS 2011).
    found["k-means"] = np.maximum(far.mean(1, keepdims=True) - far, 0.0)
    directions = unit(rng.normal(size=(n_latents, d)))
    found["random directions"] = np.maximum((x - train.mean(0)) @ directions.T, 0.0)
    return {name: csr_matrix(codes) for name, codes in found.items()}


def truth_ladder(
    codes: Any,
    truth: np.ndarray,
    groups: Sequence[object],
    ways: dict[str, Any],
    *,
    n_draws: int = 200,
    seed: int = 0,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """`truth_report` of the SAE (whole) and of every other way of making codes (its figures only), on
    the same halves: {"SAE": …, way: …}. `options` go to `truth_report`, the decoder to the SAE alone."""
    whole = truth_report(codes, truth, groups, n_draws=n_draws, seed=seed, **options)
    others = {k: v for k, v in options.items() if k not in ("W_dec", "dictionary")}
    found = {"SAE": whole}
    for name, other in ways.items():
        report = truth_report(other, truth, groups, n_draws=n_draws, seed=seed, **others)
        found[name] = {key: report[key] for key in _SHOWN if key in report}
    return found


def _both_signs(signed: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(signed, 0.0), np.maximum(-signed, 0.0)], axis=1)
