"""Scores of words for latents, and their null distribution.

s(n, t) = Σ_i w_in z_it, w_in = a_in / Σ_i a_in, z_it = the text score of word t on image i, centred and scaled over
images (the centring takes off the frequency bias of hub words). The null permutes a latent's activations over images,
which keeps its frequency; the p-value is of the maximum over words (max-T), then Benjamini–Hochberg over latents.
Permuted scores of a latent have the standard deviation (Σ_i w_in²)^½, so that in units of it latents with a like one
share a null: where there are many latents, each has fewer permutations of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from .methods.registry import UNNAMED, Names, NamingEvidence

NOTHING_SEEN = "a word that names nothing in these images scores best"

N_PERMUTATIONS = 200
#: With more latents than this a few permutations do: each latent is compared with those of its neighbours too.
MANY = 1024
NEIGHBOURS = 2  # on each side, in the order of the spread of their scores
MIN_ACTIVE = 10
ALPHA = 0.05
RIVALS = 5


@dataclass(frozen=True)
class WordScores:
    """Scores (h, words) of all latents, and what they are worth: `p` and `q` (h,) of the best word, q nan for latents
    that are not `alive` (h,).
    """

    scores: np.ndarray
    n_active: np.ndarray
    alive: np.ndarray
    p: np.ndarray
    q: np.ndarray
    named_under_permutation: int

    def without_evidence(self, latent: int) -> str | None:
        """Return why nothing can be said of a latent; None if its best word beats its null."""
        if not self.alive[latent]:
            n = self.n_active[latent]
            return "dead" if n == 0 else f"fires on {n} images only"
        return "no word beats its null" if self.q[latent] > ALPHA else None


def standard_text_scores(evidence: NamingEvidence) -> np.ndarray:
    """Return the text scores (n, words) of the images, centred and scaled over them."""
    scores = evidence.pooled.astype(np.float64) @ evidence.words.T
    spread = scores.std(0)
    return (scores - scores.mean(0)) / np.where(spread > 0, spread, 1.0)


def enough_images(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of images (h,) in which each latent is active, and whether they are enough for a name."""
    active = (codes > 0).sum(0)
    return active, active >= min(MIN_ACTIVE, max(2, len(codes) // 50))


def word_scores(evidence: NamingEvidence) -> WordScores:
    """Score all words for all latents, and compare the best with its permutation null."""
    from scipy.sparse import csr_matrix

    codes = evidence.codes
    n, h = codes.shape
    z = standard_text_scores(evidence)
    weights = csr_matrix(codes.astype(np.float64) / np.maximum(codes.sum(0), 1e-12)).T.tocsr()
    active, alive = enough_images(codes)
    observed = weights @ z
    generator = np.random.default_rng(evidence.seed)
    around = NEIGHBOURS if alive.sum() > MANY else 0
    null = np.stack(
        [
            (weights @ z[generator.permutation(n)]).max(1)
            for _ in range(N_PERMUTATIONS // (2 * around + 1))
        ]
    )
    spread = np.sqrt(np.asarray(weights.multiply(weights).sum(1)).ravel())
    p, q = np.ones(h), np.full(h, np.nan)
    p[alive] = p_values(observed.max(1)[alive], null[:, alive], spread[alive], around)
    q[alive] = benjamini_hochberg(p[alive])
    # The same rule for permuted activations: the first permutation is the data, the others are its null.
    permuted = p_values(null[0, alive], null[1:, alive], spread[alive], around)
    named = int((benjamini_hochberg(permuted) <= ALPHA).sum())
    return WordScores(observed, active, alive, p, q, named)


def unnamed(found: WordScores, evidence: NamingEvidence) -> Names:
    """Return the scores as names without a name; those that nothing can be said of have their reason."""
    h = len(found.scores)
    return Names(
        np.full(h, -1),
        np.where(found.alive, found.scores.max(1), np.nan),
        np.where(found.alive, found.p, np.nan),
        found.q,
        [rivals(found.scores[j], evidence) if found.alive[j] else "[]" for j in range(h)],
        [found.without_evidence(j) for j in range(h)],
        found.named_under_permutation,
        verdict=[UNNAMED] * h,
    )


def p_values(best: np.ndarray, null: np.ndarray, spread: np.ndarray, around: int) -> np.ndarray:
    """Return the p-value (h,) of each score `best` (h,) among its permuted ones `null` (k, h), and those of `around`
    latents on each side in the order of `spread` (h,), in units of it.
    """
    order = np.argsort(spread, kind="stable")
    units = np.maximum(spread[order], 1e-12)
    ordered = null[:, order] / units if around else null[:, order]
    data = best[order] / units if around else best[order]
    h, width = len(best), min(2 * around + 1, len(best))
    first = np.clip(np.arange(h) - around, 0, h - width)
    exceed = sum((ordered[:, first + step] >= data).sum(0) for step in range(width))
    found = np.empty(h)
    found[order] = (1 + exceed) / (1 + len(null) * width)
    return found


def rivals(scores: np.ndarray, evidence: NamingEvidence) -> str:
    """Return the best words of one latent with their scores (words,), as JSON."""
    vocabulary = evidence.vocabulary
    words = [c.id for c in vocabulary.concepts] + [f"({word})" for word in vocabulary.distractors]
    top = np.argsort(-scores, kind="stable")[:RIVALS]
    return json.dumps([[words[t], round(float(scores[t]), 4)] for t in top])


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values (q) of the Benjamini–Hochberg procedure."""
    m = len(p)
    if m == 0:
        return p.astype(float)
    order = np.argsort(p, kind="stable")
    ranked = p[order] * m / np.arange(1, m + 1)
    q = np.empty(m)
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return q
