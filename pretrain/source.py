"""Where training images come from: an array in memory, files, or shards; and batches read ahead.

A batch is a list of rows. An image that cannot be read is counted and replaced by the next row that can,
so that a batch keeps its size and every process its share; which row stands in does not depend on threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dermaudit.data import BadImage, read_image
from dermaudit.errors import UserInputError

_AHEAD = 3  # batches that are being read while one is computed
_TRIES = 32  # rows tried in the place of one that cannot be read


class Source(Protocol):
    """`n` images; `image(row)` uint8 (s, s, 3), or BadImage."""

    n: int

    def image(self, row: int) -> np.ndarray: ...

    def order(self, seed: int) -> np.ndarray:
        """A permutation of the rows."""
        ...


class _Shuffled:
    n: int

    def order(self, seed: int) -> np.ndarray:
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(seed)).numpy()


class Memory(_Shuffled):
    """uint8 images (n, 3, s, s), decoded before."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.n = images, len(images)


class Files(_Shuffled):
    """Image files, decoded when they are needed."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size, self.n = list(paths), size, len(paths)

    def image(self, row: int) -> np.ndarray:
        return read_image(self.paths[row], self.size)


class FromShards:
    """Some rows of a shards folder (dermaudit.data.shards), in an order that reads them in runs."""

    def __init__(self, shards, rows: Sequence[int], size: int) -> None:
        self.shards, self.rows, self.size, self.n = shards, np.asarray(rows), size, len(rows)

    def image(self, row: int) -> np.ndarray:
        return self.shards.decode(int(self.rows[row]), self.size)

    def order(self, seed: int) -> np.ndarray:
        where = np.full(len(self.shards), -1)
        where[self.rows] = np.arange(self.n)
        found = where[self.shards.order(seed, 0)]
        return found[found >= 0]


class Read(NamedTuple):
    """`rows` that were used, images uint8 (b, 3, s, s), and how many could not be read."""

    rows: np.ndarray
    images: Tensor
    failed: int


def batches(source: Source, plan: Iterable[np.ndarray], threads: int = 1) -> Iterator[Read]:
    """Read the batches of `plan` in order, `threads` at work while the caller computes.

    Errors: UserInputError when image after image cannot be read.
    """
    if isinstance(source, Memory):
        for rows in plan:
            yield Read(rows, source.images[torch.from_numpy(rows)], 0)
        return
    with ThreadPoolExecutor(max(1, threads)) as pool:
        waiting: deque[list[Future]] = deque()
        for rows in plan:
            waiting.append([pool.submit(_first_good, source, int(row)) for row in rows])
            if len(waiting) > _AHEAD:
                yield _together(waiting.popleft())
        while waiting:
            yield _together(waiting.popleft())


def _first_good(source: Source, row: int) -> tuple[int, np.ndarray, int]:
    for failed in range(_TRIES):
        at = (row + failed) % source.n
        try:
            return at, source.image(at), failed
        except BadImage as error:
            last = error
    raise UserInputError(
        f"{_TRIES} images after each other cannot be read, the last: {last.message}",
        "see what is wrong with: dermaudit data check",
    )


def _together(futures: list[Future]) -> Read:
    found = [future.result() for future in futures]
    pixels = np.stack([image for _, image, _ in found])
    return Read(
        np.array([row for row, _, _ in found]),
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        sum(failed for _, _, failed in found),
    )
