"""The compiled sums of `cpu.py`: each processes a range of rows or latents, in one thread without GIL.

Inner loops run over contiguous floats so that LLVM vectorises them: one pass over a sum adds several rows
of a table, and there is no branch on a single entry.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Reassociated sums, but NaN and infinity keep their meaning: a NaN must reach the loss.
_MATHS = {"reassoc", "contract", "arcp", "nsz"}


def compiled(function):
    """Compile a function at the first call for a dtype; the code is cached on disk if possible.

    It is inlined where compiled code calls it. Otherwise a process that has just compiled it would call the code of
    the function alone, and a process that reads the caller from the cache a copy that was optimised with the caller,
    whose reassociated sums are rounded differently.
    """
    options = {"nogil": True, "fastmath": _MATHS, "error_model": "numpy", "forceinline": True}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder that it may write to
        return njit(**options)(function)


@compiled
def add_rows(total, table, index, values, lo, hi):
    """Add Σ values[p] · table[index[p]] over p in lo:hi to total."""
    d = len(total)
    p = lo
    while p + 4 <= hi:
        a, b, c, e = table[index[p]], table[index[p + 1]], table[index[p + 2]], table[index[p + 3]]
        u, v, w, z = values[p], values[p + 1], values[p + 2], values[p + 3]
        for j in range(d):
            total[j] += u * a[j] + v * b[j] + w * c[j] + z * e[j]
        p += 4
    while p < hi:
        a, u = table[index[p]], values[p]
        for j in range(d):
            total[j] += u * a[j]
        p += 1


@compiled
def product(a, b):
    """Return the product Σ a · b of two rows."""
    total = a.dtype.type(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@compiled
def decode_rows(start, latents, values, table, bias, x, edges, sums, squares, dots, lo, hi):
    """Rows lo:hi of `decode`: sums (m, n, d), squares (m, n), dots (entries,).

    Both passes over a row's decoder rows in one go, the second time out of the nearest cache.
    """
    d = x.shape[1]
    m = len(edges)
    cuts = np.empty(m + 1, np.int64)
    error = np.empty(d, x.dtype)
    for i in range(lo, hi):
        row = x[i]
        for j in range(d):
            error[j] = bias[j] - row[j]
        cuts[0] = start[i]
        for g in range(m):
            last = start[i + 1]
            if g + 1 < m:
                last = cuts[g]
                while last < start[i + 1] and latents[last] < edges[g]:
                    last += 1
            cuts[g + 1] = last
            add_rows(error, table, latents, values, cuts[g], last)
            squares[g, i] = product(error, error)
            out = sums[g, i]
            for j in range(d):
                out[j] = error[j]
        for g in range(m - 1, -1, -1):
            total = sums[g, i]
            if g + 1 < m:
                later = sums[g + 1, i]
                for j in range(d):
                    total[j] += later[j]
            for p in range(cuts[g], cuts[g + 1]):
                dots[p] = product(total, table[latents[p]])


@compiled
def group(start, latents, values, dots, factor, row_of, to_values, to_dots, cursor):
    """Sort the entries by latent (counting sort); `cursor` is the first place of each latent.

    Writes their rows, values · factor and dots · factor in the new order.
    """
    for i in range(len(start) - 1):
        for p in range(start[i], start[i + 1]):
            at = cursor[latents[p]]
            row_of[at] = i
            to_values[at] = values[p] * factor
            to_dots[at] = dots[p] * factor
            cursor[latents[p]] = at + 1


@compiled
def sum_outer(start, rows, values, pulls, edges, sums, x, fresh, encoder, bias, decoder, lo, hi):
    """Latents lo:hi of `weight_gradients`; entries grouped by latent, already times the factor."""
    level = 0
    for h in range(lo, hi):
        while h >= edges[level]:
            level += 1
        to_encoder, to_decoder = encoder[h], decoder[h]
        total = x.dtype.type(0)
        if fresh:
            to_encoder[:] = 0
            to_decoder[:] = 0
        else:
            total = bias[h]
        first, last = start[h], start[h + 1]
        add_rows(to_decoder, sums[level], rows, values, first, last)
        add_rows(to_encoder, x, rows, pulls, first, last)
        for p in range(first, last):
            total += pulls[p]
        bias[h] = total


@compiled
def minus(table, row, out, lo, hi):
    """Write table − row for rows lo:hi."""
    for i in range(lo, hi):
        a, b = table[i], out[i]
        for j in range(len(row)):
            b[j] = a[j] - row[j]


@compiled
def lengths(table, out, lo, hi):
    """Write the 2-norms of rows lo:hi."""
    for i in range(lo, hi):
        out[i] = np.sqrt(product(table[i], table[i]))


@compiled
def block_sums(weights, table, block, out, lo, hi):
    """Write out[i] = Σ weights[p] · table[p] over block i of `block` rows."""
    for i in range(lo, hi):
        total = out[i]
        total[:] = 0
        for p in range(i * block, min(len(table), (i + 1) * block)):
            row, u = table[p], weights[p]
            for j in range(len(total)):
                total[j] += u * row[j]


@compiled
def least_key(latents, values, scale, lo, hi):
    """Return the smallest value · scale of entries lo:hi; infinity without entries."""
    least = values.dtype.type(np.inf)
    for p in range(lo, hi):
        key = values[p] * scale[latents[p]]
        least = key if key < least else least
    return least


@compiled
def square_sums(a, block, out, lo, hi):
    """Write out[i] = Σ a² over block i of `block` numbers, in float64 over parts of 1024."""
    for i in range(lo, hi):
        total = 0.0
        end = min(len(a), (i + 1) * block)
        for at in range(i * block, end, 1024):
            part = a[at : min(at + 1024, end)]
            total += product(part, part)
        out[i] = total


@compiled
def adam(param, grad, mean, square, factor, beta1, beta2, step, root, eps, block, lo, hi):
    """Take one Adam step (arXiv 1412.6980) on blocks lo:hi of flat arrays; `factor` multiplies grad.

    step = lr / (1 − β₁ᵗ), root = 1 / √(1 − β₂ᵗ).
    """
    one = param.dtype.type(1)
    begin, end = lo * block, min(len(param), hi * block)
    p, g, m, v = param[begin:end], grad[begin:end], mean[begin:end], square[begin:end]
    for j in range(end - begin):
        pull = g[j] * factor
        m[j] = m[j] + (one - beta1) * (pull - m[j])
        v[j] = beta2 * v[j] + (one - beta2) * pull * pull
        p[j] = p[j] - step * m[j] / (np.sqrt(v[j]) * root + eps)
