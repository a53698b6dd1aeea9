"""Image codes of a whole data set, sparse both ways: CSR by image, CSC by latent, memory-mapped.

A pooled site gives one code an image; a patch site gives the maximum over its tokens, and keeps
which token it was (`argmax`), so that a concept can be pointed at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dermaudit.errors import UserInputError
from dermaudit.files import read_json, write_json, write_npy

from .model import ThresholdSAE, TopKSAE

_ARRAYS = ("indptr", "indices", "values", "csc_indptr", "csc_indices", "csc_values")


@torch.no_grad()
def encode_images(sae: ThresholdSAE | TopKSAE, acts: np.ndarray, chunk: int = 256):
    """Yield (dense codes (b, d_sae) float32, argmax token (b, d_sae) or None) for chunks of images."""
    for start in range(0, len(acts), chunk):
        part = torch.from_numpy(np.ascontiguousarray(acts[start : start + chunk])).float()
        if part.ndim == 2:
            yield sae.encode(part).numpy(), None
        else:
            value, token = sae.encode(part).max(dim=1)
            yield value.numpy(), token.numpy()


def write_codes(folder: Path, sae: ThresholdSAE | TopKSAE, acts: np.ndarray, site: str) -> list[Path]:
    """Encode `acts` (n, d) or (n, tokens, d) and write the arrays; returns the files."""
    from scipy.sparse import csr_matrix

    parts, tokens = [], []
    for dense, token in encode_images(sae, acts):
        sparse = csr_matrix(dense)
        parts.append(sparse)
        if token is not None:
            row = np.repeat(np.arange(len(dense)), np.diff(sparse.indptr))
            tokens.append(token[row, sparse.indices].astype(np.uint16))
    lengths = np.concatenate([np.diff(part.indptr) for part in parts])
    csr = csr_matrix(
        (
            np.concatenate([part.data for part in parts]),
            np.concatenate([part.indices for part in parts]),
            np.concatenate([[0], lengths.cumsum()]),
        ),
        shape=(len(acts), sae.d_sae),
    )
    csc = csr.tocsc()
    arrays = {
        "indptr": csr.indptr.astype(np.int64),
        "indices": csr.indices.astype(np.int32),
        "values": csr.data.astype(np.float32),
        "csc_indptr": csc.indptr.astype(np.int64),
        "csc_indices": csc.indices.astype(np.int32),
        "csc_values": csc.data.astype(np.float32),
    }
    if tokens:
        arrays["argmax"] = np.concatenate(tokens)
    files = []
    for name, array in arrays.items():
        write_npy(folder / f"{name}.npy", array)
        files.append(folder / f"{name}.npy")
    write_json(folder / "codes.json", {"format_version": 1, "shape": list(csr.shape), "site": site})
    return [folder / "codes.json", *files]


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
        from scipy.sparse import csr_matrix

        return csr_matrix((self.values, self.indices, self.indptr), shape=self.shape)
