"""Monosemanticity: the similarity of the images on which a latent is active (arXiv 2504.02821).

With ã = (a − min a) / (max a − min a) over the images, and unit image embeddings e of an independent
encoder: MS = Σ_{i<j} ã_i ã_j cos(e_i, e_j) / Σ_{i<j} ã_i ã_j. Over pairs it costs N² d; sums of one
pass give exactly the same: MS = (‖v‖² − s₂) / (s₁² − s₂) with v = Σ ã e, s₁ = Σ ã, s₂ = Σ ã².
min and max need not be known beforehand: Σa, Σa², Σa·e and Σe give v, s₁, s₂ afterwards.

Chance is exact too. Shuffling the images of a latent keeps the denominator, and all pairs are equally
likely, so the expected MS is the mean cosine of all pairs. For dermoscopic images, which are all similar,
it is .7 and more, so the result is the difference from it (lift).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.errors import UserInputError

from .figure import bootstrap_weights, figure, json_number

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

WINSOR = 0.999
_TINY = 1e-10  # of s₁²: with less there is only one active image and no pair


def unit_rows(embeddings: Shaped[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Return rows (n, d) scaled to unit length, float64. UserInputError for a zero or not finite row."""
    e = np.asarray(embeddings, dtype=np.float64)
    norm = np.linalg.norm(e, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norm) & (norm > 0)))
    if len(bad):
        raise UserInputError(
            f"the embedding of image {bad[0]} is zero or not finite ({len(bad)} of {len(e)} are)",
            "leave those images out, or embed them again",
        )
    return e / norm[:, None]


class Monosemanticity:
    """The float64 sums of one pass, (d_sae · d_e) numbers; chunks are added in any order and size."""

    def __init__(self, d_sae: int, d_e: int) -> None:
        self.n = 0
        self._a = np.zeros(d_sae)
        self._a2 = np.zeros(d_sae)
        self._ae = np.zeros((d_sae, d_e))
        self._e = np.zeros(d_e)
        self._min = np.full(d_sae, np.inf)
        self._max = np.full(d_sae, -np.inf)
        self._at_min = np.zeros(d_sae, dtype=np.int64)  # images whose code is the minimum

    def add(self, codes: Any, embeddings: np.ndarray) -> None:
        """Add codes (b, d_sae), sparse or dense, of any sign, and embeddings (b, d_e) of any length."""
        e = unit_rows(embeddings)
        n, h = codes.shape
        if n != len(e) or h != len(self._a):
            raise UserInputError(
                f"codes of shape {codes.shape} do not match {len(e)} embeddings and {len(self._a)} latents"
            )
        if not n:
            return
        if isinstance(codes, np.ndarray):
            a = codes.astype(np.float64)
            low, high, total, squares = a.min(0), a.max(0), a.sum(0), (a**2).sum(0)
            at_min = (a == low).sum(0)
        else:
            a = codes.tocsr().astype(np.float64)
            low, high = a.min(0).toarray().ravel(), a.max(0).toarray().ravel()
            total = np.asarray(a.sum(0)).ravel()
            squares = np.bincount(a.indices, a.data**2, minlength=h)
            stored = np.bincount(a.indices[a.data == low[a.indices]], minlength=h)
            at_min = stored + np.where(low == 0, n - a.getnnz(axis=0), 0)
        self.n += n
        self._a += total
        self._a2 += squares
        self._ae += a.T @ e
        self._e += e.sum(0)
        kept = np.where(self._min <= low, self._at_min, 0)
        self._at_min = kept + np.where(low <= self._min, at_min, 0)
        self._min = np.minimum(self._min, low)
        self._max = np.maximum(self._max, high)

    def scores(self) -> np.ndarray:
        """Return the MS of each latent (d_sae,) in [-1, 1].

        It is nan if fewer than two images are above the minimum, or all are equal.
        """
        low = np.where(np.isfinite(self._min), self._min, 0.0)
        span = np.where(self._max > low, self._max - low, np.nan)
        s1 = (self._a - self.n * low) / span
        s2 = (self._a2 - 2 * low * self._a + self.n * low**2) / span**2
        v = (self._ae - low[:, None] * self._e) / span[:, None]
        # Rounding can leave a weight if a single image is above the minimum, so images are counted.
        return np.where(self.n - self._at_min < 2, np.nan, _ratio((v**2).sum(1), s1, s2))

    def chance(self) -> float:
        """Return the mean cosine of all pairs of images; nan for fewer than two."""
        pairs = self.n * (self.n - 1)
        return float(((self._e**2).sum() - self.n) / pairs) if pairs else float("nan")


