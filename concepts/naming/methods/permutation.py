"""Names for latents: activation-weighted, centred, z-scored text scores against a permutation null.

s(n, t) = Σ_i w_in z_it, w_in = a_in / Σ_i a_in, z_it = the text score of word t on image i, centred
and scaled over images (the centring takes off the frequency bias of hub words). The null permutes a
latent's activations over images, which keeps its frequency; the p-value is of the maximum over words
(max-T), then Benjamini–Hochberg over latents. A latent that does not beat its null, fires on too few
images, or is won by a distractor word, stays unnamed.
"""

from __future__ import annotations

import json

import numpy as np

from ...vocabulary.vocabulary import Vocabulary
from .registry import Names, NamingMethod

N_PERMUTATIONS = 200
MIN_ACTIVE = 10
ALPHA = 0.05
RIVALS = 5


def name_latents(
    codes: np.ndarray,
    pooled: np.ndarray,
    vectors: np.ndarray,
    distractors: np.ndarray,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
) -> Names:
    """Name the latents whose best word beats the permutation null (see the module, and `Namer`)."""
    from scipy.sparse import csr_matrix

    n, d_sae = codes.shape
    scores = pooled.astype(np.float64) @ np.vstack([vectors, distractors]).T
    spread = scores.std(0)
    scores = (scores - scores.mean(0)) / np.where(spread > 0, spread, 1.0)
    weights = csr_matrix(codes.astype(np.float64) / np.maximum(codes.sum(0), 1e-12)).T.tocsr()
    active = (codes > 0).sum(0)
    alive = active >= min(MIN_ACTIVE, max(2, n // 50))
    observed = weights @ scores  # (d_sae, words)
    generator = np.random.default_rng(seed)
    exceed, shuffled = np.zeros(d_sae), np.zeros((N_PERMUTATIONS, d_sae))
    best = observed.max(1)
    for draw in range(N_PERMUTATIONS):
        top = (weights @ scores[generator.permutation(n)]).max(1)
        shuffled[draw] = top
        exceed += top >= best
    p = (1 + exceed) / (1 + N_PERMUTATIONS)
    q = np.full(d_sae, np.nan)
    q[alive] = benjamini_hochberg(p[alive])
    word = observed.argmax(1)
    c = len(vocabulary.concepts)
    reason: list[str | None] = [None] * d_sae
    for j in range(d_sae):
        if not alive[j]:
            reason[j] = "dead" if active[j] == 0 else f"fires on {active[j]} images only"
        elif q[j] > ALPHA:
            reason[j] = "no word beats its null"
        elif word[j] >= c:
            reason[j] = "a word that names nothing in these images scores best"
    named = np.array([r is None for r in reason])
    return Names(
        np.where(named, word, -1),
        np.where(alive, best, np.nan),
        np.where(alive, p, np.nan),
        q,
        [_rivals(observed[j], vocabulary) if alive[j] else "[]" for j in range(d_sae)],
        reason,
        _named_under_permutation(shuffled, alive),
    )


def _named_under_permutation(shuffled: np.ndarray, alive: np.ndarray) -> int:
    """Return how many latents the same rule names for permuted activations: the first permutation is
    used as the data, the others as its null distribution.
    """
    p = (1 + (shuffled[1:] >= shuffled[0]).sum(0)) / len(shuffled)
    return int((benjamini_hochberg(p[alive]) <= ALPHA).sum()) if alive.any() else 0


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


def _rivals(scores: np.ndarray, vocabulary: Vocabulary) -> str:
    concepts = vocabulary.concepts
    words = [c.id for c in concepts] + [f"({word})" for word in vocabulary.distractors]
    top = np.argsort(-scores, kind="stable")[:RIVALS]
    return json.dumps([[words[t], round(float(scores[t]), 4)] for t in top])


NAMER = NamingMethod("permutation", name_latents)
