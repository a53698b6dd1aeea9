"""The kernels on a CUDA device: selection by torch, gathered sums by Triton.

The functions are those of `plain.py`, whose docstrings give the shapes. One program for each row, or
latent, sums its entries in registers: nothing of size (entries, d) is written, and there are no atomics,
so the result has the same bits each time. In the tests Triton's interpreter runs it on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import Code
from .plain import encode_batch, encode_rows, keep_top, least_key, lengths, minus, weighted_sum

__all__ = [
    "decode", "encode_batch", "encode_rows", "keep_top", "least_key", "lengths", "minus",
    "weight_gradients", "weighted_sum",
]  # fmt: skip


@triton.jit
def _decode_row(
    cuts, latents, values, table, bias, x, sums, squares, dots, n, d,
    M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row i: `cuts` (n, M + 1) where its groups of entries begin and end."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    inside = j < d
    error = tl.load(bias + j, inside, 0.0) - tl.load(x + i * d + j, inside, 0.0)
    for g in range(M):
        first = tl.load(cuts + i * (M + 1) + g)
        last = tl.load(cuts + i * (M + 1) + g + 1)
        for p in range(first, last):
            latent = tl.load(latents + p).to(tl.int64)
            error += tl.load(values + p) * tl.load(table + latent * d + j, inside, 0.0)
        tl.store(sums + (g * n + i) * d + j, error, inside)
        tl.store(squares + g * n + i, tl.sum(error * error, 0))
    total = tl.zeros_like(error)
    for back in range(M):
        g = M - 1 - back
        total += tl.load(sums + (g * n + i) * d + j, inside, 0.0)
        tl.store(sums + (g * n + i) * d + j, total, inside)
        first = tl.load(cuts + i * (M + 1) + g)
        last = tl.load(cuts + i * (M + 1) + g + 1)
        for p in range(first, last):
            latent = tl.load(latents + p).to(tl.int64)
            row = tl.load(table + latent * d + j, inside, 0.0)
            tl.store(dots + p, tl.sum(total * row, 0))


@triton.jit
def _sum_latent(
    start, rows, values, pulls, levels, sums, x, encoder, bias, decoder, n, d, factor,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Latent h: its entries begin at start[h]; `levels` (n_latents,) the group it belongs to."""
    h = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    inside = j < d
    base = tl.load(levels + h).to(tl.int64) * n
    first = tl.load(start + h)
    last = tl.load(start + h + 1)
    to_encoder = tl.load(x + j, inside, 0.0) * 0.0
    to_decoder = to_encoder
    to_bias = tl.sum(to_encoder, 0)
    for p in range(first, last):
        row = tl.load(rows + p)
        pull = tl.load(pulls + p)
        to_encoder += pull * tl.load(x + row * d + j, inside, 0.0)
        to_decoder += tl.load(values + p) * tl.load(sums + (base + row) * d + j, inside, 0.0)
        to_bias += pull
    to_encoder *= factor
    to_decoder *= factor
    to_bias *= factor
    if ADD:
        to_encoder += tl.load(encoder + h * d + j, inside, 0.0)
        to_decoder += tl.load(decoder + h * d + j, inside, 0.0)
        to_bias += tl.load(bias + h)
    tl.store(encoder + h * d + j, to_encoder, inside)
    tl.store(decoder + h * d + j, to_decoder, inside)
    tl.store(bias + h, to_bias)


def decode(
    code: Code, weights: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, edges: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `plain.decode`."""
    (n, d), m = x.shape, len(edges)
    cuts = _cuts(code, edges)
    sums, squares = x.new_empty(m, n, d), x.new_empty(m, n)
    dots = torch.empty_like(code.values)
    _decode_row[(n,)](
        cuts, code.latents, code.values, weights, bias, x, sums, squares, dots, n, d,
        M=m, **_shape(d),  # pyright: ignore[reportArgumentType]  # Triton wraps constants itself
    )  # fmt: skip
    return sums, squares.double().sum(1), dots


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
    (n, d), h = x.shape, edges[-1]
    start, order = code.by_latent(h)
    levels = torch.bucketize(
        torch.arange(h, device=x.device), torch.tensor(edges, device=x.device), right=True
    )
    add = into is not None
    if into is None:
        into = x.new_empty(h, d), x.new_empty(h), x.new_empty(h, d)
    _sum_latent[(h,)](
        start, code.rows()[order], code.values[order], dots[order], levels, sums, x, *into,
        n, d, factor, ADD=add, **_shape(d),  # pyright: ignore[reportArgumentType]  # as above
    )  # fmt: skip
    return into


def _cuts(code: Code, edges: list[int]) -> torch.Tensor:
    """Return (n, m + 1) int64: the first entry of each group of each row, and the end of the row."""
    if len(edges) == 1:
        return torch.stack([code.start[:-1], code.start[1:]], 1).contiguous()
    rows, cuts = code.rows(), [code.start[:-1]]
    for edge in edges[:-1]:
        below = torch.bincount(rows[code.latents < edge], minlength=code.n_rows)
        cuts.append(code.start[:-1] + below)
    return torch.stack([*cuts, code.start[1:]], 1).contiguous()


def _shape(d: int) -> dict[str, int]:
    block = triton.next_power_of_2(d)
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 256))}
