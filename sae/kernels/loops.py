"""The compiled loops of `cpu.py`: each does a range of rows or latents, in one thread, no GIL.

Inner loops run over contiguous floats and are written so that LLVM turns them into vector code:
several rows of a table to one pass over the sum they go into, no branch on a single entry.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Reassociated sums, but NaN and infinity keep their meaning: a NaN must reach the loss.
_MATHS = {"reassoc", "contract", "arcp", "nsz"}


def _compiled(function):
    """Compiled at the first call for a dtype, kept on disk where there is a place for it."""
    options = {"nogil": True, "fastmath": _MATHS, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder that it may write to
        return njit(**options)(function)


@_compiled
def kth_largest(a, n, k):
    """The k-th largest (from 1) of a[:n]; reorders it. Hoare's selection."""
    lo, hi, at = 0, n - 1, k - 1
    while lo < hi:
        pivot = a[(lo + hi) >> 1]
        i, j = lo, hi
        while i <= j:
            while a[i] > pivot:
                i += 1
            while a[j] < pivot:
                j -= 1
            if i <= j:
                a[i], a[j] = a[j], a[i]
                i += 1
                j -= 1
        if at <= j:
            hi = j
        elif at >= i:
            lo = i
        else:
            return a[at]
    return a[at]


@_compiled
def kth_of_few(bits, n, k, trial):
    """The k-th largest (from 1) of bits[:n], none negative; trial (1,) of their dtype.

    Bit by bit from the top, each a count in vector code: without the mispredicted branches that
    are the price of `kth_largest` on a hundred numbers.
    """
    best = trial[0] ^ trial[0]
    for b in range(8 * bits.itemsize - 2, -1, -1):
        trial[0] = best | (1 << b)
        limit = trial[0]
        count = np.int32(0)
        for p in range(n):
            count += np.int32(bits[p] >= limit)
        if count >= k:
            best = limit
    trial[0] = best
    return best


@_compiled
def places(key, above, found):
    """Where key > above, ascending, into found; returns how many.

    Few do: a block of 32 is counted in vector code, and only one that has any is walked through.
    """
    n = 0
    for at in range(0, len(key), 32):
        part = key[at : at + 32]
        count = np.int32(0)
        for j in range(len(part)):
            count += np.int32(part[j] > above)
        if count > 0:
            for j in range(len(part)):
                found[n] = at + j
                n += part[j] > above
    return n


@_compiled
def top_rows(pre, bias, scale, k, unit, latents, values, counts, lo, hi):
    """Rows lo:hi of `encode_rows`: pre (n, h) without bias → latents, values (n, k), counts (n,).

    The k-th largest of the maxima of disjoint groups is a lower bound of the k-th largest entry:
    with four groups to each of the k, what passes it is little more than k. Positive floats are
    in the order of their bits, read as integers, of which `unit` (1,) is a one.
    """
    h = pre.shape[1]
    groups = 4 * k
    grouped = h - h % groups if groups < h else 0
    key = np.empty(h, pre.dtype)
    peak = np.empty(groups, pre.dtype)
    found = np.empty(h + 1, np.int32)
    held = np.empty(h, pre.dtype)
    peak_bits, held_bits = peak.view(unit.dtype), held.view(unit.dtype)
    trial = unit.copy()
    bound = trial.view(pre.dtype)
    zero = pre.dtype.type(0)
    for i in range(lo, hi):
        row = pre[i]
        peak[:] = 0
        for at in range(0, grouped, groups):
            a, b, c = row[at : at + groups], bias[at : at + groups], scale[at : at + groups]
            part = key[at : at + groups]
            for g in range(groups):
                value = (a[g] + b[g]) * c[g]
                part[g] = value
                peak[g] = value if value > peak[g] else peak[g]
        for j in range(grouped, h):
            key[j] = (row[j] + bias[j]) * scale[j]
        above = zero
        if grouped > 0:
            kth_of_few(peak_bits, groups, k, trial)
            above = np.nextafter(bound[0], zero)  # what equals the bound is among the candidates
        n = places(key, above, found)
        spare = n
        if n > k:
            for p in range(n):
                held[p] = key[found[p]]
            kth_of_few(held_bits, n, k, trial)
            floor = bound[0]
            spare = k  # how many entries equal to the k-th there is room for: the first ones
            for p in range(n):
                spare -= key[found[p]] > floor
        else:
            floor = zero  # all of them, and none equals it
        kept = 0
        for p in range(n):
            j = found[p]
            if key[j] < floor:
                continue
            if key[j] == floor:
                if spare == 0:
                    continue
                spare -= 1
            latents[i, kept] = j
            values[i, kept] = row[j] + bias[j]
            kept += 1
        counts[i] = kept


@_compiled
def pack(counts, start, latents, values, out_latents, out_values, lo, hi):
    """The first counts[i] of each row of (n, k) one after the other."""
    for i in range(lo, hi):
        at = start[i]
        for p in range(counts[i]):
            out_latents[at + p] = latents[i, p]
            out_values[at + p] = values[i, p]


@_compiled
def strips(pre, bias, scale, width, out):
    """The keys (≥ 0) of `width` neighbouring columns of each row, of other columns the next row."""
    n, h = pre.shape
    for i in range(n):
        first = (i * width) % (h - width + 1)
        a, b, c = pre[i, first:], bias[first:], scale[first:]
        part = out[i * width : (i + 1) * width]
        for j in range(width):
            value = (a[j] + b[j]) * c[j]
            part[j] = value if value > 0 else 0


