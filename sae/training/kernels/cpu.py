"""The kernels on a CPU: products by torch, sparse operations by numba (`searches.py`, `loops.py`).

The functions are those of `plain.py`, whose docstrings give the shapes; float32 and float64. The result
has the same bits for any number of threads, if the matrix product has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dermaudit.distributed import n_processes, total

from . import Code, chunk_rows, loops, searches
from . import batch_topk as batch
from .buffers import lend
from .threads import each, lanes, share_out

_BLOCK = 256  # rows in a partial sum: fixed, so that it does not depend on the threads


def encode_rows(
    x: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    k: int,
    also: torch.Tensor | None = None,
) -> tuple[Code, torch.Tensor | None]:
    """See `plain.encode_rows`; of equal entries at the k-th place the first are selected."""
    n = len(x)
    latents = np.empty((n, k), np.int32)
    values = np.empty((n, k), _numpy(x).dtype)
    counts = np.empty(n, np.int64)
    columns = None if also is None else x.new_empty(n, len(also))
    given = _numpy(bias), _numpy(scale), k, _unit(values)

    def search(at: slice, pre: np.ndarray) -> None:
        share_out(searches.top_rows, len(pre), pre, *given, latents[at], values[at], counts[at])
        _columns(pre, bias, also, columns, at)

    _products(x, weights, _spans(x, weights), search)
    start = _starts(counts)
    if start[-1] == n * k:
        return _code(start, latents.ravel(), values.ravel()), columns
    packed = np.empty(start[-1], np.int32), np.empty(start[-1], values.dtype)
    share_out(searches.pack, n, counts, start, latents, values, *packed)
    return _code(start, *packed), columns


def encode_batch(
    x: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    n_kept: int,
    also: torch.Tensor | None = None,
) -> tuple[Code, torch.Tensor | None]:
    """See `plain.encode_batch`; of equal entries at the last place the first are selected."""
    dtype = _numpy(x).dtype
    if n_kept == 0:
        columns = None if also is None else torch.addmm(bias[also], x, weights[also].t())
        nothing = np.empty(0, np.int32), np.empty(0, dtype)
        return _code(np.zeros(len(x) + 1, np.int64), *nothing), columns
    columns = None if also is None else x.new_empty(len(x), len(also))
    given = _numpy(bias), _numpy(scale)
    fraction = batch.MARGIN * n_kept / (len(x) * n_processes() * len(weights))
    floor = None

    def search(at: slice, pre: np.ndarray) -> batch.SelectedEntries:
        _columns(pre, bias, also, columns, at)
        return batch.select_above(pre, *given, fraction, floor)

    spans = _spans(x, weights)
    found = dict(enumerate(_products(x, weights, spans, search)))
    while True:
        least, spare = batch.nth_largest_key(list(found.values()), n_kept)
        again = [i for i, one in found.items() if 0 < one.floor >= least]
        if not total(torch.tensor(len(again))):
            break
        if least:
            floor = np.nextafter(
                least, dtype.type(0)
            )  # entries equal to the bound must be selected too
        else:
            fraction *= 4
        found |= zip(again, _products(x, weights, [spans[i] for i in again], search), strict=True)
    counts, *parts = batch.keep_largest(list(found.values()), least, spare)
    return _code(_starts(counts), *parts), columns


def keep_top(matrix: torch.Tensor, k: int) -> torch.Tensor:
    """See `plain.keep_top`."""
    kept = torch.empty_like(matrix, dtype=torch.bool)
    values = _numpy(matrix)
    share_out(searches.top_mask, len(matrix), values, k, _unit(values), kept.numpy())
    return kept


def decode(
    code: Code, weights: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, edges: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `plain.decode`."""
    n, d = x.shape
    sums = lend((len(edges), n, d), x.dtype)
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
    latents = code.latents.numpy()
    start = _starts(np.bincount(latents, minlength=h))
    values, pulls = np.empty_like(code.values.numpy()), np.empty_like(dots.numpy())
    rows = np.empty(len(latents), np.int32)
    loops.group(
        code.start.numpy(), latents, _numpy(code.values), dots.numpy(), values.dtype.type(factor),
        rows, values, pulls, start[:-1].copy(),
    )  # fmt: skip
    fresh = into is None
    if into is None:
        into = lend((h, d), x.dtype), x.new_empty(h), lend((h, d), x.dtype)
    share_out(
        loops.sum_outer, h, start, rows, values, pulls,
        np.asarray(edges, np.int64), sums.numpy(), _numpy(x), fresh, *(_numpy(t) for t in into),
        load=start + np.arange(h + 1),
    )  # fmt: skip
    return into


def minus(table: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """See `plain.minus`."""
    out = lend(tuple(table.shape), table.dtype)
    share_out(
        loops.minus, len(table), _numpy(table), _numpy(row), out.numpy(), numbers=table.shape[1]
    )
    return out


def lengths(table: torch.Tensor) -> torch.Tensor:
    """See `plain.lengths`."""
    out = table.new_empty(len(table))
    share_out(loops.lengths, len(table), _numpy(table), out.numpy(), numbers=table.shape[1])
    return out


def weighted_sum(weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """See `plain.weighted_sum`."""
    parts = table.new_empty(-(-len(table) // _BLOCK), table.shape[1])
    given = _numpy(weights), _numpy(table), _BLOCK, parts.numpy()
    share_out(loops.block_sums, len(parts), *given, numbers=_BLOCK * table.shape[1])
    return parts.sum(0)


def least_key(code: Code, scale: torch.Tensor) -> torch.Tensor:
    """See `plain.least_key`."""
    given = code.latents.numpy(), _numpy(code.values), _numpy(scale)
    parts = share_out(loops.least_key, len(code.latents), *given, numbers=3)
    return torch.tensor(min(parts, default=np.inf), dtype=scale.dtype)


def _spans(x: torch.Tensor, weights: torch.Tensor) -> list[slice]:
    step = chunk_rows(len(x), len(weights), lanes())
    return [slice(at, min(at + step, len(x))) for at in range(0, len(x), step)]


def _products(
    x: torch.Tensor,
    weights: torch.Tensor,
    spans: list[slice],
    search: Callable[[slice, np.ndarray], Any],
) -> list[Any]:
    """Return `search(span, x[span] @ weights.T)` of each span of rows; the array is reused afterwards."""
    rows = max((at.stop - at.start for at in spans), default=0)
    idle: list[torch.Tensor] = []

    def one(at: slice) -> Any:
        try:
            held = idle.pop()
        except IndexError:
            held = lend((rows, len(weights)), x.dtype)
        pre = torch.mm(x[at], weights.t(), out=held[: at.stop - at.start])
        result = search(at, pre.numpy())
        idle.append(held)
        return result

    return each(one, spans)


def _columns(
    pre: np.ndarray,
    bias: torch.Tensor,
    also: torch.Tensor | None,
    columns: torch.Tensor | None,
    at: slice,
) -> None:
    if also is not None and columns is not None:
        torch.index_select(torch.from_numpy(pre), 1, also, out=columns[at])
        columns[at] += bias[also]


def _unit(floats: np.ndarray) -> np.ndarray:
    """Return a 1 of the integer type with as many bits."""
    return np.ones(1, np.int32 if floats.itemsize == 4 else np.int64)


def _starts(counts: np.ndarray) -> np.ndarray:
    start = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=start[1:])
    return start


def _code(start: np.ndarray, latents: np.ndarray, values: np.ndarray) -> Code:
    return Code(*(torch.from_numpy(part) for part in (start, latents, values)))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
