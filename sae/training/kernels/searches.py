"""The compiled searches of `cpu.py`: the largest entries of a row, or the entries above a bound.

As in `loops.py`, a call processes a range of rows, with few branches on a single entry.
"""

from __future__ import annotations

import numpy as np

from .loops import compiled


@compiled
def kth_largest(a, n, k):
    """Return the k-th largest (from 1) of a[:n], which is reordered (Hoare's selection)."""
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


@compiled
def kth_of_few(bits, n, k, trial):
    """Return the k-th largest (from 1) of bits[:n], none negative; trial (1,) has their dtype.

    Bit by bit from the top, each a count in vector code, without the mispredicted branches that slow
    down `kth_largest` on a hundred numbers.
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


@compiled
def places(key, above, found):
    """Write the indices with key > above, ascending, into found; return their number.

    They are few: blocks of 32 are counted in vector code, and only blocks with any are searched.
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


@compiled
def top_rows(pre, bias, scale, k, unit, latents, values, counts, lo, hi):
    """Do rows lo:hi of `encode_rows`: pre (n, h) without bias → latents, values (n, k), counts (n,).

    The k-th largest of the maxima of disjoint groups is a lower bound of the k-th largest entry; with 4 k
    groups, little more than k entries pass it. Positive floats are ordered as their bits, read as integers,
    of which `unit` (1,) is a 1.
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
            above = np.nextafter(bound[0], zero)  # entries equal to the bound are candidates
        n = places(key, above, found)
        spare = n
        if n > k:
            for p in range(n):
                held[p] = key[found[p]]
            kth_of_few(held_bits, n, k, trial)
            floor = bound[0]
            spare = k  # number of entries equal to the k-th that are selected: the first ones
            for p in range(n):
                spare -= key[found[p]] > floor
        else:
            floor = zero  # all are selected, and none equals it
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


@compiled
def pack(counts, start, latents, values, out_latents, out_values, lo, hi):
    """Write the first counts[i] of each row of (n, k) one after the other."""
    for i in range(lo, hi):
        at = start[i]
        for p in range(counts[i]):
            out_latents[at + p] = latents[i, p]
            out_values[at + p] = values[i, p]


@compiled
def strips(pre, bias, scale, width, out):
    """Write the keys (≥ 0) of `width` neighbouring columns of each row; the next row has other columns."""
    n, h = pre.shape
    for i in range(n):
        first = (i * width) % (h - width + 1)
        a, b, c = pre[i, first:], bias[first:], scale[first:]
        part = out[i * width : (i + 1) * width]
        for j in range(width):
            value = (a[j] + b[j]) * c[j]
            part[j] = value if value > 0 else 0


@compiled
def take_above(pre, bias, scale, floor, expected, lo, hi):
    """Select the entries of rows lo:hi whose key, (pre + bias) · scale, is above `floor`.

    Returns (counts (hi − lo,), latents, values (pre + bias), keys); about `expected` for each row.
    """
    h = pre.shape[1]
    room = (hi - lo) * expected + h
    latents, values, keys = (
        np.empty(room, np.int32),
        np.empty(room, pre.dtype),
        np.empty(room, pre.dtype),
    )
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


@compiled
def histogram(bits, shift, width, prefix, bins):
    """Count the values of `width` bits above the last `shift` bits, and add the counts to `bins`.

    Only numbers whose higher bits are `prefix` count. The bits of positive floats, read as integers, are
    in the order of the floats.
    """
    mask = (1 << width) - 1
    for p in range(len(bits)):
        if (bits[p] >> shift) >> width == prefix:
            bins[(bits[p] >> shift) & mask] += 1


@compiled
def keep_above(counts, latents, values, keys, floor, spare):
    """Drop, in place, entries below `floor`, and entries equal to it after the first `spare`.

    Returns the number that is left, and how much of `spare` is left.
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


@compiled
def top_mask(matrix, k, unit, kept, lo, hi):
    """Do rows lo:hi of `keep_top`; of equal entries the first are kept. `unit` is that of `top_rows`."""
    m = matrix.shape[1]
    held = np.empty(m, matrix.dtype)
    bits, trial = held.view(unit.dtype), unit.copy()
    bound = trial.view(matrix.dtype)
    for i in range(lo, hi):
        row, mark = matrix[i], kept[i]
        for j in range(m):
            held[j] = row[j] if row[j] > 0 else 0
        kth_of_few(bits, m, k, trial)
        floor = bound[0]
        if floor == 0:  # fewer than k are positive
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
