"""Rows of a store, or of an array, as float32: memory-mapped, converted as they are read.

A row is one token (pooled and class-token sites: one image). Rows stand in the order of storage;
`images` tells which image each belongs to. Nothing but the rows asked for is ever copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dermaudit.errors import UserInputError

from .activation_store import map_tensor, read_shard_header

if TYPE_CHECKING:
    from .activation_store import ActivationStore


def as_float32(values: np.ndarray) -> np.ndarray:
    """A copy as float32; uint16 is taken for the bits of bfloat16 (the upper half of a float32)."""
    out = np.empty(values.shape, np.float32)
    _convert(values, out)
    return out


def _convert(values: np.ndarray, out: np.ndarray) -> None:
    if values.dtype == np.uint16:
        np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[...] = values


class Rows:
    """`n` rows of `d` numbers. `tokens`: rows an image; `image_rows` (images,) int64 and
    `image_groups` (images,) int64: the row number in the table of images, and the group's number,
    of each stored image."""

    def __init__(
        self,
        parts: Sequence[np.ndarray],
        image_rows: np.ndarray,
        image_groups: np.ndarray,
        d: int,
        tokens: int = 1,
    ) -> None:
        """`parts`: arrays (n_i, d) of float32, float16, or uint16 (bfloat16's bits)."""
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self.n = int(self._ends[-1]) if self._parts else 0
        self.d = d
        self.tokens = tokens
        self.image_rows = np.asarray(image_rows, dtype=np.int64)
        self.image_groups = np.asarray(image_groups, dtype=np.int64)

    @classmethod
    def of(
        cls, array: np.ndarray, groups: np.ndarray | None = None, tokens: int | None = None
    ) -> Rows:
        """Rows of an array in memory: (n, d), or (images, tokens, d). Without `groups` (images,)
        every image is a group of its own. `tokens`: rows an image of an (n, d) array."""
        array = np.asarray(array)
        if array.ndim not in (2, 3) or array.dtype not in (np.float16, np.float32, np.float64):
            raise UserInputError(
                f"rows must be floating, (n, d) or (images, tokens, d), not {array.dtype} {array.shape}"
            )
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        tokens = array.shape[1] if array.ndim == 3 else (tokens or 1)
        flat = array.reshape(-1, array.shape[-1])
        numbers = np.arange(len(flat) // tokens)
        return cls([flat], numbers, numbers if groups is None else groups, flat.shape[1], tokens)

    @classmethod
    def of_store(cls, store: ActivationStore) -> Rows:
        """The rows of a store. Errors: StaleArtifactError naming a shard that is cut off."""
        parts = []
        for path in store.shard_paths():
            part = map_tensor(path, read_shard_header(path).tensors["acts"])
            parts.append(part.reshape(-1, part.shape[-1]))
        meta = store.meta
        return cls(parts, store.image_rows(), store.image_groups(), meta["d"], meta["tokens"])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start … stop - 1: (stop - start, d) float32. Errors: IndexError out of range."""
        if not 0 <= start <= stop <= self.n:
            raise IndexError(f"rows {start} to {stop} of {self.n}")
        out = np.empty((stop - start, self.d), np.float32)
        first = int(np.searchsorted(self._ends, start, side="right"))
        at = start
        for part, end in zip(self._parts[first:], self._ends[first:].tolist(), strict=True):
            if at >= stop:
                break
            begin = end - len(part)
            upto = min(stop, end)
            _convert(part[at - begin : upto - begin], out[at - start : upto - start])
            at = upto
        return out

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows by number, in any order and any number of times: (len(index), d) float32.

        The disk is read in ascending order, whatever the order asked for. Errors: IndexError.
        """
        index = np.asarray(index, dtype=np.int64)
        if len(index) and not (index.min() >= 0 and index.max() < self.n):
            raise IndexError(f"row {index.min()} or {index.max()} of {self.n}")
        if len(self._parts) == 1 and self._parts[0].dtype == np.float32:
            return np.take(self._parts[0], index, axis=0)
        out = np.empty((len(index), self.d), np.float32)
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        cuts = np.searchsorted(ordered, self._ends, side="left")
        at = 0
        for part, end, cut in zip(self._parts, self._ends.tolist(), cuts.tolist(), strict=True):
            if cut > at:
                local = ordered[at:cut] - (end - len(part))
                out[order[at:cut]] = as_float32(part[local])
            at = cut
        return out

    def release(self) -> None:
        """Unmap what was read, which otherwise counts as this process's memory until it is short: the
        bytes stay in the system's cache, and come back when they are asked for again."""
        for part in self._parts:
            mapped = getattr(part, "_mmap", None)
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def images(self, start: int, stop: int) -> np.ndarray:
        """The image's row number of rows start … stop - 1: (stop - start,) int64."""
        return self.image_rows[np.arange(start, stop) // self.tokens]

    def groups(self, start: int, stop: int) -> np.ndarray:
        """The group number of rows start … stop - 1: (stop - start,) int64."""
        return self.image_groups[np.arange(start, stop) // self.tokens]

    def of_images(self, chosen: np.ndarray) -> np.ndarray:
        """The numbers of all rows of some images, ascending: int64. `chosen`: a mask over the table
        of images (by their row numbers), as a split gives it."""
        stored = np.flatnonzero(np.asarray(chosen, dtype=bool)[self.image_rows])
        return (stored[:, None] * self.tokens + np.arange(self.tokens)).reshape(-1)
