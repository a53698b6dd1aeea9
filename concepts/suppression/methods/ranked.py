"""One concept latent fitted without labels: its rows are ranked by a text, by drawn artifacts, or by both.

`concepts teach --from-text --direct` and `--drawn` make it; its evidence fits it anew in each fold. It is no
value of `recipe make --method`, because it needs the model of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

from dermaudit.sae.concept_latents.ranked import fit_by_ranking

from ...evidence.cross_fit import TrainingRows
from ...teaching.options import Source
from ...teaching.sources import rank
from ..editor import Edit
from .registry import ChosenLatents


@dataclass(frozen=True)
class RankedLatentMethod:
    """Fit the latent on the training rows without the target. `name`: what ranks them."""

    name: Source
    needs_labels: bool = False

    def choose(self, rows: TrainingRows, edit: Edit) -> ChosenLatents:
        """Return the fitted latent. EvidenceError where the source is missing, or shows nothing."""
        data = rows.data
        use = rows.train[data.y[rows.train] != 1]
        drawn = None if data.drawn is None else data.drawn[use]
        groups = data.groups[use]
        score = rank(self.name, data.x[use], groups, data.text_direction, drawn, data.seed)
        latent = fit_by_ranking(data.x[use], score, groups, seed=data.seed)
        assert latent.figures is not None  # of a fit
        evidence = {
            "seed_auroc": latent.figures.auroc,
            "n_high": latent.figures.n_with,
            "n_low": latent.figures.n_without,
        }
        return ChosenLatents(latent.as_sae(), [0], [evidence], "concept_latent")
