"""The kernels in torch alone, for any device and dtype: the reference of the other two."""

from __future__ import annotations

import torch

from dermaudit.distributed import gather, n_processes, rank

from . import Code, chunk_rows

_GATHERED = 1 << 22  # entries of a gathered (n, d) block in memory at a time


def encode_rows(
    x: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    k: int,
    also: torch.Tensor | None = None,
) -> tuple[Code, torch.Tensor | None]:
    """Select in each row of `x @ weights.T + bias` the k largest positive entries by value · scale.

    x (n, d), weights (h, d), bias and scale (h,) → (Code, the pre-activations of the columns
    `also` (n, len(also)), or None).
    """
    parts, columns = [], []
    for at in _chunks(x, weights):
        pre = torch.addmm(bias, x[at], weights.t())
        if also is not None:
            columns.append(pre[:, also])
        keys, latents = (pre * scale).topk(k, dim=1, sorted=False)
        latents, order = latents.sort(dim=1)
        kept = keys.gather(1, order) > 0
        parts.append((kept.sum(1), latents[kept], pre.gather(1, latents)[kept]))
    counts, latents, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return _code(counts, latents, values), torch.cat(columns) if columns else None


def encode_batch(
    x: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    n_kept: int,
    also: torch.Tensor | None = None,
) -> tuple[Code, torch.Tensor | None]:
    """Select, as `encode_rows` does, the `n_kept` largest positive entries of all processes together.

    Exact in one pass: after each chunk only the `n_kept` largest so far are kept. Of equal entries at the
    last place the first are selected: by rank, then by row, then by latent.
    """
    device = x.device
    keys = torch.empty(0, dtype=x.dtype, device=device)
    rows = torch.empty(0, dtype=torch.int64, device=device)
    latents, values, floor, columns = rows, keys, 0.0, []
    for at in _chunks(x, weights):
        pre = torch.addmm(bias, x[at], weights.t())
        if also is not None:
            columns.append(pre[:, also])
        key = pre * scale
        row, latent = (key > floor).nonzero(as_tuple=True)
        keys = torch.cat([keys, key[row, latent]])
        values = torch.cat([values, pre[row, latent]])
        rows, latents = torch.cat([rows, row + at.start]), torch.cat([latents, latent])
        if len(keys) > n_kept:
            kept, floor = _largest(keys, n_kept)
            keys, rows, latents, values = keys[kept], rows[kept], latents[kept], values[kept]
    if n_processes() > 1:
        kept, _ = _largest(keys, n_kept, of_all=True)
        rows, latents, values = rows[kept], latents[kept], values[kept]
    counts = torch.bincount(rows, minlength=len(x))
    return _code(counts, latents, values), torch.cat(columns) if columns else None


def keep_top(matrix: torch.Tensor, k: int) -> torch.Tensor:
    """Return a mask of the k largest entries of each row: (n, m) → bool (n, m)."""
    kept = torch.zeros_like(matrix, dtype=torch.bool)
    return kept.scatter_(1, matrix.topk(k, dim=1, sorted=False).indices, True)


