"""What an SAE keeps of held-out rows, and how sparsely: FVU, cosine, shrinkage, L0, dead, density.

One pass, sums in float64, kept for each group so that intervals need no second pass.
FVU = Σ‖x − x̂‖² / Σ‖x − x̄‖² with the vector mean x̄ of the same rows: a scalar mean, or none, makes a
dictionary look good that has learned the mean alone (unit embeddings are mostly mean).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.intervals import percentile_interval

from ..store.loader import release
from .figure import bunches, draws, figure, number

if TYPE_CHECKING:
    from ..inference.model import LinearSAE
    from ..store.rows import Rows

_CELLS = 1 << 23  # of a chunk's dense codes: 32 MB
_RELEASED = 65_536  # rows after whose reading mapped memory is given back
_TINY_NORM = 1e-6  # of a row for which the ratio of norms says nothing
DENSE = 0.1  # a latent that fires on a larger share of the rows is called dense
#: Edges of the density histogram, log10 of the share of rows a latent fires on.
DENSITY_EDGES = tuple(float(edge) for edge in np.arange(-6.0, 0.51, 0.5))


def fvu(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    """Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − x̄‖², with the vector mean of these rows."""
    x, x_hat = x.double(), x_hat.double()
    total = ((x - x.mean(0)) ** 2).sum()
    return float(((x - x_hat) ** 2).sum() / total) if total > 0 else float("nan")


class Reconstruction:
    """Sums over rows, their reconstructions and codes; `add` them in any chunks.

    `n_groups`: rows are added with a group number 0 … n_groups - 1. Memory: n_groups · d · 8 bytes.
    """

    def __init__(self, d_in: int, d_sae: int, n_groups: int = 1) -> None:
        self.n = 0
        self.n_not_finite = 0
        self.fired = np.zeros(d_sae, dtype=np.int64)
        self.mass = np.zeros(d_sae)
        self.l0_counts = np.zeros(d_sae + 1, dtype=np.int64)
        self._origin: np.ndarray | None = None  # near the mean: the two sums of FVU do not cancel
        self._total = np.zeros((n_groups, d_in))
        # rows, squares, residual, cosine, shrinkage, rows with a norm, active latents
        self._sums = np.zeros((n_groups, 7))

    def add(
        self, x: torch.Tensor, x_hat: torch.Tensor, z: torch.Tensor, group: np.ndarray | None = None
    ) -> None:
        """x, x_hat (b, d_in), z (b, d_sae), group (b,) int. Rows that are not finite are counted
        and left out."""
        fine = torch.isfinite(x).all(1) & torch.isfinite(x_hat).all(1)
        group = np.zeros(len(x), dtype=np.int64) if group is None else np.asarray(group)
        if not fine.all():
            self.n_not_finite += int((~fine).sum())
            x, x_hat, z, group = x[fine], x_hat[fine], z[fine], group[fine.numpy()]
        if not len(x):
            return
        rows, back = x.double().numpy(), x_hat.double().numpy()
        if self._origin is None:
            self._origin = rows.mean(0)
        centred = rows - self._origin
        active = z != 0
        l0 = active.sum(1).numpy()
        norm, norm_back = np.linalg.norm(rows, axis=1), np.linalg.norm(back, axis=1)
        has_norm = norm > _TINY_NORM
        safe = np.where(has_norm, norm, 1.0)
        dot = (rows * back).sum(1)
        columns = np.stack(
            [
                np.ones(len(rows)),
                (centred**2).sum(1),
                ((rows - back) ** 2).sum(1),
                np.where(has_norm, dot / (safe * np.maximum(norm_back, 1e-12)), 0.0),
                np.where(has_norm, norm_back / safe, 0.0),
                has_norm,
                l0,
            ],
            axis=1,
        )
        np.add.at(self._sums, group, columns)
        np.add.at(self._total, group, centred)
        self.n += len(rows)
        self.fired += active.sum(0).numpy()
        self.mass += z.double().sum(0).numpy()
        self.l0_counts += np.bincount(l0, minlength=len(self.l0_counts))

    def figures(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """fvu, l0, cosine, shrinkage (draws,) for each row of `weights` (draws, n_groups)."""
        w = np.ones((1, len(self._sums))) if weights is None else weights
        n, squares, residual, cosine, shrinkage, with_norm, l0 = (w @ self._sums).T
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = squares - ((w @ self._total) ** 2).sum(1) / n
            # What is left of equal rows is rounding, not variance.
            variance = np.where(variance > 1e-12 * np.maximum(squares, 1e-300), variance, np.nan)
            return {
                "fvu": residual / variance,
                "l0": l0 / n,
                "cosine": cosine / with_norm,
                "shrinkage": shrinkage / with_norm,
            }

    def l0_median(self) -> float:
        """The median number of active latents; of an even number of rows the mean of the two."""
        ends = self.l0_counts.cumsum()
        low, high = (
            int(np.searchsorted(ends, at, "right")) for at in ((self.n - 1) // 2, self.n // 2)
        )
        return (low + high) / 2

    def density(self) -> dict[str, Any]:
        """Histogram of log10(share of rows fired on) over `DENSITY_EDGES`; the dead stand apart."""
        alive = self.fired[self.fired > 0] / max(self.n, 1)
        counts, _ = np.histogram(np.log10(alive), bins=np.array(DENSITY_EDGES))
        return {
            "log10_edges": list(DENSITY_EDGES),
            "latents": counts.tolist(),
            "never": int((self.fired == 0).sum()),
            "n": self.n,
        }

    def report(self, *, n_draws: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Figures with 95 % intervals by bootstrap over groups. EvidenceError without rows."""
        if not self.n:
            raise EvidenceError(
                f"none of the {self.n_not_finite} held-out rows is finite",
                None,
                {"n": 0, "not_finite": self.n_not_finite},
            )
        point = self.figures()
        resampled = self.figures(draws(len(self._sums), n_draws, seed))
        found: dict[str, Any] = {
            name: figure(float(point[name][0]), self.n, percentile_interval(resampled[name]))
            for name in ("fvu", "cosine", "shrinkage", "l0")
        }
        found["l0_median"] = figure(self.l0_median(), self.n)
        found["dead"] = figure(float((self.fired == 0).mean()), self.n)
        found["dense"] = figure(float((self.fired > DENSE * self.n).mean()), self.n)
        found["density"] = self.density()
        found["n_groups"] = int((self._sums[:, 0] > 0).sum())
        found["n_not_finite"] = self.n_not_finite
        return found


