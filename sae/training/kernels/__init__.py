"""The arithmetic of the sparse training step, once for each kind of machine.

Every module has the same functions (tests/sae/test_sae_kernels.py compares them):

- `encode_rows`, `encode_batch`: the product of the encoder in chunks of rows, each searched for its
  largest entries while it is in the cache; the dense code never exists.
- `keep_top`: which entries of a matrix are among the k largest of their row.
- `decode`: partial reconstructions, their squared errors, and what the gradient of an entry needs.
- `weight_gradients`: the outer products of an entry and its row, summed by latent.
- `minus`, `lengths`, `weighted_sum`, `least_key`: small operations, which torch runs in threads of
  OpenMP (see `threads`).

`cpu` uses numba, `plain` torch alone, `gpu` Triton. `pick(tensor)` returns the module for a tensor.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from types import ModuleType

import torch

FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Code:
    """Sparse rows (CSR): row i holds entries `start[i]:start[i+1]`, its latents ascending.

    `start` (n_rows + 1,) int64, `latents` (n,) int32, `values` (n,) pre-activations.
    """

    start: torch.Tensor
    latents: torch.Tensor
    values: torch.Tensor

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return len(self.start) - 1

    def rows(self) -> torch.Tensor:
        """Return the row of each entry, (n,) int64."""
        index = torch.arange(self.n_rows, device=self.start.device)
        return index.repeat_interleave(self.start.diff(), output_size=len(self.latents))

    def by_latent(self, n_latents: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (start (n_latents + 1,), order (n,)): entries grouped by latent, rows ascending."""
        counts = torch.bincount(self.latents, minlength=n_latents)
        start = torch.zeros(n_latents + 1, dtype=torch.int64, device=self.start.device)
        torch.cumsum(counts, 0, out=start[1:])
        return start, torch.argsort(self.latents, stable=True)


@functools.cache
def present(package: str) -> bool:
    """Return whether the package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def pick(tensor: torch.Tensor) -> ModuleType:
    """Return the module of kernels for the device and dtype of a tensor."""
    if tensor.dtype in FLOATS:
        if tensor.device.type == "cpu" and present("numba"):
            from . import cpu

            return cpu
        if tensor.device.type == "cuda" and present("triton"):
            from . import gpu

            return gpu
    from . import plain

    return plain


def chunk_rows(n_rows: int, n_columns: int, lanes: int = 1, most: int = 1 << 22) -> int:
    """Return the rows of an encoder chunk: `most` entries (16 MB of float32), 256 to 2048 rows.

    With fewer rows, reading the weights takes longer than the product; this is accepted (down to 64 rows)
    if all of `lanes` threads get the same number of chunks. All chunks but the last have the same size, a
    multiple of 32 rows, with which MKL gives the same bits as one product of all rows.
    """
    parts = -(-n_rows // max(256, min(2048, most // max(1, n_columns))))
    if n_rows >= 64 * lanes:
        parts = -(-parts // lanes) * lanes
    return max(1, n_rows) if parts <= 1 else -(-n_rows // (32 * parts)) * 32
