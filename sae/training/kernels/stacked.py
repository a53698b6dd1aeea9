"""Whole training steps of several small SAEs in one compiled call: a thread takes some of the SAEs.

Where a step takes a millisecond, more than half of it would be the calls between the kernels of `cpu.py`, and
one SAE would be too little work for two threads. The formulas are those of `sparse_step.py` and `adam.py`.
Matrix products are numpy's inside compiled code, which are those of the BLAS of scipy, in one thread.
"""

from __future__ import annotations

import numpy as np

from .loops import (
    adam,
    add_rows,
    block_sums,
    compiled,
    decode_rows,
    group,
    lengths,
    minus,
    product,
    square_sums,
    sum_outer,
)
from .searches import keep_above, kth_largest, pack, strips, take_above, top_mask, top_rows

MARGIN, PASSING = 1.4, 256  # as in batch_topk.py
_BLOCK = 1 << 16  # numbers in a partial sum of the norm


@compiled
def largest_of_batch(pre, bias, scale, n_kept):
    """Return (counts (n,), latents, values) of the n_kept largest keys of pre (n, h), which are positive.

    They are looked for above an estimate of the MARGIN · n_kept-th largest (`batch_topk.py`), and among all
    entries if too few are above it.
    """
    n, h = pre.shape
    zero = pre.dtype.type(0)
    if n_kept == 0:
        return np.zeros(n, np.int64), np.empty(0, np.int32), np.empty(0, pre.dtype)
    fraction = MARGIN * n_kept / (n * h)
    floor = zero
    if fraction < 0.25:
        width = min(h, max(8, int(PASSING / (fraction * n))))
        sample = np.empty(n * width, pre.dtype)
        strips(pre, bias, scale, width, sample)
        floor = kth_largest(sample, len(sample), int(fraction * len(sample)) + 1)
    expected = min(h, int(1.25 * fraction * h) + 1)
    counts, latents, values, keys = take_above(pre, bias, scale, floor, expected, 0, n)
    if len(keys) < n_kept and floor > 0:
        counts, latents, values, keys = take_above(pre, bias, scale, zero, expected, 0, n)
    if len(keys) <= n_kept:
        return counts, latents, values
    held = keys.copy()
    least = kth_largest(held, len(held), n_kept)
    spare = np.int64(n_kept)
    for p in range(len(keys)):
        spare -= keys[p] > least
    last, _ = keep_above(counts, latents, values, keys, least, spare)
    return counts, latents[:last], values[:last]


@compiled
def largest_of_rows(pre, bias, scale, k, unit):
    """Return (counts (n,), latents, values) of the k largest keys of each row of pre (n, h)."""
    n = len(pre)
    wide, floats = np.empty((n, k), np.int32), np.empty((n, k), pre.dtype)
    counts, start = np.empty(n, np.int64), np.zeros(n + 1, np.int64)
    top_rows(pre, bias, scale, k, unit, wide, floats, counts, 0, n)
    start[1:] = np.cumsum(counts)
    latents, values = np.empty(start[-1], np.int32), np.empty(start[-1], pre.dtype)
    pack(counts, start, wide, floats, latents, values, 0, n)
    return counts, latents, values


@compiled
def add_aux(dead, pre, scale, decoder, left, inputs, coefficient, unit, gradients):
    """Add the gradients of AuxK (arXiv 2406.04093), and return its loss.

    `dead` (m,) latents with pre-activations pre (n, m) reconstruct −left (n, d), at most d / 2 in a row.
    """
    to_encoder, to_bias, to_decoder = gradients
    n, d = left.shape
    most, m = d // 2, len(dead)
    factor = coefficient * min(m / most, 1.0) / n
    code, kept = pre, np.ones(pre.shape, np.bool_)
    if m > most:
        top_mask(pre * scale, most, unit, kept, 0, n)
        code = pre * kept
    weights = np.empty((m, d), pre.dtype)
    for j in range(m):
        weights[j] = decoder[dead[j]]
    error = np.dot(code, weights)
    loss, twice = 0.0, pre.dtype.type(2 * factor)
    for i in range(n):
        row, other = error[i], left[i]
        for j in range(d):
            row[j] += other[j]
        loss += product(row, row)
        for j in range(d):
            row[j] *= twice
    pull = np.dot(error, weights.T)
    bias_part = np.zeros(m, pre.dtype)
    for i in range(n):
        row, kept_of_row = pull[i], kept[i]
        for j in range(m):
            row[j] = row[j] if kept_of_row[j] else 0
            bias_part[j] += row[j]
    encoder_part, decoder_part = np.dot(pull.T, inputs), np.dot(code.T, error)
    for j in range(m):
        one, two = to_encoder[dead[j]], to_decoder[dead[j]]
        for i in range(d):
            one[i] += encoder_part[j, i]
            two[i] += decoder_part[j, i]
        to_bias[dead[j]] += bias_part[j]
    return factor * loss


