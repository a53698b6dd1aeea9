"""Zero the chosen latents and decode (DermFM-Zero, arXiv 2602.10624): what the SAE does not reconstruct is lost."""

from __future__ import annotations

import numpy as np
import torch

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.concepts.suppression.editor import Edit
from dermaudit.concepts.suppression.methods.registry import NoLatent
from dermaudit.concepts.suppression.methods.sae import SaeLatents


class ZeroAndReconstruct:
    """The latents of the method `sae`; every row is replaced by its reconstruction."""

    name = "zero_and_reconstruct"

    def fit(self, fold: Fold) -> EditedHead:
        """Choose in the fold; where no latent helps, rows are reconstructed with all of them."""
        try:
            latents = SaeLatents().choose(fold, Edit()).latents
        except NoLatent:
            latents = []
        sae = fold.data.sae
        assert sae is not None  # `choose` refuses a run without an SAE

        def edit(x: np.ndarray) -> np.ndarray:
            z = sae.encode(torch.from_numpy(np.ascontiguousarray(x)))
            z[:, latents] = 0
            return sae.decode(z).numpy()

        return EditedHead(fold.head, edit)


METHOD = ZeroAndReconstruct()
