"""Rows of a store, or of an array, as float32: memory-mapped, converted as they are read.

A row is one token (at pooled and class-token sites: one image). Rows are in the order of storage.
Only the requested rows are copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dermaudit.errors import UserInputError

from .activation_store import map_tensor, read_shard_header

if TYPE_CHECKING:
    from torch import Tensor

    from .activation_store import ActivationStore


class RowSource(Protocol):
    """Rows (n, d) that are read by number: `EmbeddingRows`, or a `RowSubset` of them."""

    n: int
    d: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start … stop - 1: (stop - start, d) float32."""
        ...

    def take(self, index: np.ndarray) -> np.ndarray:
        """Return rows by number: (len(index), d) float32."""
        ...

    def release(self) -> None:
        """Unmap the pages that were read."""
        ...


def as_float32(values: np.ndarray) -> np.ndarray:
    """Return a copy as float32; uint16 holds the bits of bfloat16 (the upper half of a float32)."""
    out = np.empty(values.shape, np.float32)
    _convert(values, out)
    return out


def _convert(values: np.ndarray, out: np.ndarray) -> None:
    if values.dtype == np.uint16:
        np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[...] = values


class EmbeddingRows:
    """`n` rows of `d` numbers, `tokens` rows for each image.

    `image_rows` (images,) int64 and `image_groups` (images,) int64 hold, for each stored image, its
    row number in the table of images and the number of its group.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        image_rows: np.ndarray,
        image_groups: np.ndarray,
        d: int,
        tokens: int = 1,
    ) -> None:
        """`arrays` (n_i, d) are float32, float16, or uint16 (bits of bfloat16)."""
        self._arrays = [array for array in arrays if len(array)]
        self._ends = np.cumsum([len(array) for array in self._arrays], dtype=np.int64)
        self.n = int(self._ends[-1]) if self._arrays else 0
        self.d = d
        self.tokens = tokens
        self.image_rows = np.asarray(image_rows, dtype=np.int64)
        self.image_groups = np.asarray(image_groups, dtype=np.int64)

    @classmethod
    def of(
        cls, array: np.ndarray, groups: np.ndarray | None = None, tokens: int | None = None
    ) -> EmbeddingRows:
        """Return the rows of an array in memory: (n, d), or (images, tokens, d).

        Without `groups` (images,) every image is its own group. `tokens` is the number of rows for
        each image of an (n, d) array.
        """
        array = np.asarray(array)
        if array.ndim not in (2, 3) or array.dtype not in (np.float16, np.float32, np.float64):
            raise UserInputError(
                f"rows must be floating, (n, d) or (images, tokens, d), not {array.dtype} {array.shape}"
            )
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        per_image: int = array.shape[1] if array.ndim == 3 else (tokens or 1)
        flat = array.reshape(-1, array.shape[-1])
        numbers = np.arange(len(flat) // per_image)
        return cls([flat], numbers, numbers if groups is None else groups, flat.shape[1], per_image)

    @classmethod
    def of_store(cls, store: ActivationStore) -> EmbeddingRows:
        """Return the rows of a store. StaleArtifactError names a shard that is cut off."""
        arrays = []
        for path in store.shard_paths():
            array = map_tensor(path, read_shard_header(path).tensors["acts"])
            arrays.append(array.reshape(-1, array.shape[-1]))
        meta = store.meta
        return cls(arrays, store.image_rows(), store.image_groups(), meta["d"], meta["tokens"])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start … stop - 1, (stop - start, d) float32. IndexError out of range."""
        if not 0 <= start <= stop <= self.n:
            raise IndexError(f"rows {start} to {stop} of {self.n}")
        out = np.empty((stop - start, self.d), np.float32)
        first = int(np.searchsorted(self._ends, start, side="right"))
        at = start
        for array, end in zip(self._arrays[first:], self._ends[first:].tolist(), strict=True):
            if at >= stop:
                break
            begin = end - len(array)
            until = min(stop, end)
            _convert(array[at - begin : until - begin], out[at - start : until - start])
            at = until
        return out

    def take(self, index: np.ndarray) -> np.ndarray:
        """Return rows by number, in any order and also repeated: (len(index), d) float32.

        The disk is read in ascending order. IndexError for a number out of range.
        """
        index = np.asarray(index, dtype=np.int64)
        if len(index) and not (index.min() >= 0 and index.max() < self.n):
            raise IndexError(f"row {index.min()} or {index.max()} of {self.n}")
        if len(self._arrays) == 1 and self._arrays[0].dtype == np.float32:
            return np.take(self._arrays[0], index, axis=0)
        out = np.empty((len(index), self.d), np.float32)
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        cuts = np.searchsorted(ordered, self._ends, side="left")
        at = 0
        for array, end, cut in zip(self._arrays, self._ends.tolist(), cuts.tolist(), strict=True):
            if cut > at:
                local = ordered[at:cut] - (end - len(array))
                out[order[at:cut]] = as_float32(array[local])
            at = cut
        return out

    def release(self) -> None:
        """Unmap the pages that were read, which otherwise count as memory of this process.

        The bytes stay in the cache of the operating system and are mapped again when they are read.
        """
        for array in self._arrays:
            mapped = getattr(array, "_mmap", None)
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def of_images(self, mask: np.ndarray) -> np.ndarray:
        """Return the numbers of all rows of some images, ascending int64.

        `mask` is over the table of images, for example the images of a split.
        """
        stored = np.flatnonzero(np.asarray(mask, dtype=bool)[self.image_rows])
        return (stored[:, None] * self.tokens + np.arange(self.tokens)).reshape(-1)


def as_rows(rows: RowSource | np.ndarray | Tensor) -> RowSource:
    """Return rows (n, d), which may also be an array or a tensor, as a source of rows."""
    import torch

    if isinstance(rows, torch.Tensor):
        return EmbeddingRows.of(rows.float().numpy())
    return EmbeddingRows.of(rows) if isinstance(rows, np.ndarray) else rows
