"""Near-duplicates across two image sets, or within one, for millions of rows.

Two criteria: the top-1 cosine of image embeddings (DermFM-Zero's leak check uses SSCD at .75,
arXiv 2602.10624), and the perceptual hash (hashes.py). How similar unrelated images are depends on the
model and on their number, so the threshold is a quantile of the top-1 cosine of images with those of
*other groups* of the same set.

A small CLIP is no copy detector: it finds copies at half size and as JPEG, but few that are mirrored,
rotated or cropped; the hash finds all except crops (tests/benchmarks/bench_dedup.py). For crops, give
the embeddings of a copy detector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dermaudit.console import track
from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.intervals import GroupBootstrap

from .hashes import MAX_DISTANCE, nearest_hash

#: rows of a tile of the product: its 16 MB stay in the cache, and one core keeps its full rate.
_QUERY, _BASE = 1024, 4096
#: images whose top-1 among unrelated images is computed; enough for a quantile of .999.
N_NULL = 5000
#: this many unrelated images must be expected above the threshold for it to be estimated.
_MIN_ABOVE = 5
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Return rows of (n, d) as float32 of length 1. Errors: UserInputError for a zero or infinite row."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        row = int(np.flatnonzero(~np.isfinite(length[:, 0]) | (length[:, 0] == 0))[0])
        raise UserInputError(
            f"embedding row {row} is zero or not finite", "remove it, or make the embeddings again"
        )
    return x / length


def top1(
    query: np.ndarray,
    base: np.ndarray,
    query_groups: np.ndarray | None = None,
    base_groups: np.ndarray | None = None,
    what: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest base row of each query row by cosine: (row int64, cosine float32), both (n_query,).

    `query` (n, d) and `base` (m, d) have any float type and may be memory-mapped; they are normalised a
    block at a time. With groups (integers), base rows of the query's own group do not count (with row
    numbers as groups, only the row itself). -1 and -inf if nothing is left. `what`: name of the progress
    bar, none without.
    """
    if query.ndim != 2 or base.ndim != 2 or query.shape[1] != base.shape[1]:
        raise UserInputError(
            f"embeddings of shapes {query.shape} and {base.shape} cannot be compared",
            "both sides need the same model",
        )
    best = np.full(len(query), -1, dtype=np.int64)
    cosine = np.full(len(query), -np.inf, dtype=np.float32)
    queries = unit_rows(query)
    tile = np.empty((_QUERY, _BASE), dtype=np.float32)
    starts = range(0, len(base), _BASE)
    for start in track(starts, what) if what else starts:
        block = unit_rows(base[start : start + _BASE])
        for first in range(0, len(queries), _QUERY):
            rows = slice(first, min(first + _QUERY, len(queries)))
            here = tile[: rows.stop - first, : len(block)]
            np.matmul(queries[rows], block.T, out=here)
            if query_groups is not None and base_groups is not None:
                own = query_groups[rows, None] == base_groups[None, start : start + len(block)]
                np.putmask(here, own, -np.inf)
            nearest = here.argmax(axis=1)
            value = here[np.arange(len(here)), nearest]
            better = value > cosine[rows]
            best[rows][better] = start + nearest[better]
            cosine[rows][better] = value[better]
    return best, cosine


class Calibration(NamedTuple):
    """The top-1 cosine of `n` unrelated images.

    `quantiles` of it, and the `threshold` that the share `false_share` of them passes.
    """

    n: int
    quantiles: dict[str, float]
    threshold: float
    false_share: float


def calibrate(
    base: np.ndarray, groups: np.ndarray, false_share: float = 0.01, seed: int = 0
) -> Calibration:
    """Return the threshold of a set from its own unrelated images; `groups` integers (n,).

    Each of up to `N_NULL` images is compared with all images of other groups. Duplicates in two groups raise
    the threshold; if they are more than `false_share`, find them first (`data dedup A`). Errors:
    EvidenceError when fewer than 5 images are expected above the threshold.
    """
    n = min(len(base), N_NULL)
    require_evidence(n, len(np.unique(groups)), false_share)
    rows = np.sort(np.random.default_rng(seed).permutation(len(base))[:n])
    _, cosine = top1(base[rows], base, groups[rows], groups, what="unrelated images")
    quantiles = {f"{q:g}": float(np.quantile(cosine, q)) for q in QUANTILES}
    return Calibration(n, quantiles, float(np.quantile(cosine, 1 - false_share)), false_share)


def require_evidence(n: int, n_groups: int, false_share: float) -> None:
    """Errors: EvidenceError when n images are too few for a threshold that `false_share` passes."""
    need = math.ceil(_MIN_ABOVE / false_share)
    if min(n, N_NULL) < need or n_groups < 2:
        raise EvidenceError(
            f"{n} images in {n_groups} groups say too little about how near unrelated images come: "
            f"{need} are needed for a false share of {false_share:g}",
            "give --threshold, a larger --false-share, or --by hash",
            {"n": n, "needed": need, "n_groups": n_groups},
        )