@_compiled
def take_above(pre, bias, scale, floor, expected, lo, hi):
    """The entries of rows lo:hi whose key, (pre + bias) · scale, is above `floor`.

    (counts (hi − lo,), latents, values (pre + bias), keys); `expected`: how many a row about.
    """
    h = pre.shape[1]
    room = (hi - lo) * expected + h
    latents, values, keys = np.empty(room, np.int32), np.empty(room, pre.dtype), np.empty(room, pre.dtype)
    counts = np.empty(hi - lo, np.int64)
    found = np.empty(h + 1, np.int32)
    key = np.empty(h, pre.dtype)
    at = 0
    for i in range(lo, hi):
        row = pre[i]
        for j in range(h):
            key[j] = (row[j] + bias[j]) * scale[j]
        n = places(key, floor, found)
        if at + n > room:
            more = np.int64(room) + n
            latents = np.concatenate((latents, np.empty(more, np.int32)))
            values = np.concatenate((values, np.empty(more, pre.dtype)))
            keys = np.concatenate((keys, np.empty(more, pre.dtype)))
            room += more
        for p in range(n):
            j = found[p]
            latents[at + p] = j
            values[at + p] = row[j] + bias[j]
            keys[at + p] = key[j]
        counts[i - lo] = n
        at += n
    return counts, latents[:at], values[:at], keys[:at]


@_compiled
def histogram(bits, shift, width, prefix, bins):
    """Of the numbers whose bits above the last `shift` + `width` are `prefix`: how often each of
    the values of the next `width` bits occurs, added to `bins`.

    The bits of positive floats, read as integers, are in the order of the floats.
    """
    mask = (1 << width) - 1
    for p in range(len(bits)):
        if (bits[p] >> shift) >> width == prefix:
            bins[(bits[p] >> shift) & mask] += 1


@_compiled
def keep_above(counts, latents, values, keys, floor, spare):
    """Drop, in place, what is below `floor`, and what equals it after the first `spare` of them.

    How many are left, and how many equal to `floor` there is room for still.
    """
    at = 0
    first = 0
    for i in range(len(counts)):
        last = first + counts[i]
        begun = at
        for p in range(first, last):
            key = keys[p]
            equal = (key == floor) & (spare > 0)
            latents[at], values[at] = latents[p], values[p]
            at += (key > floor) | equal
            spare -= equal
        counts[i] = at - begun
        first = last
    return at, spare


@_compiled
def top_mask(matrix, k, kept, lo, hi):
    """Rows lo:hi of `keep_top`; of equal entries the first."""
    m = matrix.shape[1]
    held = np.empty(m, matrix.dtype)
    for i in range(lo, hi):
        row, mark = matrix[i], kept[i]
        held[:] = row
        floor = kth_largest(held, m, k)
        spare = k
        for j in range(m):
            mark[j] = row[j] > floor
            spare -= mark[j]
        for j in range(m):
            if spare > 0 and row[j] == floor:
                mark[j] = True
                spare -= 1


@_compiled
def add_rows(total, table, index, values, lo, hi):
    """total += Σ values[p] · table[index[p]] over p in lo:hi."""
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


@_compiled
def product(a, b):
    total = a.dtype.type(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@_compiled
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


@_compiled
def group(start, latents, values, dots, factor, row_of, to_values, to_dots, cursor):
    """Counting sort of the entries by latent; `cursor` where each latent's entries begin.

    Their rows, values · factor and dots · factor, in the new order.
    """
    for i in range(len(start) - 1):
        for p in range(start[i], start[i + 1]):
            at = cursor[latents[p]]
            row_of[at] = i
            to_values[at] = values[p] * factor
            to_dots[at] = dots[p] * factor
            cursor[latents[p]] = at + 1


@_compiled
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


@_compiled
def minus(table, row, out, lo, hi):
    for i in range(lo, hi):
        a, b = table[i], out[i]
        for j in range(len(row)):
            b[j] = a[j] - row[j]


@_compiled
def lengths(table, out, lo, hi):
    for i in range(lo, hi):
        out[i] = np.sqrt(product(table[i], table[i]))


@_compiled
def block_sums(weights, table, block, out, lo, hi):
    """out[i] = Σ weights[p] · table[p] over block i of `block` rows."""
    for i in range(lo, hi):
        total = out[i]
        total[:] = 0
        for p in range(i * block, min(len(table), (i + 1) * block)):
            row, u = table[p], weights[p]
            for j in range(len(total)):
                total[j] += u * row[j]


@_compiled
def least_key(latents, values, scale, lo, hi):
    """The smallest value · scale of entries lo:hi; infinity for none."""
    least = values.dtype.type(np.inf)
    for p in range(lo, hi):
        key = values[p] * scale[latents[p]]
        least = key if key < least else least
    return least


@_compiled
def square_sums(a, block, out, lo, hi):
    """out[i] = Σ a² over block i of `block` numbers, in float64 over stretches of 1024."""
    for i in range(lo, hi):
        total = 0.0
        end = min(len(a), (i + 1) * block)
        for at in range(i * block, end, 1024):
            part = a[at : min(at + 1024, end)]
            total += product(part, part)
        out[i] = total


@_compiled
def adam(param, grad, mean, square, factor, beta1, beta2, step, root, eps, block, lo, hi):
    """Blocks lo:hi of one Adam step (arXiv 1412.6980) on flat arrays; `factor` multiplies grad.

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
