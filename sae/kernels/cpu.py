"""The kernels on a CPU: torch's matrix product, numba's loops (`loops.py`) for what is sparse.

The functions are those of `plain.py`, whose docstrings say shapes; float32 and float64. The same
bits come out for any number of threads, as long as the matrix product gives the same.
"""

from __future__ import annotations

import numpy as np
import torch

from . import Code, chunk_rows, loops
from .buffers import lend
from .shares import share_out


def encode_rows(
    x: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    k: int,
    also: torch.Tensor | None = None,
) -> tuple[Code, torch.Tensor | None]:
    """See `plain.encode_rows`; of equal entries at the k-th place the first are taken."""
    n = len(x)
    latents = np.empty((n, k), np.int32)
    values = np.empty((n, k), _numpy(x).dtype)
    counts = np.empty(n, np.int64)
    columns = None if also is None else x.new_empty(n, len(also))
    for at, pre in _products(x, weights):
        share_out(
            loops.top_rows, len(pre), pre, _numpy(bias), _numpy(scale), k, _unit(values),
            latents[at], values[at], counts[at],
        )  # fmt: skip
        _columns(pre, bias, also, columns, at)
    start = _starts(counts)
    if start[-1] == n * k:
        return _code(start, latents.ravel(), values.ravel()), columns
    packed = np.empty(start[-1], np.int32), np.empty(start[-1], values.dtype)
    share_out(loops.pack, n, counts, start, latents, values, *packed)
    return _code(start, *packed), columns


def encode_batch(
    x: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    n_kept: int,
    also: torch.Tensor | None = None,
) -> tuple[Code, torch.Tensor | None]:
    """See `plain.encode_batch`; of equal entries at the last place the first are taken."""
    n, dtype = len(x), _numpy(x).dtype
    columns = None if also is None else x.new_empty(n, len(also))
    held = np.empty(0, np.int32), np.empty(0, dtype), np.empty(0, dtype)
    start, floor = np.zeros(1, np.int64), dtype.type(0)
    if n_kept == 0:
        floor = dtype.type(np.inf)
    for at, pre in _products(x, weights):
        counts = np.empty(len(pre), np.int64)
        # The bound is searched among what passes the last one: in the first chunk a guess, which
        # is a bound indeed if as many as are kept pass it.
        guess = floor if at.start else _guess(pre, bias, scale, n_kept)
        for bound in (guess, floor):
            given = pre, _numpy(bias), _numpy(scale), bound
            share_out(loops.count_above, len(pre), *given, counts)
            if bound == floor or counts.sum() >= n_kept:
                floor = bound
                break
        more = _starts(counts)
        new = np.empty(more[-1], np.int32), np.empty(more[-1], dtype), np.empty(more[-1], dtype)
        share_out(loops.take_above, len(pre), *given, more, *new)
        _columns(pre, bias, also, columns, at)
        held = tuple(np.concatenate(pair) for pair in zip(held, new, strict=True))
        start = np.concatenate([start, start[-1] + more[1:]])
        if len(held[0]) > n_kept:
            floor, spare = _bound(held[2], n_kept)
            left = loops.keep_above(start, *held, floor, spare)
            held = tuple(part[:left] for part in held)
    return _code(start, *(np.ascontiguousarray(part) for part in held[:2])), columns


def keep_top(matrix: torch.Tensor, k: int) -> torch.Tensor:
    """See `plain.keep_top`."""
    kept = torch.empty_like(matrix, dtype=torch.bool)
    share_out(loops.top_mask, len(matrix), _numpy(matrix), k, kept.numpy())
    return kept


