"""How good a dictionary is, on rows it was not fitted on: FVU, L0, dead latents."""

from __future__ import annotations

import torch

from .model import ThresholdSAE


def fvu(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    """Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − x̄‖², with the vector mean of these rows."""
    x, x_hat = x.double(), x_hat.double()
    total = ((x - x.mean(0)) ** 2).sum()
    return float(((x - x_hat) ** 2).sum() / total) if total > 0 else float("nan")


@torch.no_grad()
def held_out_metrics(sae: ThresholdSAE, rows: torch.Tensor) -> dict[str, float]:
    """`l0` (mean active latents a row), `fvu`, `dead` (share of latents that never fire on `rows`),
    `dense` (share firing in over 10 % of rows), streamed in float64."""
    fired = torch.zeros(sae.d_sae, dtype=torch.float64)
    squares, residual, total = 0.0, 0.0, torch.zeros(sae.d_in, dtype=torch.float64)
    for part in rows.split(4096):
        part = part.float()
        z = sae.encode(part)
        fired += (z > 0).sum(0)
        residual += float(((part - sae.decode(z)).double() ** 2).sum())
        squares += float((part.double() ** 2).sum())
        total += part.double().sum(0)
    n = len(rows)
    variance = squares - float((total**2).sum()) / n
    return {
        "l0": float(fired.sum() / n),
        "fvu": residual / variance,
        "dead": float((fired == 0).double().mean()),
        "dense": float((fired > 0.1 * n).double().mean()),
        "n": n,
    }
