"""Latents of the run's SAE that rise when the artifact is drawn onto the same images. No labels are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from dermaudit.errors import EvidenceError
from dermaudit.stats.intervals import MIN_CELL

from ...evidence.cross_fit import TrainingRows
from ..editor import Edit, editor_of
from .registry import ChosenLatents, NoLatent

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_LATENTS = 12
EXPLAINED = 0.9  # of the summed length of all rises: further latents are left out
LEVEL = 0.01  # one-sided, of a rise, over all latents (Bonferroni)


class InsertionMethod:
    """The latents that rise most, in pairs of an image without and with the drawn artifact."""

    name = "insertion"
    needs_labels = False

    def choose(self, rows: TrainingRows, edit: Edit) -> ChosenLatents:
        """Return the latents, the largest change of the embedding first. EvidenceError where the run has no SAE,
        or the artifact was drawn onto too few images; NoLatent where none rises.
        """
        data = rows.data
        if data.sae is None:
            raise EvidenceError("the run has no SAE at its pooled site", "run: dermaudit fit")
        if data.drawn is None:
            raise EvidenceError("the artifact cannot be drawn")
        pairs = rows.train[np.isfinite(data.drawn[rows.train]).all(1)]
        if len(pairs) < MIN_CELL:
            raise EvidenceError(
                f"n too small: the artifact was drawn onto {len(pairs)} images",
                f"at least {MIN_CELL} are needed",
                {"pairs": len(pairs)},
            )
        editor, _ = editor_of(data.sae, edit, rows)
        before, after = (
            editor.codes(np.ascontiguousarray(x, dtype=np.float32)).toarray()
            for x in (data.x[pairs], data.drawn[pairs])
        )
        length = data.sae.W_dec.norm(dim=1).numpy()
        latents, evidence = rising(after - before, length)
        return ChosenLatents(data.sae, latents, evidence, "sae")


def rising(
    rise: Float[np.ndarray, "n h"], length: Float[np.ndarray, " h"]
) -> tuple[list[int], list[dict[str, float]]]:
    """Return the latents that rise in pairs (`rise` of their codes), and the figures of each: `rise`, how far the
    embedding moves by it on average (`length` is that of the decoders), and `z` = mean / standard error.

    NoLatent where no mean is above 0 at LEVEL.
    """
    mean = rise.mean(0)
    z = mean / (rise.std(0, ddof=1) / np.sqrt(len(rise)) + 1e-12)
    moved = mean * length
    certain = np.flatnonzero(z > norm.isf(LEVEL / rise.shape[1]))
    if not len(certain):
        raise NoLatent(
            "no latent rises when the artifact is drawn",
            "teach the concept with labels: dermaudit concepts teach NAME --run RUN",
            {"pairs": len(rise), "largest_z": float(z.max())},
        )
    order = certain[np.argsort(-moved[certain], kind="stable")]
    share = np.cumsum(moved[order]) / moved[order].sum()
    chosen = order[: min(MAX_LATENTS, int(np.searchsorted(share, EXPLAINED)) + 1)]
    return chosen.tolist(), [{"rise": float(moved[j]), "z": float(z[j])} for j in chosen]


METHOD = InsertionMethod()