class Features(NamedTuple):
    """Features of n images that are compared; None where they were not computed.

    Embeddings (n, d), packed hashes (n, 4), and hashes of each image mirrored and rotated (n, 7, 4).
    """

    embeddings: np.ndarray | None = None
    hashes: np.ndarray | None = None
    turned: np.ndarray | None = None

    def orientations(self) -> np.ndarray | None:
        """Return all hashes of each image, (n, 1 or 8, 4), or None without hashes."""
        if self.hashes is None:
            return None
        upright = self.hashes[:, None]
        return upright if self.turned is None else np.concatenate([upright, self.turned], axis=1)


class Pairs(NamedTuple):
    """Suspected duplicates, arrays of equal length: rows of A and of B, and their similarity.

    `cosine` is nan without embeddings, `bits` (that differ) -1 without hashes; `by_cosine` and `by_hash` say
    which criterion found the pair.
    """

    a: np.ndarray
    b: np.ndarray
    cosine: np.ndarray
    bits: np.ndarray
    by_cosine: np.ndarray
    by_hash: np.ndarray


def find_pairs(
    a: Features, b: Features | None, threshold: float, max_bits: int = MAX_DISTANCE
) -> Pairs:
    """Return each row of B with its nearest row of A by cosine or hash, if it is near enough.

    `b` None: within `a`, each pair once with the smaller row as A. If B has `turned` hashes, mirrored
    and rotated copies are found too. The nearest pairs come first: by bits, then by cosine.
    """
    within = b is None
    b = a if b is None else b
    found: list[tuple[np.ndarray, np.ndarray]] = []
    if a.embeddings is not None and b.embeddings is not None:
        own = (
            (np.arange(len(b.embeddings)), np.arange(len(a.embeddings))) if within else (None, None)
        )
        row, nearest = top1(b.embeddings, a.embeddings, *own, what="comparing embeddings")
        near = np.flatnonzero(nearest >= threshold)
        found.append((row[near], near))
    orientations = b.orientations()
    if a.hashes is not None and orientations is not None:
        row = _nearest_orientation(a.hashes, orientations, max_bits, within)
        near = np.flatnonzero(row >= 0)
        found.append((row[near], near))
    pairs = np.concatenate([np.stack(pair, axis=1) for pair in found])
    if within:
        pairs = np.sort(pairs, axis=1)
    pairs = np.unique(pairs, axis=0)
    rows_a, rows_b = pairs[:, 0], pairs[:, 1]
    cosine = np.full(len(pairs), np.nan)
    if a.embeddings is not None and b.embeddings is not None:
        for block in np.array_split(np.arange(len(pairs)), 1 + len(pairs) // _BASE):
            left = unit_rows(a.embeddings[rows_a[block]])
            right = unit_rows(b.embeddings[rows_b[block]])
            cosine[block] = (left * right).sum(axis=1)
    bits = np.full(len(pairs), -1)
    if a.hashes is not None and orientations is not None:
        differ = np.bitwise_count(orientations[rows_b] ^ a.hashes[rows_a][:, None])
        bits = differ.sum(axis=2, dtype=np.int64).min(axis=1)
    order = np.lexsort((rows_b, rows_a, -np.nan_to_num(cosine), bits))
    return Pairs(
        *(
            values[order]
            for values in (
                rows_a,
                rows_b,
                cosine,
                bits,
                # Rounded differently here than in the tile: the last bit must not decide.
                cosine >= threshold - 1e-6,
                (bits >= 0) & (bits <= max_bits),
            )
        )
    )


def _nearest_orientation(
    base: np.ndarray, orientations: np.ndarray, max_bits: int, within: bool
) -> np.ndarray:
    """Return the nearest base row over all orientations of an image; -1 where none is near."""
    n = len(orientations)
    own = np.arange(n) if within else None
    row, bits = np.full(n, -1), np.full(n, max_bits + 1)
    for k in range(orientations.shape[1]):
        other, apart = nearest_hash(np.ascontiguousarray(orientations[:, k]), base, max_bits, own)
        nearer = (other >= 0) & (apart < bits)
        row[nearer], bits[nearer] = other[nearer], apart[nearer]
    return row


def share(rows: np.ndarray, groups: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Return the share of all images that are in `rows`, with its 95 % interval by bootstrap over groups.

    With none or all of them every draw is equal, so the exact binomial bound over the groups is used (none
    of G groups: up to 1 - .025 ** (1 / G)).
    """
    hit = np.zeros(len(groups))
    hit[np.unique(rows)] = 1
    low, high = GroupBootstrap(groups, seed=seed).interval(
        lambda weight: float(weight @ hit / weight.sum())
    )
    bound = 0.025 ** (1 / len(set(groups)))
    low, high = (0.0, 1 - bound) if not hit.any() else (bound, 1.0) if hit.all() else (low, high)
    return {"n": int(hit.sum()), "share": float(hit.mean()), "low": low, "high": high}