def chunks(rows: Rows | np.ndarray | torch.Tensor, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows (b, d) float32) of an array, a tensor, or `Rows`, read in order."""
    n = rows.n if hasattr(rows, "read") else len(rows)
    for start in range(0, n, size):
        stop = min(start + size, n)
        if isinstance(rows, torch.Tensor):
            yield start, rows[start:stop].float()
        elif isinstance(rows, np.ndarray):
            yield start, torch.from_numpy(np.ascontiguousarray(rows[start:stop], dtype=np.float32))
        else:
            yield start, torch.from_numpy(rows.read(start, stop))
            if stop // _RELEASED > start // _RELEASED:
                release(rows)


def chunk_rows(d_sae: int) -> int:
    """Rows a chunk, so that its dense codes stay at 32 MB."""
    return max(16, min(4096, _CELLS // max(1, d_sae)))


def checked_width(sae: LinearSAE, rows: Any) -> int:
    """The number of rows. UserInputError when their width is not the SAE's."""
    n, d = (rows.n, rows.d) if hasattr(rows, "read") else rows.shape
    if d != sae.d_in:
        raise UserInputError(
            f"the rows are {d} wide, the SAE was fitted on {sae.d_in}",
            "give the rows of the site and model that the SAE was fitted on",
        )
    return int(n)


@torch.no_grad()
def accumulate(
    sae: LinearSAE, rows: Rows | np.ndarray | torch.Tensor, groups: Sequence[object] | None = None
) -> Reconstruction:
    """The sums of all rows. groups (n,): patient or lesion of each row; without, one group."""
    n = checked_width(sae, rows)
    if groups is not None and len(groups) != n:
        raise UserInputError(f"{len(groups)} groups were given for {n} rows")
    member = bunches(groups) if groups is not None else np.zeros(n, dtype=np.int64)
    sums = Reconstruction(sae.d_in, sae.d_sae, int(member.max()) + 1 if n else 1)
    for start, part in chunks(rows, chunk_rows(sae.d_sae)):
        z = sae.encode(part)
        sums.add(part, sae.decode(z), z, member[start : start + len(part)])
    return sums


def reconstruction_report(
    sae: LinearSAE,
    rows: Rows | np.ndarray | torch.Tensor,
    groups: Sequence[object],
    *,
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`Reconstruction.report` of rows (n, d_in) that the SAE was not fitted on.

    Errors: UserInputError for rows of another width; EvidenceError when no row is finite.
    """
    return accumulate(sae, rows, groups).report(n_draws=n_draws, seed=seed)


def held_out_metrics(sae: LinearSAE, rows: torch.Tensor) -> dict[str, float]:
    """`l0` (mean active latents a row), `fvu`, `dead` (share of latents that never fire on `rows`),
    `dense` (share firing in over 10 % of rows), `n`: without intervals, for the log of a fit."""
    sums = accumulate(sae, rows)
    point = {name: float(value[0]) for name, value in sums.figures().items()}
    return {
        "l0": point["l0"],
        "fvu": point["fvu"],
        "dead": float((sums.fired == 0).mean()),
        "dense": float((sums.fired > DENSE * sums.n).mean()),
        "n": sums.n,
    }


def pca_fvu(
    train: np.ndarray, rows: Rows | np.ndarray | torch.Tensor, ranks: Sequence[int]
) -> list[float | None]:
    """FVU on `rows` of a PCA of `train` (m, d) with as many components as the SAE has active latents:
    what one fixed subspace keeps, which a dictionary that picks its own must beat."""
    mean = train.mean(0, dtype=np.float64)
    centred = train.astype(np.float64) - mean
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1]
    kept = np.zeros(axes.shape[1])
    squares, total, n = 0.0, np.zeros(len(mean)), 0
    for _, part in chunks(rows, 4096):
        x = part.double().numpy()
        x = x[np.isfinite(x).all(1)] - mean
        kept += ((x @ axes) ** 2).sum(0)
        squares += float((x**2).sum())
        total += x.sum(0)
        n += len(x)
    variance = squares - float((total**2).sum()) / max(n, 1)
    if not variance > 0:
        return [None for _ in ranks]
    return [number((squares - kept[: max(0, r)].sum()) / variance) for r in ranks]
