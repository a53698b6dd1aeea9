"""OrtSAE: BatchTopK with a penalty on latents whose decoder rows are alike (arXiv 2509.22033)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .batchtopk import BatchTopK

if TYPE_CHECKING:
    from sae_lens import TrainingSAE
    from torch import Tensor

    from ..recipe import SAERecipe
    from ..sparse_step import StepResult

CHUNK = 4096  # latents that are compared with each other; wider SAEs are cut anew at every step


class Ortho(BatchTopK):
    """The penalty is the mean over latents of the square of the largest cosine with another one.

    `ortho_coefficient` is a share of the variance of a row, so that it means the same at every width.
    """

    name = "ortho"
    own_settings = ("ortho_coefficient",)

    def step(
        self, sae: TrainingSAE, recipe: SAERecipe, x: Tensor, dead: Tensor, progress: float
    ) -> StepResult:
        """Return the loss of rows x (b, d)."""
        result = super().step(sae, recipe, x, dead, progress)
        penalty = (
            recipe.ortho_coefficient * x.shape[1] * likeness(sae.W_dec, round(progress * 2**31))
        )
        losses = {**result.losses, "ortho_loss": penalty.detach()}
        return dataclasses.replace(result, loss=result.loss + penalty, losses=losses)


def likeness(decoder: Tensor, seed: int, chunk: int = CHUNK) -> Tensor:
    """Return the mean over decoder rows (h, d) of the squared largest cosine with another row of their chunk; only
    positive cosines count. Chunks are random parts of at most `chunk` rows, drawn with `seed`.
    """
    import torch

    rows = torch.nn.functional.normalize(decoder, dim=1)
    if len(rows) > chunk:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        rows = rows[order.to(rows.device)]
    found = []
    for part in rows.split(chunk):
        cosine = part @ part.t() - 2 * torch.eye(len(part), dtype=part.dtype, device=part.device)
        found.append(cosine.amax(1).clamp_min(0).square())
    return torch.cat(found).mean()


ARCHITECTURE = Ortho()
