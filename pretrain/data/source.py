"""Where training images come from: an array in memory, files, or shards; and batches read ahead.

A batch is a list of rows. An image that cannot be read is counted and replaced by the next row that can,
so that a batch keeps its size and every process its share; which row replaces it does not depend on threads.
"""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dermaudit.data import BadImage, read_image
from dermaudit.errors import UserInputError

_AHEAD = 3  # batches that are being read while one is computed
_TRIES = 32  # rows tried in the place of one that cannot be read


class ImageSource(ABC):
    """Images by row of the data. `rows` (n,) are those that may come up."""

    def __init__(self, rows: Sequence[int] | np.ndarray) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.rows)

    def only(self, rows: Sequence[int] | np.ndarray) -> ImageSource:
        """Return a source with those of its rows that are among `rows`."""
        other = copy.copy(self)
        other.rows = self.rows[np.isin(self.rows, np.asarray(rows))]
        return other

    def order(self, seed: int) -> np.ndarray:
        """Return the rows, permuted."""
        places = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed))
        return self.rows[places.numpy()]

    @abstractmethod
    def image(self, row: int) -> np.ndarray:
        """uint8 (s, s, 3). Errors: BadImage."""


class ImagesInMemory(ImageSource):
    """uint8 images (n, 3, s, s), decoded before; `rows`: the row of each of them."""

    def __init__(self, images: Tensor, rows: Sequence[int] | np.ndarray | None = None) -> None:
        super().__init__(range(len(images)) if rows is None else rows)
        self.images = images
        self._place = np.full(int(self.rows.max(initial=-1)) + 1, -1)
        self._place[self.rows] = np.arange(len(self.rows))

    def image(self, row: int) -> np.ndarray:
        """Return one image: uint8 (s, s, 3)."""
        return self.take(np.array([row]))[0].permute(1, 2, 0).numpy()

    def take(self, rows: np.ndarray) -> Tensor:
        """Return images of some rows: uint8 (n, 3, s, s)."""
        return self.images[torch.from_numpy(self._place[rows])]


class ImageFiles(ImageSource):
    """Image files, decoded when they are needed."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        super().__init__(range(len(paths)))
        self.paths, self.size = list(paths), size

    def image(self, row: int) -> np.ndarray:
        """Return one image: uint8 (s, s, 3)."""
        return read_image(self.paths[row], self.size)


class ImagesFromShards(ImageSource):
    """Rows of a shards folder (dermaudit.data.shards.read), in an order that reads them in runs. Row i of the
    data is row `in_shards[i]` of the shards.
    """

    def __init__(self, shards, in_shards: Sequence[int], size: int) -> None:
        super().__init__(range(len(in_shards)))
        self.shards, self.in_shards, self.size = shards, np.asarray(in_shards), size

    def image(self, row: int) -> np.ndarray:
        """Return one image: uint8 (s, s, 3)."""
        return self.shards.decode(int(self.in_shards[row]), self.size)

    def order(self, seed: int) -> np.ndarray:
        """Return the rows in an order in which shards are read one after another."""
        row_of = np.full(len(self.shards), -1)
        row_of[self.in_shards[self.rows]] = self.rows
        found = row_of[self.shards.order(seed, 0)]
        return found[found >= 0]


class ReadBatch(NamedTuple):
    """`rows` that were used, images uint8 (b, 3, s, s), and how many could not be read."""

    rows: np.ndarray
    images: Tensor
    failed: int


def batches(
    source: ImageSource, plan: Iterable[np.ndarray], threads: int = 1
) -> Iterator[ReadBatch]:
    """Read the batches of `plan` in order, `threads` at work while the caller computes.

    Errors: UserInputError when hardly any image can be read.
    """
    if isinstance(source, ImagesInMemory):
        for rows in plan:
            yield ReadBatch(rows, source.take(rows), 0)
        return
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        waiting: deque[list[Future]] = deque()
        for rows in plan:
            taken = frozenset(rows.tolist())
            waiting.append([pool.submit(_first_good, source, int(row), taken) for row in rows])
            if len(waiting) > _AHEAD:
                yield _together(waiting.popleft())
        while waiting:
            yield _together(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _first_good(
    source: ImageSource, row: int, taken: frozenset[int]
) -> tuple[int, np.ndarray, int]:
    """(row, image, how many failed): the row itself, or others drawn by it, not of its batch."""
    rng, at = random.Random(row), row
    reason = ""
    for failed in range(_TRIES):
        try:
            return at, source.image(at), failed
        except BadImage as error:
            reason = error.message
        others = (int(source.rows[rng.randrange(source.n)]) for _ in range(_TRIES))
        at = next((other for other in others if other not in taken), at)
    raise UserInputError(
        f"{_TRIES} images drawn after each other cannot be read, the last: {reason}",
        "see what is wrong with: dermaudit data check",
    )


def _together(futures: list[Future]) -> ReadBatch:
    found = [future.result() for future in futures]
    pixels = np.stack([image for _, image, _ in found])
    return ReadBatch(
        np.array([row for row, _, _ in found]),
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        sum(failed for _, _, failed in found),
    )