@compiled
def step_of_one(x, weights, moments, counters, settings, shape, edges, unit):
    """Take one training step of one SAE on rows x (n, d), in place.

    `weights` are W_enc (h, d), b_enc, W_dec (h, d) and b_dec, `moments` those of Adam in the same order, first
    and second. `counters` are the samples (h,) since each latent fired, and the sums for the log: loss, l0,
    AuxK, then the loss of each prefix. `settings` are n_kept, lr / (1 − β₁ᵗ), 1 / √(1 − β₂ᵗ), the largest
    norm of a gradient (0: any), the coefficient of AuxK and the dead-latent window; `shape` says whether each
    row selects its own, whether keys are scaled by decoder norms, and whether b_dec is subtracted from x.
    """
    encoder, b_enc, decoder, b_dec = weights
    silent, sums = counters
    n_kept, rate, root, clip, aux_coefficient, dead_window = settings
    per_row, rescale, into_b_dec = shape
    (n, d), h = x.shape, len(encoder)
    number = x.dtype.type
    inputs = x
    if into_b_dec:
        inputs = np.empty_like(x)
        minus(x, b_dec, inputs, 0, n)
    pre = np.dot(inputs, encoder.T)
    scale = np.ones(h, x.dtype)
    if rescale:
        lengths(decoder, scale, 0, h)
    if per_row:
        counts, latents, values = largest_of_rows(pre, b_enc, scale, int(n_kept), unit)
    else:
        counts, latents, values = largest_of_batch(pre, b_enc, scale, int(n_kept))
    start = np.zeros(n + 1, np.int64)
    start[1:] = np.cumsum(counts)

    m = len(edges)
    residuals, squares = np.empty((m, n, d), x.dtype), np.empty((m, n), np.float64)
    dots = np.empty_like(values)
    decode_rows(start, latents, values, decoder, b_dec, x, edges, residuals, squares, dots, 0, n)
    active = np.bincount(latents, minlength=h)
    by_latent = np.zeros(h + 1, np.int64)
    by_latent[1:] = np.cumsum(active)
    ordered, pulls = np.empty_like(values), np.empty_like(dots)
    rows = np.empty(len(latents), np.int32)
    factor = number(2 / n)
    group(start, latents, values, dots, factor, rows, ordered, pulls, by_latent[:-1].copy())
    to_encoder, to_bias = np.empty_like(encoder), np.empty_like(b_enc)
    to_decoder, to_b_dec = np.empty_like(decoder), np.zeros_like(b_dec)
    sum_outer(
        by_latent, rows, ordered, pulls, edges, residuals, inputs, True,
        to_encoder, to_bias, to_decoder, 0, h,
    )  # fmt: skip

    aux = 0.0
    dead = np.flatnonzero(silent > dead_window)
    if len(dead) > 0 and aux_coefficient > 0:
        columns, biases = np.empty((n, len(dead)), x.dtype), b_enc[dead]
        for i in range(n):
            row, column = pre[i], columns[i]
            for j in range(len(dead)):
                column[j] = row[dead[j]] + biases[j]
        aux = add_aux(
            dead, columns, scale[dead], decoder, residuals[m - 1], inputs, aux_coefficient,
            unit, (to_encoder, to_bias, to_decoder),
        )  # fmt: skip
    parts = np.empty((1, d), x.dtype)
    block_sums(np.full(n, factor, x.dtype), residuals[0], n, parts, 0, 1)
    to_b_dec += parts[0]
    if into_b_dec:
        add_rows(to_b_dec, encoder, np.arange(h), -to_bias, 0, h)

    gradients = (to_encoder.ravel(), to_bias, to_decoder.ravel(), to_b_dec)
    scaled = 1.0
    if clip > 0:
        total = 0.0
        for gradient in gradients:
            blocks = np.empty(-(-len(gradient) // _BLOCK), np.float64)
            square_sums(gradient, _BLOCK, blocks, 0, len(blocks))
            total += blocks.sum()
        scaled = min(1.0, clip / (np.sqrt(total) + 1e-6))
    flat = (encoder.ravel(), b_enc, decoder.ravel(), b_dec)
    first, second = moments
    means = (first[0].ravel(), first[1], first[2].ravel(), first[3])
    spreads = (second[0].ravel(), second[1], second[2].ravel(), second[3])
    for parameter, gradient, mean, spread in zip(flat, gradients, means, spreads):  # noqa: B905 - not in numba
        adam(
            parameter, gradient, mean, spread, number(scaled), number(0.9), number(0.999),
            number(rate), number(root), number(1e-8), len(parameter), 0, 1,
        )  # fmt: skip

    for j in range(h):
        silent[j] = 0 if active[j] > 0 else silent[j] + n
    loss = aux
    for g in range(m):
        part = squares[g].sum() / n
        loss += part
        sums[3 + g] += part
    sums[0] += loss
    sums[1] += len(latents) / n
    sums[2] += aux


@compiled
def steps(x, weights, first, second, counters, settings, shape, edges, unit, lo, hi):
    """Take one step of SAEs lo:hi; every array of `step_of_one` has one more axis, for the SAEs, before its own."""
    encoder, b_enc, decoder, b_dec = weights
    silent, sums = counters
    for s in range(lo, hi):
        step_of_one(
            x,
            (encoder[s], b_enc[s], decoder[s], b_dec[s]),
            (
                (first[0][s], first[1][s], first[2][s], first[3][s]),
                (second[0][s], second[1][s], second[2][s], second[3][s]),
            ),
            (silent[s], sums[s]),
            (
                settings[s, 0],
                settings[s, 1],
                settings[s, 2],
                settings[s, 3],
                settings[s, 4],
                settings[s, 5],
            ),
            shape,
            edges,
            unit,
        )