def decode(
    code: Code, weights: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, edges: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the errors of the nested reconstructions from the latents below each edge.

    code of n rows, weights (h, d), bias (d,), x (n, d), edges ascending, the last one h →
    (sums (m, n, d) of the errors at this edge and all later ones, from which the gradient of an entry of
    that group follows; squares (m,) float64, the squared error at each edge over all rows; dots
    (entries,), the product of the decoder row of an entry and its sum).
    """
    n, d = x.shape
    level = torch.bucketize(code.latents, torch.tensor(edges, device=x.device), right=True)
    rows = code.rows()
    sums = torch.empty(len(edges), n, d, dtype=x.dtype, device=x.device)
    error = bias - x
    for m in range(len(edges)):
        here = level == m if len(edges) > 1 else slice(None)
        error = error + _sum_rows(weights, code.latents[here], rows[here], code.values[here], n)
        sums[m] = error
    squares = torch.stack([part.double().pow(2).sum() for part in sums])
    for m in range(len(edges) - 2, -1, -1):
        sums[m] += sums[m + 1]
    dots = torch.empty_like(code.values)
    for at in _spans(len(dots), d):
        dots[at] = (sums[level[at], rows[at]] * weights[code.latents[at].long()]).sum(1)
    return sums, squares, dots


def weight_gradients(
    code: Code,
    sums: torch.Tensor,
    x: torch.Tensor,
    dots: torch.Tensor,
    factor: float,
    edges: list[int],
    into: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of encoder (h, d), its bias (h,) and decoder (h, d), added to `into` if given.

    They are sums over the entries of a latent of factor · dot · row of x (n, d) (encoder), factor · dot
    (its bias) and factor · value · row of `sums` (decoder); the arguments are as in `decode`.
    """
    m, n, d = sums.shape
    h = edges[-1]
    rows = code.rows()
    level = torch.bucketize(code.latents, torch.tensor(edges, device=x.device), right=True)
    pull = dots * factor
    encoder = _sum_rows(x, rows, code.latents, pull, h)
    bias = torch.zeros(h, dtype=x.dtype, device=x.device).index_add_(0, code.latents, pull)
    decoder = _sum_rows(
        sums.view(m * n, d), level * n + rows, code.latents, code.values * factor, h
    )
    if into is None:
        return encoder, bias, decoder
    return into[0].add_(encoder), into[1].add_(bias), into[2].add_(decoder)


def minus(table: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Return (n, d) − (d,) as a new tensor."""
    return table - row


def lengths(table: torch.Tensor) -> torch.Tensor:
    """Return the 2-norm of each row: (n, d) → (n,)."""
    return table.norm(dim=1)


def weighted_sum(weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return Σ weights[i] · table[i]: (n,), (n, d) → (d,)."""
    return weights @ table


def least_key(code: Code, scale: torch.Tensor) -> torch.Tensor:
    """Return the smallest value · scale of the entries, (); infinity without entries."""
    keys = code.values * scale[code.latents.long()]
    return keys.min() if len(keys) else keys.new_tensor(torch.inf)


def _sum_rows(
    table: torch.Tensor,
    index: torch.Tensor,
    target: torch.Tensor,
    values: torch.Tensor,
    n_targets: int,
) -> torch.Tensor:
    """Return (n_targets, d): Σ values[i] · table[index[i]] in row target[i]."""
    if not len(index):
        return torch.zeros(n_targets, table.shape[1], dtype=table.dtype, device=table.device)
    order = torch.argsort(target, stable=True)
    counts = torch.bincount(target, minlength=n_targets)
    return torch.nn.functional.embedding_bag(
        index[order].long(),
        table,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=values[order],
    )


def _largest(keys: torch.Tensor, n: int, of_all: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (which of the positive keys are among the n largest, the smallest of those).

    With `of_all` among the keys of all processes, none of which has more than n.
    """
    if n == 0:
        return torch.zeros_like(keys, dtype=torch.bool), keys.new_tensor(torch.inf)
    offered = torch.nn.functional.pad(keys, (0, max(0, n - len(keys))))
    least = (gather(offered) if of_all else offered).topk(n, sorted=False).values.min()
    above, equal = keys > least, keys == least
    counts = torch.stack([above.sum(), equal.sum()])[None]
    before, counts = 0, gather(counts) if of_all else counts
    if of_all:
        before = counts[: rank(), 1].sum()
    return above | equal & (equal.cumsum(0) <= n - counts[:, 0].sum() - before), least


def _chunks(x: torch.Tensor, weights: torch.Tensor):
    step = chunk_rows(len(x), len(weights))
    return [slice(at, min(at + step, len(x))) for at in range(0, len(x), step)]


def _spans(n: int, d: int):
    step = max(1, _GATHERED // d)
    return [slice(at, at + step) for at in range(0, n, step)]


def _code(counts: torch.Tensor, latents: torch.Tensor, values: torch.Tensor) -> Code:
    start = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=start[1:])
    return Code(start, latents.int(), values)
