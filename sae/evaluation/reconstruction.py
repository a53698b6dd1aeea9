"""Reconstruction and sparsity on held-out rows: FVU, cosine, shrinkage, L0, dead latents, density.

One pass with float64 sums for each group, so that intervals need no second pass.
FVU = Σ‖x − x̂‖² / Σ‖x − x̄‖² with the vector mean x̄ of the same rows. With a scalar mean, or none, a
dictionary that has only learned the mean would look good, because unit embeddings are mostly mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.intervals import percentile_interval

from ..store.rows import RowSource, as_rows
from .figure import bootstrap_weights, figure, group_numbers, json_number

if TYPE_CHECKING:
    from ..inference.model import ThresholdSAE, TopKSAE

RowsLike = RowSource | np.ndarray | torch.Tensor
_CELLS = 1 << 23  # dense codes of a chunk: 32 MB
_RELEASED = 65_536  # rows after which mapped memory is released
_TINY_NORM = 1e-6  # rows with a smaller norm have no ratio of norms
DENSE = 0.1  # a latent that is active on a larger fraction of the rows is called dense
#: Edges of the density histogram: log10 of the fraction of rows on which a latent is active.
DENSITY_EDGES = tuple(float(edge) for edge in np.arange(-6.0, 0.51, 0.5))


class Reconstruction:
    """Sums over rows, their reconstructions and codes, which are added in chunks of any size.

    Rows are added with a group number 0 … n_groups - 1. Memory: n_groups · d · 8 bytes.
    """

    def __init__(self, d_in: int, d_sae: int, n_groups: int = 1) -> None:
        self.n = 0
        self.n_not_finite = 0
        self.fired = np.zeros(d_sae, dtype=np.int64)
        self.mass = np.zeros(d_sae)
        self._norms = 0.0
        self.l0_counts = np.zeros(d_sae + 1, dtype=np.int64)
        self._origin: np.ndarray | None = None  # near the mean: the two sums of FVU do not cancel
        self._total = np.zeros((n_groups, d_in))
        # rows, squares, residual, cosine, shrinkage, rows with a norm, active latents
        self._sums = np.zeros((n_groups, 7))

    def add(
        self, x: torch.Tensor, x_hat: torch.Tensor, z: torch.Tensor, group: np.ndarray | None = None
    ) -> None:
        """Add rows x, x_hat (b, d_in), z (b, d_sae) with group (b,) int.

        Rows that are not finite are counted and left out.
        """
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
        self._norms += float(norm.sum())
        self.fired += active.sum(0).numpy()
        self.mass += z.double().sum(0).numpy()
        self.l0_counts += np.bincount(l0, minlength=len(self.l0_counts))

    def figures(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return fvu, l0, cosine, shrinkage (draws,) for each row of `weights` (draws, n_groups)."""
        w = np.ones((1, len(self._sums))) if weights is None else weights
        n, squares, residual, cosine, shrinkage, with_norm, l0 = (w @ self._sums).T
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = squares - ((w @ self._total) ** 2).sum(1) / n
            # Equal rows leave a rounding error, not a variance.
            variance = np.where(variance > 1e-12 * np.maximum(squares, 1e-300), variance, np.nan)
            return {
                "fvu": residual / variance,
                "l0": l0 / n,
                "cosine": cosine / with_norm,
                "shrinkage": shrinkage / with_norm,
            }

    @property
    def squared_error(self) -> float:
        """The mean squared error of a row, summed over its numbers."""
        return float(self._sums[:, 2].sum() / self.n)

    @property
    def norm(self) -> float:
        """The mean length of a row."""
        return self._norms / self.n

    def l0_median(self) -> float:
        """Return the median number of active latents of a row."""
        ends = self.l0_counts.cumsum()
        low, high = (
            int(np.searchsorted(ends, at, "right")) for at in ((self.n - 1) // 2, self.n // 2)
        )
        return (low + high) / 2

    def density(self) -> dict[str, Any]:
        """Return the histogram of log10(fraction of active rows) over `DENSITY_EDGES`.

        Latents that are never active are counted separately.
        """
        alive = self.fired[self.fired > 0] / max(self.n, 1)
        counts, _ = np.histogram(np.log10(alive), bins=np.array(DENSITY_EDGES))
        return {
            "log10_edges": list(DENSITY_EDGES),
            "latents": counts.tolist(),
            "never": int((self.fired == 0).sum()),
            "n": self.n,
        }

    def report(self, *, n_draws: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Return figures with 95 % intervals by bootstrap over groups. EvidenceError without rows."""
        if not self.n:
            raise EvidenceError(
                f"none of the {self.n_not_finite} held-out rows is finite",
                None,
                {"n": 0, "not_finite": self.n_not_finite},
            )
        point = self.figures()
        resampled = self.figures(bootstrap_weights(len(self._sums), n_draws, seed))
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


def chunks(rows: RowsLike, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, rows (b, d) float32), in order."""
    source = as_rows(rows)
    for start in range(0, source.n, size):
        stop = min(start + size, source.n)
        yield start, torch.from_numpy(source.read(start, stop))
        if stop // _RELEASED > start // _RELEASED:
            source.release()


def chunk_rows(d_sae: int) -> int:
    """Return the number of rows in a chunk whose dense codes take 32 MB."""
    return max(16, min(4096, _CELLS // max(1, d_sae)))


def checked_rows(sae: ThresholdSAE | TopKSAE, rows: RowsLike) -> RowSource:
    """Return the rows as a source of rows. UserInputError if they are not as wide as the SAE."""
    source = as_rows(rows)
    if source.d != sae.d_in:
        raise UserInputError(
            f"the rows are {source.d} wide, the SAE was fitted on {sae.d_in}",
            "give the rows of the site and model that the SAE was fitted on",
        )
    return source


@torch.no_grad()
def accumulate(
    sae: ThresholdSAE | TopKSAE, rows: RowsLike, groups: Sequence[object] | np.ndarray | None = None
) -> Reconstruction:
    """Return the sums over rows (n, d_in); groups (n,) are the patients or lesions, by default one.

    UserInputError for rows of another width, or another number of groups.
    """
    source = checked_rows(sae, rows)
    if groups is not None and len(groups) != source.n:
        raise UserInputError(f"{len(groups)} groups were given for {source.n} rows")
    member = np.zeros(source.n, dtype=np.int64) if groups is None else group_numbers(groups)
    sums = Reconstruction(sae.d_in, sae.d_sae, int(member.max(initial=0)) + 1)
    for start, part in chunks(source, chunk_rows(sae.d_sae)):
        z = sae.encode(part)
        sums.add(part, sae.decode(z), z, member[start : start + len(part)])
    return sums


def pca_fvu(train: np.ndarray, rows: RowsLike, rank: int) -> float | None:
    """Return the FVU on `rows` of a PCA of `train` (m, d) with `rank` components.

    With as many components as the SAE has active latents, it is what one fixed subspace keeps; a
    dictionary that chooses its latents for each row must be better.
    """
    from sklearn.decomposition import PCA

    pca = PCA(svd_solver="covariance_eigh").fit(train.astype(np.float64))
    kept, squares, total, n = 0.0, 0.0, np.zeros(train.shape[1]), 0
    for _, part in chunks(rows, 4096):
        x = part.double().numpy()
        x = x[np.isfinite(x).all(1)]
        if not len(x):
            continue
        centred = x - pca.mean_
        kept += float((pca.transform(x)[:, :rank] ** 2).sum())
        squares += float((centred**2).sum())
        total += centred.sum(0)
        n += len(x)
    variance = squares - float((total**2).sum()) / max(n, 1)
    return json_number((squares - kept) / variance) if variance > 0 else None