def _ratio(v2: np.ndarray, s1: np.ndarray, s2: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = s1**2 - s2
        return np.where(weight > _TINY * s1**2, (v2 - s2) / weight, np.nan)


def monosemanticity_report(
    codes: Any,
    embeddings: np.ndarray,
    *,
    same_model: bool,
    n_shuffles: int = 20,
    n_draws: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the MS of latents and its chance level, from codes csr (n, d_sae) ≥ 0 and embeddings (n, d_e).

    Give one image of each group: images of one patient are alike whatever the latent. `same_model` records
    that the embeddings are those of the model on which the SAE was fitted, which is circular.

    Figures: `mean` (interval by bootstrap over images, control: chance), `lift` (control: random directions
    through the embeddings), `above` (fraction of latents above all of `n_shuffles` shuffled copies),
    `winsor` (the mean with activations cut at their 99.9 % quantile, because MS depends on the maximum).
    `per_latent` {ms, lift, winsor} has None for latents that are active at most once.
    """
    from scipy.sparse import csr_matrix

    e = unit_rows(embeddings)
    a: Any = csr_matrix(codes).astype(np.float64)
    ms, chance = _scores(a, e)
    winsor, _ = _scores(_winsorised(a), e)
    rng = np.random.default_rng([seed, 2])
    highest = np.full(len(ms), -np.inf)
    for _ in range(n_shuffles):
        highest = np.fmax(highest, _scores(a, e[rng.permutation(len(e))])[0])
    defined = np.isfinite(ms)
    n, n_latents = a.shape[0], int(defined.sum())
    mean = float(ms[defined].mean()) if n_latents else float("nan")
    above = float((ms > highest)[defined].mean()) if n_latents and n_shuffles else float("nan")
    means, chances = _resampled(a, e, n_draws, seed)
    by_chance = {"control": chance, "control_is": "mean cosine of all pairs"}
    return {
        "mean": figure(mean, n, _interval(means), **by_chance),
        "lift": figure(
            mean - chance,
            n,
            _interval(means - chances),
            control=_random_directions(e, rng) - chance,
            control_is="random directions",
        ),
        "above": figure(above, n, control=1 / (n_shuffles + 1), control_is="by chance"),
        "winsor": figure(
            float(winsor[np.isfinite(winsor)].mean()) if n_latents else None, n, **by_chance
        ),
        "n_latents": n_latents,
        "same_model": same_model,
        "per_latent": {
            "ms": [json_number(value) for value in ms],
            "lift": [json_number(value) for value in ms - chance],
            "winsor": [json_number(value) for value in winsor],
        },
    }


def _scores(codes: Any, embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (MS of each latent, chance)."""
    sums = Monosemanticity(codes.shape[1], embeddings.shape[1])
    sums.add(codes, embeddings)
    return sums.scores(), sums.chance()


def _winsorised(a: Any) -> Any:
    """Return activations cut at the 99.9 % quantile of the non-zero activations of their latent.

    Over all images, the quantile of a rare latent would be zero.
    """
    columns = a.tocsc(copy=True)
    for start, stop in zip(columns.indptr[:-1], columns.indptr[1:], strict=True):
        if stop - start > 1:
            active = columns.data[start:stop]
            np.minimum(active, np.quantile(active, WINSOR), out=active)
    return columns.tocsr()


def _resampled(a: Any, e: np.ndarray, n_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean MS, mean cosine of all pairs) in each bootstrap draw over images.

    An image that is drawn twice forms no pair with itself. Activations are scaled by the minimum and
    maximum of all images, as in the figure.
    """
    low, high = a.min(0).toarray().ravel(), a.max(0).toarray().ravel()
    span = np.where(high > low, high - low, np.nan)
    columns = a.T.tocsr()
    squared = columns.copy()
    squared.data **= 2
    means, chances = [], []
    for weight in bootstrap_weights(len(e), n_draws, seed):
        twice = weight**2
        v = (columns @ (weight[:, None] * e) - low[:, None] * (weight @ e)) / span[:, None]
        s1 = (columns @ weight - low * weight.sum()) / span
        s2 = (squared @ twice - 2 * low * (columns @ twice) + low**2 * twice.sum()) / span**2
        ms = _ratio((v**2).sum(1), s1, s2)
        means.append(np.nanmean(ms) if np.isfinite(ms).any() else np.nan)
        pairs = weight.sum() ** 2 - twice.sum()
        chances.append((((weight @ e) ** 2).sum() - twice.sum()) / pairs if pairs else np.nan)
    return np.array(means), np.array(chances)


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    from dermaudit.stats.intervals import percentile_interval

    return percentile_interval(values) if len(values) else None


def _random_directions(e: np.ndarray, rng: np.random.Generator, count: int = 64) -> float:
    """Return the mean MS of projections of the centred embeddings on random directions."""
    directions = rng.normal(size=(e.shape[1], count))
    scores, _ = _scores(np.maximum((e - e.mean(0)) @ directions, 0.0), e)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")
