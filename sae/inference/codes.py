"""Image codes of a data set, sparse by image (CSR) and by latent (CSC), memory-mapped.

A pooled site gives one code an image; a patch site gives the maximum over its tokens, and keeps
which token it was (`argmax`), so that a concept can be pointed at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dermaudit.errors import UserInputError
from dermaudit.files import read_json, whole_file, write_json, write_npy

if TYPE_CHECKING:
    from .model import ThresholdSAE, TopKSAE

_ARRAYS = ("indptr", "indices", "values", "csc_indptr", "csc_indices", "csc_values")
_CELLS = 1 << 23  # codes that are transposed at a time


class Activations(Protocol):
    """Activations (n, d) or (n, tokens, d), read by slices: an array, or rows of a store."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> np.ndarray: ...


def encode_images(
    sae: ThresholdSAE | TopKSAE, acts: Activations, chunk: int = 256
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield (dense codes (b, d_sae) float32, argmax token (b, d_sae) or None) for chunks of images."""
    import torch  # here, because pages read codes without loading torch

    for start in range(0, len(acts), chunk):
        part = torch.from_numpy(np.ascontiguousarray(acts[start : start + chunk])).float()
        with torch.no_grad():
            codes = sae.encode(part)
        if part.ndim == 2:
            yield codes.numpy(), None
        else:
            value, token = codes.max(dim=1)
            yield value.numpy(), token.numpy()


def write_codes(
    folder: Path, sae: ThresholdSAE | TopKSAE, acts: Activations, site: str
) -> list[Path]:
    """Encode `acts` (n, d) or (n, tokens, d) and write the arrays; returns the files.

    Memory does not grow with the codes, only by some bytes a row: codes are written as they are made,
    and turned from CSR to CSC some latents at a time. Errors: NoSpaceError; no file is half-written.
    """
    from scipy.sparse import csr_matrix

    lengths, tokens = [], None
    with (
        _growing(folder / "indices.npy", np.int32) as indices,
        _growing(folder / "values.npy", np.float32) as values,
        ExitStack() as patches,
    ):
        for dense, token in encode_images(sae, acts):
            sparse = csr_matrix(dense)
            lengths.append(np.diff(sparse.indptr))
            indices(sparse.indices)
            values(sparse.data)
            if token is not None:
                if tokens is None:
                    tokens = patches.enter_context(_growing(folder / "argmax.npy", np.uint16))
                tokens(token[np.repeat(np.arange(len(dense)), lengths[-1]), sparse.indices])
    indptr = np.concatenate([[0], np.concatenate(lengths).cumsum()])
    write_npy(folder / "indptr.npy", indptr.astype(np.int64))
    _write_csc(folder, indptr, sae.d_sae)
    write_json(
        folder / "codes.json", {"format_version": 1, "shape": [len(acts), sae.d_sae], "site": site}
    )
    names = [*_ARRAYS, *(["argmax"] if tokens is not None else [])]
    return [folder / "codes.json", *(folder / f"{name}.npy" for name in names)]


@contextmanager
def _growing(path: Path, dtype: type) -> Iterator[Callable[[np.ndarray], object]]:
    """Yield a function that appends to a vector on disk, whose bytes are those of `np.save`: the header
    of an npy file has room for any length, so that it can be written again when the length is known.
    """
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    with whole_file(path) as temporary, temporary.open("wb") as handle:

        def head(n: int) -> None:
            np.lib.format.write_array_header_1_0(
                handle, {"shape": (n,), "fortran_order": False, "descr": descr}
            )

        head(0)
        start = handle.tell()
        yield lambda part: handle.write(np.ascontiguousarray(part, dtype).data)
        n = (handle.tell() - start) // np.dtype(dtype).itemsize
        handle.seek(0)
        head(n)
        assert handle.tell() == start, "this numpy leaves no room in the header of a vector"


def _write_csc(folder: Path, indptr: np.ndarray, d_sae: int) -> None:
    """Write the arrays by latent from those by image, which are read once per band of latents."""
    counts = np.zeros(d_sae, np.int64)
    for first, stop in _pieces(indptr):
        counts += np.bincount(
            _read(folder, "indices", indptr[first], indptr[stop]), minlength=d_sae
        )
    csc_indptr = np.concatenate([[0], counts.cumsum()])
    write_npy(folder / "csc_indptr.npy", csc_indptr)
    with (
        _growing(folder / "csc_indices.npy", np.int32) as images,
        _growing(folder / "csc_values.npy", np.float32) as values,
    ):
        for first, stop in _pieces(csc_indptr):
            band = _band(folder, indptr, csc_indptr, first, stop)
            images(band[0])
            values(band[1])


def _band(
    folder: Path, indptr: np.ndarray, csc_indptr: np.ndarray, first: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """(images, values) of latents first … stop - 1, latent after latent, images ascending."""
    from scipy.sparse import csr_matrix

    offset = csc_indptr[first]
    free = csc_indptr[first:stop] - offset  # where each latent's next image goes
    images = np.empty(csc_indptr[stop] - offset, np.int32)
    values = np.empty(len(images), np.float32)
    for begin, end in _pieces(indptr):
        place = slice(indptr[begin], indptr[end])
        part = csr_matrix(
            (
                _read(folder, "values", place.start, place.stop),
                _read(folder, "indices", place.start, place.stop),
                indptr[begin : end + 1] - place.start,
            ),
            shape=(end - begin, len(csc_indptr) - 1),
        )[:, first:stop].tocsc()
        n = np.diff(part.indptr)
        there = np.repeat(free - part.indptr[:-1], n) + np.arange(len(part.data))
        images[there], values[there] = part.indices + begin, part.data
        free = free + n
    return images, values


def _pieces(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, stop) of successive rows that have at most `_CELLS` codes together, or one row."""
    first = 0
    while first < len(ends) - 1:
        stop = max(first + 1, int(np.searchsorted(ends, ends[first] + _CELLS, side="right")) - 1)
        yield first, stop
        first = stop


def _read(folder: Path, name: str, start: int, stop: int) -> np.ndarray:
    """Numbers start … stop - 1 of a vector on disk, read and not mapped: nothing of it stays."""
    with (folder / f"{name}.npy").open("rb") as handle:
        np.lib.format.read_magic(handle)
        _, _, dtype = np.lib.format.read_array_header_1_0(handle)
        handle.seek(int(start) * dtype.itemsize, os.SEEK_CUR)
        return np.fromfile(handle, dtype, int(stop - start))


class Codes:
    """The codes of one site: `shape` (n_images, d_sae); rows and columns without densifying."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "codes.json").is_file():
            raise UserInputError(
                f"there are no codes at {folder}", "make them: dermaudit fit --run RUN"
            )
        meta = read_json(folder / "codes.json", "codes")
        self.site: str = meta["site"]
        self.shape: tuple[int, int] = tuple(meta["shape"])
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        self.indptr, self.indices, self.values = (arrays[name] for name in _ARRAYS[:3])
        self.csc_indptr, self.csc_indices, self.csc_values = (arrays[name] for name in _ARRAYS[3:])
        token_file = folder / "argmax.npy"
        self.argmax = np.load(token_file, mmap_mode="r") if token_file.is_file() else None

    def column(self, latent: int) -> np.ndarray:
        """Activations of one latent over all images, dense (n,) float32."""
        out = np.zeros(self.shape[0], dtype=np.float32)
        span = slice(self.csc_indptr[latent], self.csc_indptr[latent + 1])
        out[self.csc_indices[span]] = self.csc_values[span]
        return out

    def row(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """(latents, values) that fire in one image."""
        span = slice(self.indptr[image], self.indptr[image + 1])
        return np.asarray(self.indices[span]), np.asarray(self.values[span])

    def n_active(self) -> np.ndarray:
        """In how many images each latent fires: (d_sae,)."""
        return np.diff(self.csc_indptr)

    def csr(self):
        """Return the codes as a sparse matrix (images, latents)."""
        from scipy.sparse import csr_matrix

        return csr_matrix((self.values, self.indices, self.indptr), shape=self.shape)
