"""Scores of words for latents, and their null distribution.

s(n, t) = Σ_i w_in z_it, w_in = a_in / Σ_i a_in, z_it = the text score of word t on image i, centred and scaled over
images (the centring takes off the frequency bias of hub words). The null permutes a latent's activations over images,
which keeps its frequency; the p-value is of the maximum over words (max-T), then Benjamini–Hochberg over latents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from .methods.registry import NamingEvidence

N_PERMUTATIONS = 200
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
    exceed, shuffled = np.zeros(h), np.zeros((N_PERMUTATIONS, h))
    best = observed.max(1)
    for draw in range(N_PERMUTATIONS):
        top = (weights @ z[generator.permutation(n)]).max(1)
        shuffled[draw] = top
        exceed += top >= best
    p = (1 + exceed) / (1 + N_PERMUTATIONS)
    q = np.full(h, np.nan)
    q[alive] = benjamini_hochberg(p[alive])
    return WordScores(observed, active, alive, p, q, _named_under_permutation(shuffled, alive))


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


def _named_under_permutation(shuffled: np.ndarray, alive: np.ndarray) -> int:
    """Return how many latents the same rule names for permuted activations: the first permutation is
    used as the data, the others as its null distribution.
    """
    p = (1 + (shuffled[1:] >= shuffled[0]).sum(0)) / len(shuffled)
    return int((benjamini_hochberg(p[alive]) <= ALPHA).sum()) if alive.any() else 0
