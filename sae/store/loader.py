"""Batches of rows in a seeded order, epoch after epoch, from any position: no DataLoader.

The order of an epoch depends on (seed, epoch) alone, so a checkpoint only needs the position.
Rows that fit into memory are held there and permuted as a whole. Larger stores are shuffled in chunks:
blocks of neighbouring rows are drawn in random order, a bounded buffer is filled with as many as it
holds, and the rows of the buffer are permuted. Every row comes once in each epoch; the last rows that
do not fill a batch are left out, different ones in each epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dermaudit.errors import UserInputError

from .rows import EmbeddingRows, RowSource

MEMORY = 2 << 30  # bytes: a larger store is shuffled in chunks
_PIECE = 4096  # rows that are read at a time: rows that lie apart map 64 KB each
_RELEASE = 8  # pieces after which mapped memory is released
_BLOCKS = 64  # the least number of blocks in a buffer, so that rows from many places are mixed


class RowSubset:
    """Some of the rows, by number (ascending), read as `EmbeddingRows` is."""

    def __init__(self, rows: EmbeddingRows, index: np.ndarray) -> None:
        self.rows, self.index = rows, index
        self.n, self.d = len(index), rows.d

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start … stop - 1 of the subset: (stop - start, d) float32."""
        if stop > start and self.index[stop - 1] - self.index[start] == stop - 1 - start:
            return self.rows.read(int(self.index[start]), int(self.index[stop - 1]) + 1)
        return self.rows.take(self.index[start:stop])

    def take(self, index: np.ndarray) -> np.ndarray:
        """Return rows of the subset by number: (len(index), d) float32."""
        return self.rows.take(self.index[index])

    def release(self) -> None:
        """Unmap the pages that were read."""
        self.rows.release()


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of one pass over the rows.

    `n` and `mean` (d,) float64 are of the finite rows, `spread` is the mean distance of (up to
    65,536) rows from the mean, `bad` are the numbers of the rows that are not finite.
    """

    n: int
    mean: np.ndarray
    spread: float
    bad: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def good(self) -> np.ndarray:
        """The numbers of the finite rows."""
        return np.setdiff1d(np.arange(self.n + len(self.bad)), self.bad, assume_unique=True)


def row_statistics(rows: RowSource, chunk: int = 16_384, most: int = 65_536) -> RowStatistics:
    """Read all rows once, in order. UserInputError if none of them is finite."""
    total, n, bad, sample = np.zeros(rows.d), 0, [], []
    every = max(1, -(-rows.n // most))
    for start in range(0, rows.n, chunk):
        part = rows.read(start, min(start + chunk, rows.n))
        finite = np.asarray(np.isfinite(part).all(1))
        if not finite.all():
            bad.append(start + np.flatnonzero(~finite))
        picked = np.arange(-start % every, len(part), every)
        sample.append(part[picked[finite[picked]]])
        part = part[finite] if not finite.all() else part
        total += part.sum(0, dtype=np.float64)
        n += len(part)
        if start // chunk % _RELEASE == 0:
            rows.release()
    if not n:
        raise UserInputError(f"none of the {rows.n} rows is finite", "embed the images again")
    mean = total / n
    kept = np.concatenate(sample)
    spread = (
        float(np.linalg.norm(kept - mean.astype(np.float32), axis=1).mean()) if len(kept) else 0.0
    )
    return RowStatistics(n, mean, spread, np.concatenate(bad) if bad else np.empty(0, np.int64))


class Loader:
    """Batches of `batch` rows of `rows` (n, d), without end.

    Rows that take more than `memory` bytes as float32 are shuffled in chunks, through a buffer of half
    of that size.
    """

    def __init__(self, rows: RowSource, batch: int, seed: int, memory: int = MEMORY) -> None:
        if not 1 <= batch <= rows.n:
            raise UserInputError(f"a batch of {batch} rows cannot be drawn from {rows.n} rows")
        self.rows, self.batch, self.seed = rows, batch, seed
        self.per_epoch = rows.n // batch
        row_bytes = 4 * rows.d
        self.whole = rows.n * row_bytes <= memory
        self.buffer = min(rows.n, max(batch, memory // 2 // row_bytes))
        self.block = rows.n if self.whole else max(1, self.buffer // _BLOCKS)
        self._held: np.ndarray | None = None
        self._chunk: tuple[int, int, np.ndarray] | None = None
        self._order: tuple[int, np.ndarray] | None = None

    def facts(self) -> dict[str, Any]:
        """Return what the order of the rows depends on."""
        return {
            "n_rows": self.rows.n,
            "order_batch": self.batch,
            "order_seed": self.seed,
            "block": self.block,
            "buffer": 0 if self.whole else self.buffer,
        }

    def batch_at(self, step: int, shard: slice = slice(None)) -> np.ndarray:
        """Return the batch of a step (0 …), (batch, d) float32, or a `shard` of it."""
        epoch, within = divmod(step, self.per_epoch)
        start = within * self.batch
        first, stop, _ = shard.indices(self.batch)
        if self.whole:
            if self._held is None:
                self._held = read_all(self.rows)
            return self._held[self.order(epoch)[start + first : start + stop]]
        return self._from_chunks(epoch, start + first, start + stop)

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers of all rows (or of all blocks of rows) in the order of an epoch."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            n = self.rows.n if self.whole else -(-self.rows.n // self.block)
            self._order = (epoch, rng.permutation(n))
        return self._order[1]

    def _chunk_rows(self, epoch: int, chunk: int) -> np.ndarray:
        """Return the row numbers of one buffer, in their order in the batches."""
        per = max(1, self.buffer // self.block)
        blocks = self.order(epoch)[chunk * per : (chunk + 1) * per]
        rows = (blocks[:, None] * self.block + np.arange(self.block)).reshape(-1)
        rows = rows[rows < self.rows.n]
        return np.random.default_rng([self.seed, epoch, chunk]).permutation(np.sort(rows))

    def _bounds(self, epoch: int) -> np.ndarray:
        """Return the position in the epoch at which each chunk begins, and the end."""
        per = max(1, self.buffer // self.block)
        sizes = np.full(len(self.order(epoch)), self.block)
        short = self.rows.n - (len(sizes) - 1) * self.block
        sizes[self.order(epoch) == len(sizes) - 1] = short
        ends = np.add.reduceat(sizes, np.arange(0, len(sizes), per)).cumsum()
        return np.concatenate([[0], ends])

    def _from_chunks(self, epoch: int, start: int, stop: int) -> np.ndarray:
        bounds, pieces = self._bounds(epoch), []
        chunk = int(np.searchsorted(bounds, start, side="right")) - 1
        while start < stop:
            if self._chunk is None or self._chunk[:2] != (epoch, chunk):
                self._chunk = None  # frees its buffer before the next one is filled
                numbers = self._chunk_rows(epoch, chunk)
                self._chunk = (epoch, chunk, self._read(numbers))
            until = min(stop, int(bounds[chunk + 1]))
            begin = int(bounds[chunk])
            pieces.append(self._chunk[2][start - begin : until - begin])
            start, chunk = until, chunk + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows of a buffer, read in pieces so that little memory is mapped at a time."""
        held = np.empty((len(numbers), self.rows.d), np.float32)
        order = np.argsort(numbers)
        for piece in np.split(order, range(_PIECE, len(order), _PIECE)):
            held[piece] = self.rows.take(numbers[piece])
            self.rows.release()
        return held


def read_all(rows: RowSource) -> np.ndarray:
    """Return all rows as one array (n, d) float32."""
    return read_rows(rows, np.arange(rows.n))


def random_subset(index: np.ndarray, most: int, seed: Sequence[int]) -> np.ndarray:
    """Return at most `most` of some numbers, drawn at random, in ascending order."""
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(seed).choice(index, most, replace=False))


def read_rows(rows: RowSource, index: np.ndarray) -> np.ndarray:
    """Return rows by number as one array (len(index), d) float32.

    They are read in pieces, so that little memory is mapped at a time.
    """
    held = np.empty((len(index), rows.d), np.float32)
    for start in range(0, len(index), _PIECE):
        held[start : start + _PIECE] = rows.take(index[start : start + _PIECE])
        rows.release()
    return held