def decode(
    code: Code, weights: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, edges: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `plain.decode`."""
    n, d = x.shape
    sums = x.new_empty(len(edges), n, d)
    squares = np.empty((len(edges), n), np.float64)
    dots = torch.empty_like(code.values)
    start = code.start.numpy()
    share_out(
        loops.decode_rows, n, start, code.latents.numpy(), _numpy(code.values),
        _numpy(weights), _numpy(bias), _numpy(x), np.asarray(edges, np.int64),
        sums.numpy(), squares, dots.numpy(), load=start,
    )  # fmt: skip
    return sums, torch.from_numpy(squares.sum(1)), dots


def weight_gradients(
    code: Code,
    sums: torch.Tensor,
    x: torch.Tensor,
    dots: torch.Tensor,
    factor: float,
    edges: list[int],
    into: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `plain.weight_gradients`."""
    h, d = edges[-1], x.shape[1]
    start, rows, order = _by_latent(code, h)
    places = torch.from_numpy(order)
    values, pulls = code.values[places].mul_(factor), dots[places].mul_(factor)
    fresh = into is None
    if into is None:
        into = lend((h, d), x.dtype), x.new_empty(h), lend((h, d), x.dtype)
    share_out(
        loops.sum_outer, h, start, rows, values.numpy(), pulls.numpy(),
        np.asarray(edges, np.int64), sums.numpy(), _numpy(x), fresh, *(_numpy(t) for t in into),
        load=start + np.arange(h + 1),
    )  # fmt: skip
    return into


def _products(x: torch.Tensor, weights: torch.Tensor):
    """Over chunks of rows (slice, x[slice] @ weights.T); the next array overwrites the last."""
    step = chunk_rows(len(x), len(weights))
    held = x.new_empty(step, len(weights))
    for first in range(0, len(x), step):
        at = slice(first, min(first + step, len(x)))
        yield at, torch.mm(x[at], weights.t(), out=held[: at.stop - first]).numpy()


def _columns(
    pre: np.ndarray,
    bias: torch.Tensor,
    also: torch.Tensor | None,
    columns: torch.Tensor | None,
    at: slice,
) -> None:
    if also is not None:
        torch.index_select(torch.from_numpy(pre), 1, also, out=columns[at])
        columns[at] += bias[also]


def _guess(
    pre: np.ndarray, bias: torch.Tensor, scale: torch.Tensor, n_kept: int
) -> np.floating:
    """About where half as many again as `n_kept` entries of the chunk are larger; 0 if unsure."""
    rows = torch.from_numpy(pre[:: max(1, len(pre) // 16)])
    keys = ((rows + bias) * scale).flatten()
    wanted = int(1.5 * n_kept / pre.size * len(keys)) + 1
    if n_kept == 0 or wanted > len(keys) // 4:
        return pre.dtype.type(0 if n_kept else np.inf)
    value = keys.kthvalue(len(keys) - wanted + 1).values.item()
    return pre.dtype.type(value if value > 0 else 0)


def _bound(keys: np.ndarray, n_kept: int) -> tuple[np.floating, int]:
    """The n_kept-th largest of positive keys, and how many equal to it belong to the n_kept.

    A radix search, 16 bits at a time from the top: two passes for float32, four for float64.
    """
    bits = keys.view(_unit(keys).dtype)
    prefix, left = 0, n_kept
    for shift in range(8 * keys.itemsize - 16, -1, -16):
        bins = np.zeros(65_536, np.int64)
        loops.histogram(bits, shift, prefix, bins)
        above = np.cumsum(bins[::-1])
        place = int(np.searchsorted(above, left))
        left -= int(above[place - 1]) if place else 0
        prefix = (prefix << 16) | (65_535 - place)
    return np.array(prefix, dtype=bits.dtype).view(keys.dtype)[()], left


def _by_latent(code: Code, h: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start (h + 1,), row of each entry, its place in `code`), the entries grouped by latent."""
    latents = code.latents.numpy()
    start = _starts(np.bincount(latents, minlength=h))
    rows, order = np.empty(len(latents), np.int32), np.empty(len(latents), np.int64)
    loops.group(latents, code.start.numpy(), rows, order, start[:-1].copy())
    return start, rows, order


def _unit(floats: np.ndarray) -> np.ndarray:
    """A one of the integers that have as many bits."""
    return np.ones(1, np.int32 if floats.itemsize == 4 else np.int64)


def _starts(counts: np.ndarray) -> np.ndarray:
    start = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=start[1:])
    return start


def _code(start: np.ndarray, latents: np.ndarray, values: np.ndarray) -> Code:
    return Code(*(torch.from_numpy(part) for part in (start, latents, values)))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
