"""Images of the same picture: equal bytes, or perceptual hashes that differ in few bits.

The hash is imagehash's phash with 256 bits. Among 3,111 real dermoscopic images the nearest two
different lesions differ in 44 bits; a copy at half size and JPEG quality 60 differs in at most 16,
one 20 % brighter mostly in under 24. The usual 64 bits cannot distinguish two centred nevi.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from PIL import Image

HASH_SIDE = 16
N_BITS = HASH_SIDE * HASH_SIDE
MAX_DISTANCE = 24
_CANDIDATES = 1 << 21  # pairs compared at once
# Distance and row in one number, so that the least of them is the nearest and then the first.
_SHIFT = 40
_NONE = np.iinfo(np.int64).max


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """Return the phash of a uint8 (h, w, 3) image: bool (256,)."""
    import imagehash

    return imagehash.phash(Image.fromarray(pixels), hash_size=HASH_SIDE).hash.ravel()


def near_pairs(
    hashes: np.ndarray, max_distance: int = MAX_DISTANCE
) -> Iterator[tuple[int, int, int]]:
    """Yield all (i, j, bits that differ), i < j, at most `max_distance` apart; sorted by j, then i.

    `hashes` bool (n, bits). Exact without comparing all pairs: of max_distance + 1 bands, two such hashes
    agree in at least one whole band.
    """
    n, bits = hashes.shape
    packed = np.packbits(hashes, axis=1)
    found: dict[tuple[int, int], int] = {}
    for band in np.array_split(np.arange(bits), max_distance + 1):
        keys = np.packbits(hashes[:, band], axis=1)
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for i in range(n):
            buckets[keys[i].tobytes()].append(i)
        for members in buckets.values():
            if len(members) > 1:
                _compare(packed, np.array(members), max_distance, found)
    for (j, i), distance in sorted(found.items()):
        yield i, j, distance


def _compare(
    packed: np.ndarray, members: np.ndarray, max_distance: int, found: dict[tuple[int, int], int]
) -> None:
    own = packed[members]
    for k in range(1, len(members)):
        distances = np.bitwise_count(own[:k] ^ own[k]).sum(axis=1, dtype=np.int64)
        for i in np.flatnonzero(distances <= max_distance):
            found[int(members[k]), int(members[i])] = int(distances[i])


def turns(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the seven other orientations of a picture (h, w, 3): rotated by quarters and mirrored."""
    for side in (pixels, pixels[:, ::-1]):
        for quarters in range(4):
            if side is not pixels or quarters:
                yield np.ascontiguousarray(np.rot90(side, quarters))


def pack_hashes(hashes: np.ndarray) -> np.ndarray:
    """Convert bool (n, 256) to uint64 (n, 4), the form that `nearest_hash` compares."""
    return np.packbits(hashes, axis=1).view(np.uint64)


def nearest_hash(
    query: np.ndarray,
    base: np.ndarray,
    max_distance: int = MAX_DISTANCE,
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each query hash the nearest of `base`: (row int64, bits that differ int64).

    -1 and -1 if none is within `max_distance`; the first row if several are equally near. Packed hashes
    uint64 (n, 4). `own`: for each query the base row of the same image, which does not count. Exact by the
    bands of `near_pairs`; equal hashes of the base are compared once, so that a hundred thousand black
    frames cost no more than one. Memory: 256 bytes a row, and a block.
    """
    best = np.full(len(query), _NONE, dtype=np.int64)
    if not len(query) or not len(base):
        return np.full(len(query), -1), np.full(len(query), -1)
    _, first, of, count = np.unique(
        base, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    # The second row with the same hash is used where the first is the query itself.
    order = np.argsort(of.ravel(), kind="stable")
    after = np.minimum(np.cumsum(count) - count + 1, len(base) - 1)
    second = np.where(count > 1, order[after], -1)
    distinct = base[first]
    own = np.full(len(query), -1) if own is None else own
    bits_query, bits_base = (np.unpackbits(h.view(np.uint8), axis=1) for h in (query, distinct))
    query_word, base_word = query[:, 0].copy(), distinct[:, 0].copy()
    for band in np.array_split(np.arange(N_BITS), max_distance + 1):
        powers = 1 << np.arange(len(band))
        keys, wanted = bits_base[:, band] @ powers, bits_query[:, band] @ powers
        order = np.argsort(keys, kind="stable")
        start = np.searchsorted(keys[order], wanted, "left")
        n = np.searchsorted(keys[order], wanted, "right") - start
        for rows in _blocks(n):
            q = np.repeat(np.arange(rows.start, rows.stop), n[rows])
            step = np.arange(len(q)) - np.repeat(np.cumsum(n[rows]) - n[rows], n[rows])
            b = order[np.repeat(start[rows], n[rows]) + step]
            # A quarter of the bits first: it excludes nearly all pairs that share only a band.
            likely = np.bitwise_count(query_word[q] ^ base_word[b]) <= max_distance
            q, b = q[likely], b[likely]
            bits = np.bitwise_count(query[q] ^ distinct[b]).sum(axis=1, dtype=np.int64)
            row = np.where(first[b] == own[q], second[b], first[b])
            near = (bits <= max_distance) & (row >= 0)
            np.minimum.at(best, q[near], (bits[near] << _SHIFT) | row[near])
    found = best != _NONE
    return np.where(found, best & ((1 << _SHIFT) - 1), -1), np.where(found, best >> _SHIFT, -1)


def _blocks(n: np.ndarray) -> Iterator[slice]:
    """Yield runs of rows with about `_CANDIDATES` candidates together (one row may have more)."""
    ends = np.cumsum(n)
    start = 0
    while start < len(n):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CANDIDATES, "right")))
        yield slice(start, stop)
        start = stop
