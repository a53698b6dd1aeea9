"""What a run knows of an artifact and a target, and methods that choose latents as methods to cross-fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dermaudit.sae.run_data import POOLED, RunData

from ..evidence.cross_fit import FOLDS, Fold, TrainingRows, TrapData
from ..evidence.edited_head import EditedHead
from .editor import Edit, editor_of
from .methods.registry import NoLatent, SuppressionMethod


def trap_data(
    data: RunData, concept: str, *, target: str = "mel", strength: float = 0.9, seed: int = 0
) -> TrapData:
    """Return all rows of a run for a concept; label and artifact are nan where unknown.

    Figures are taken from the rows outside the train split. The latents that were named after the concept
    are sorted by the score of the name.
    """
    nowhere = np.full(data.n, np.nan)
    truth = data.truth.get(concept)
    named = [
        (row["latent"], {"z": round(row["z"], 6), "q": round(row["q"], 6)})
        for row in (data.concepts if "name" in data.stages else [])
        if row["site"] == POOLED and row["name"] == concept
    ]
    return TrapData(
        x=np.ascontiguousarray(data.pooled),
        y=np.where(data.labels == "", nowhere, (data.labels == target).astype(float)),
        a=nowhere if truth is None else truth.values,
        groups=np.asarray(data.groups).astype(str),
        scored=~data.rows("train"),
        strength=strength,
        seed=seed,
        row=np.arange(data.n),
        sae=data.sae(POOLED) if POOLED in data.sites else None,
        named=tuple(sorted(named, key=lambda entry: (-entry[1]["z"], entry[0]))),
    )


def recipe_rows(data: RunData, trap: TrapData) -> TrainingRows:
    """Return the rows that a recipe is made from: train and val images. The test images of the run stay
    unseen by the recipe itself; its figures are cross-fitted.
    """
    return TrainingRows(trap, FOLDS, np.flatnonzero(data.rows("train", "val")))


@dataclass(frozen=True)
class CrossFittedMethod:
    """Chooses latents in each fold anew, and suppresses them before the head. In a fold where no latent
    qualifies, nothing is suppressed.
    """

    method: SuppressionMethod
    edit: Edit = Edit()

    @property
    def name(self) -> str:
        """The name of the method."""
        return self.method.name

    def fit(self, fold: Fold) -> EditedHead:
        """Choose in the fold. Errors: those of the method, NoLatent excepted."""
        try:
            chosen = self.method.choose(fold, self.edit)
        except NoLatent:
            return EditedHead(fold.head, lambda x: x)
        editor, _ = editor_of(chosen.sae, self.edit, fold)
        return EditedHead.of_suppressor(fold.head, editor.module(chosen.latents))
