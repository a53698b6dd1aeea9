"""Latents of the unsupervised SAE, chosen by their effect on a head, as `recipe make --method effect` does.

The choice needs rows that its head has not seen: inside the fold, a head is fitted on two thirds of the
training groups and the latents are chosen on the rest.
"""

from __future__ import annotations

import numpy as np
import torch

from dermaudit.concepts.evidence.cross_fit import Fold, biased_rows
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.concepts.suppression.editor import Editor
from dermaudit.concepts.suppression.methods.effect import choose_by_effect
from dermaudit.concepts.suppression.trap import Trap
from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe


def choose(fold: Fold) -> list[int]:
    """Return the latents chosen in a fold. EvidenceError where none helps, or the run has no SAE."""
    from sklearn.model_selection import StratifiedGroupKFold

    data, sae = fold.data, fold.data.sae
    if sae is None:
        raise EvidenceError("the run has no SAE at its pooled site")
    kinds = 2 * data.y[fold.train] + data.a[fold.train]
    split = StratifiedGroupKFold(3, shuffle=True, random_state=data.seed)
    fit, rest = next(iter(split.split(fold.train, kinds, data.groups[fold.train])))
    rows = biased_rows(data, fold.train[fit], np.random.default_rng([data.seed, fold.number, 4]))
    head = fit_probe(data.x[rows], data.y[rows], data.groups[rows], seed=data.seed)
    trap = Trap(rows, fold.train[rest], fold.held, "held out", data.y, data.a)
    codes = sae.encode(torch.from_numpy(data.x)).numpy()
    return choose_by_effect(Editor(sae), head, data.x, trap, codes).latents


class SaeLatents:
    """Subtract the latents, error term kept."""

    name = "sae"

    def fit(self, fold: Fold) -> EditedHead:
        """Choose in the fold; where no latent helps, nothing is suppressed."""
        sae = fold.data.sae
        try:
            latents = choose(fold)
        except EvidenceError:
            if sae is None:
                raise
            latents = []
        assert sae is not None  # `choose` refuses a run without an SAE
        editor = Editor(sae)
        return EditedHead(fold.head, lambda x: editor.rows(latents, x))


METHOD = SaeLatents()
