"""The selection of BatchTopK on a CPU: the n largest entries of the rows of all processes.

Several threads search chunks of rows: each selects the entries above an estimated bound, which lets
through about 1.4 times as many as are kept. The n-th largest selected entry is a lower bound of the n-th
largest of all, so a chunk with an estimate below it has lost nothing; a chunk with a higher estimate is
searched again. Processes communicate only in the search for the n-th largest: they add histograms, and no
entry is sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dermaudit.distributed import gather, n_processes, rank, total

from . import searches
from .threads import share_out

MARGIN = 1.4  # ratio of selected to kept entries with the first estimate
_PASSING = 256  # entries of a sample above the estimate, which makes it accurate to 6 %
_DIGIT = 11  # bits of a key in one histogram


@dataclass
class SelectedEntries:
    """The entries of a chunk of rows whose keys are above `floor`, in order of row and latent."""

    floor: np.floating
    counts: np.ndarray
    latents: np.ndarray
    values: np.ndarray
    keys: np.ndarray


def select_above(
    pre: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    fraction: float,
    floor: np.floating | None = None,
) -> SelectedEntries:
    """Return the entries of pre (n, h) above `floor`, by default an estimate for a `fraction` of them."""
    if floor is None:
        floor = _estimate(pre, bias, scale, fraction)
    expected = min(pre.shape[1], int(1.25 * fraction * pre.shape[1]) + 1)
    parts = share_out(searches.take_above, len(pre), pre, bias, scale, floor, expected)
    joined = parts[0] if len(parts) == 1 else [np.concatenate(p) for p in zip(*parts, strict=True)]
    return SelectedEntries(floor, *joined)


def nth_largest_key(found: list[SelectedEntries], n_kept: int) -> tuple[np.floating, int]:
    """Return the n_kept-th largest key, and how many keys equal to it are among the n_kept.

    It is (0, 0) if there are fewer keys, which are positive. Keys are those of all processes, and each gets
    the same result.

    A radix search from the top: three histograms for float32, six for float64.
    """
    dtype = found[0].keys.dtype
    bits = [one.keys.view(np.int32 if dtype.itemsize == 4 else np.int64) for one in found]
    prefix, left, shift = 0, n_kept, 8 * dtype.itemsize - 1
    while shift:
        width = min(_DIGIT, shift)
        shift -= width
        bins = np.zeros(1 << width, np.int64)
        for part in bits:
            searches.histogram(part, shift, width, prefix, bins)
        above = np.cumsum(total(torch.from_numpy(bins)).numpy()[::-1])
        if above[-1] < left:
            return dtype.type(0), 0
        place = int(np.searchsorted(above, left))
        left -= int(above[place - 1]) if place else 0
        prefix = (prefix << width) | (len(bins) - 1 - place)
    return np.array([prefix], dtype=bits[0].dtype).view(dtype)[0], left


def keep_largest(
    found: list[SelectedEntries], floor: np.floating, spare: int
) -> tuple[np.ndarray, ...]:
    """Return (counts, latents, values) of keys above `floor`, and of the first `spare` equal to it.

    First by rank, then by row, then by latent, as one process with all rows would select.
    """
    if n_processes() > 1:
        own = sum(int((one.keys == floor).sum()) for one in found)
        before = int(gather(torch.tensor([own]))[: rank()].sum())
        spare = max(0, spare - before)
    kept = []
    for one in found:
        n, spare = searches.keep_above(one.counts, one.latents, one.values, one.keys, floor, spare)
        kept.append((one.counts, one.latents[:n], one.values[:n]))
    return tuple(np.concatenate(part) for part in zip(*kept, strict=True))


def _estimate(pre: np.ndarray, bias: np.ndarray, scale: np.ndarray, fraction: float) -> np.floating:
    """Estimate the key that a `fraction` of the entries exceed; 0 if it is over a quarter.

    It uses strips of all rows, because rows differ in length and latents in how often they are active.
    """
    n, h = pre.shape
    if not 0 < fraction < 0.25:
        return pre.dtype.type(0)
    width = min(h, max(8, int(_PASSING / (fraction * n))))
    sample = np.empty(n * width, pre.dtype)
    searches.strips(pre, bias, scale, width, sample)
    return searches.kth_largest(sample, len(sample), int(fraction * len(sample)) + 1)
