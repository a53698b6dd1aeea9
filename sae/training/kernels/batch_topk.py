"""BatchTopK's selection on a CPU: the n largest entries of many rows, of all processes' rows.

The rows come in chunks, which several threads search side by side: each takes what is above a
guess of its own, made so that about half as many again are taken as will be kept. The n-th largest
of what was taken bounds the n-th largest of all from below, so that a chunk whose guess was below
it has lost nothing; one whose guess was not is searched once more. Other processes are met in the
search for the n-th largest alone: they add up histograms, and no entry is sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dermaudit.distributed import gather, n_processes, rank, total

from . import searches
from .threads import share_out

MARGIN = 1.4  # how many times as many entries as are kept a chunk's guess lets through, at first
_PASSING = 256  # entries of a sample above the guess: their number is then good to 6 %
_DIGIT = 11  # bits of a key that one histogram sorts by


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
    share: float,
    floor: np.floating | None = None,
) -> SelectedEntries:
    """The entries of pre (n, h) above `floor`; without one above a guess, about `share` of them."""
    if floor is None:
        floor = _guess(pre, bias, scale, share)
    expected = min(pre.shape[1], int(1.25 * share * pre.shape[1]) + 1)
    parts = share_out(searches.take_above, len(pre), pre, bias, scale, floor, expected)
    joined = parts[0] if len(parts) == 1 else [np.concatenate(p) for p in zip(*parts, strict=True)]
    return SelectedEntries(floor, *joined)


def nth_largest_key(found: list[SelectedEntries], n_kept: int) -> tuple[np.floating, int]:
    """The n_kept-th largest key, and how many equal to it are among the n_kept; (0, 0) if there
    are fewer keys, which are positive. Keys of all processes, to each the same answer.

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
    """(counts, latents, values) of what is above `floor`, and of the first `spare` equal to it.

    First by rank, then by row, then by latent: what one process with all the rows would take.
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


def _guess(pre: np.ndarray, bias: np.ndarray, scale: np.ndarray, share: float) -> np.floating:
    """About which key `share` of the entries exceed; 0 if that is more than a quarter of them.

    From strips of all rows: rows differ in their length, and latents in how often they fire.
    """
    n, h = pre.shape
    if not 0 < share < 0.25:
        return pre.dtype.type(0)
    width = min(h, max(8, int(_PASSING / (share * n))))
    sample = np.empty(n * width, pre.dtype)
    searches.strips(pre, bias, scale, width, sample)
    return searches.kth_largest(sample, len(sample), int(share * len(sample)) + 1)
