"""Batches of rows in a seeded order, epoch after epoch, from any position: no DataLoader.

The order of an epoch is drawn from (seed, epoch) alone, so a position is all that has to be kept of it.
Rows that fit into memory are held there and permuted as a whole. Larger stores are shuffled in chunks:
blocks of neighbouring rows are drawn in a random order, as many as a bounded buffer holds are read one
after the other, and the buffer's rows are permuted. Every row comes once an epoch; what does not fill a
batch at its end is left out, other rows each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.errors import UserInputError

if TYPE_CHECKING:
    from .rows import Rows

MEMORY = 2 << 30  # bytes: a larger store is shuffled in chunks
_PIECE = 4096  # rows that are read at a time: where they lie apart, each maps the 64 KB around it
_RELEASE = 8  # pieces after which mapped memory is given back
_BLOCKS = 64  # of a buffer at least: what is shuffled together comes from so many places


class Chosen:
    """Some of the rows, by number (ascending): `n`, `d`, `read`, `take` as `Rows` has them."""

    def __init__(self, rows: Rows, index: np.ndarray) -> None:
        self.rows, self.index = rows, index
        self.n, self.d = len(index), rows.d

    def read(self, start: int, stop: int) -> np.ndarray:
        if stop > start and self.index[stop - 1] - self.index[start] == stop - 1 - start:
            return self.rows.read(int(self.index[start]), int(self.index[stop - 1]) + 1)
        return self.rows.take(self.index[start:stop])

    def take(self, index: np.ndarray) -> np.ndarray:
        return self.rows.take(self.index[index])

    def release(self) -> None:
        self.rows.release()


@dataclass(frozen=True)
class Survey:
    """What one pass over the rows found: `mean` (d,) float64 of the finite ones, `spread` the mean norm
    of (up to 65,536) rows about it, `bad` the numbers of the rows that are not finite."""

    n: int
    mean: np.ndarray
    spread: float
    bad: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def good(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self.n + len(self.bad)), self.bad, assume_unique=True)


def survey(rows: Any, chunk: int = 16_384, most: int = 65_536) -> Survey:
    """Read all rows once, in order. Errors: UserInputError when not one of them is finite."""
    total, n, bad, sample = np.zeros(rows.d), 0, [], []
    every = max(1, -(-rows.n // most))
    for start in range(0, rows.n, chunk):
        part = rows.read(start, min(start + chunk, rows.n))
        fine = np.isfinite(part).all(1)
        if not fine.all():
            bad.append(start + np.flatnonzero(~fine))
        picked = np.arange(-start % every, len(part), every)
        sample.append(part[picked[fine[picked]]])
        part = part[fine] if not fine.all() else part
        total += part.sum(0, dtype=np.float64)
        n += len(part)
        if start // chunk % _RELEASE == 0:
            release(rows)
    if not n:
        raise UserInputError(f"none of the {rows.n} rows is finite", "embed the images again")
    mean = total / n
    kept = np.concatenate(sample)
    spread = (
        float(np.linalg.norm(kept - mean.astype(np.float32), axis=1).mean()) if len(kept) else 0.0
    )
    return Survey(n, mean, spread, np.concatenate(bad) if bad else np.empty(0, np.int64))


def release(rows: Any) -> None:
    """Give back the memory of mapped rows that were read, where they are mapped."""
    if hasattr(rows, "release"):
        rows.release()


class Loader:
    """Batches of `batch` rows of `rows` (n, d) for as long as they are asked for.

    `memory` (bytes): rows that take more as float32 are shuffled in chunks through a buffer of half of it.
    """

    def __init__(self, rows: Any, batch: int, seed: int, memory: int = MEMORY) -> None:
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
        """What the order of the rows depends on."""
        return {
            "n_rows": self.rows.n,
            "order_batch": self.batch,
            "order_seed": self.seed,
            "block": self.block,
            "buffer": 0 if self.whole else self.buffer,
        }

    def batch_at(self, step: int, share: slice = slice(None)) -> np.ndarray:
        """The batch of a step (0 …): (batch, d) float32, or `share` of it."""
        epoch, within = divmod(step, self.per_epoch)
        start = within * self.batch
        first, stop, _ = share.indices(self.batch)
        if self.whole:
            if self._held is None:
                self._held = read_all(self.rows)
            return self._held[self.order(epoch)[start + first : start + stop]]
        return self._from_chunks(epoch, start + first, start + stop)

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of all rows, (n,), in the order of an epoch. In chunks: of its blocks' rows."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            n = self.rows.n if self.whole else -(-self.rows.n // self.block)
            self._order = (epoch, rng.permutation(n))
        return self._order[1]

    def _chunk_rows(self, epoch: int, chunk: int) -> np.ndarray:
        """The row numbers of one buffer, in the order they are handed out."""
        per = max(1, self.buffer // self.block)
        blocks = self.order(epoch)[chunk * per : (chunk + 1) * per]
        rows = (blocks[:, None] * self.block + np.arange(self.block)).reshape(-1)
        rows = rows[rows < self.rows.n]
        return np.random.default_rng([self.seed, epoch, chunk]).permutation(np.sort(rows))

    def _bounds(self, epoch: int) -> np.ndarray:
        """The place in the epoch at which each chunk begins, and the end."""
        per = max(1, self.buffer // self.block)
        sizes = np.full(len(self.order(epoch)), self.block)
        short = self.rows.n - (len(sizes) - 1) * self.block
        sizes[self.order(epoch) == len(sizes) - 1] = short
        ends = np.add.reduceat(sizes, np.arange(0, len(sizes), per)).cumsum()
        return np.concatenate([[0], ends])

    def _from_chunks(self, epoch: int, start: int, stop: int) -> np.ndarray:
        bounds, parts = self._bounds(epoch), []
        chunk = int(np.searchsorted(bounds, start, side="right")) - 1
        while start < stop:
            if self._chunk is None or self._chunk[:2] != (epoch, chunk):
                self._chunk = None  # before the next is read: one buffer at a time
                numbers = self._chunk_rows(epoch, chunk)
                self._chunk = (epoch, chunk, self._read(numbers))
            upto = min(stop, int(bounds[chunk + 1]))
            begin = int(bounds[chunk])
            parts.append(self._chunk[2][start - begin : upto - begin])
            start, chunk = upto, chunk + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of a buffer, piece by piece: what reading maps and copies stays small beside it."""
        held = np.empty((len(numbers), self.rows.d), np.float32)
        order = np.argsort(numbers)
        for part in np.split(order, range(_PIECE, len(order), _PIECE)):
            held[part] = self.rows.take(numbers[part])
            release(self.rows)
        return held


def read_all(rows: Any) -> np.ndarray:
    """All rows in one array (n, d) float32, filled piece by piece: what is mapped meanwhile stays small."""
    return take_all(rows, np.arange(rows.n))


def some_of(index: np.ndarray, most: int, seed: Sequence[int]) -> np.ndarray:
    """At most `most` of some numbers, drawn at random, in order."""
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(seed).choice(index, most, replace=False))


def take_all(rows: Any, index: np.ndarray) -> np.ndarray:
    """The same of the rows with these numbers."""
    held = np.empty((len(index), rows.d), np.float32)
    for start in range(0, len(index), _PIECE):
        held[start : start + _PIECE] = rows.take(index[start : start + _PIECE])
        release(rows)
    return held
