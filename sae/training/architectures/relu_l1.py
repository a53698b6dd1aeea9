"""ReLU and L1 with decoder rows of unit length (DN-CBM, arXiv 2407.14499)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import BaseArchitecture

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

    from ..recipe import SAERecipe


class ReLUL1(BaseArchitecture):
    """The component of the gradient along a decoder row is removed before the step of the optimizer,
    and the row is scaled back to length 1 after it."""

    name = "relu_l1"
    penalties = ("l1_loss",)

    def build(self, recipe: SAERecipe, common: dict[str, Any]) -> TrainingSAE:
        from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
        from torch import nn

        sae = StandardTrainingSAE(
            StandardTrainingSAEConfig(
                **common, l1_coefficient=recipe.l1_coefficient, decoder_init_norm=1.0
            )
        )
        nn.init.kaiming_uniform_(sae.W_enc.data.T, nonlinearity="relu")
        sae.W_dec.data.normal_()
        self.constrain_weights(sae)
        return sae

    def constrain_gradient(self, sae: TrainingSAE) -> None:
        grad, rows = sae.W_dec.grad, sae.W_dec.data
        assert grad is not None
        grad -= (grad * rows).sum(1, keepdim=True) * rows

    def constrain_weights(self, sae: TrainingSAE) -> None:
        rows = sae.W_dec.data
        rows /= rows.norm(dim=1, keepdim=True).clamp_min(1e-8)

    def metadata(self, recipe: SAERecipe) -> dict[str, Any]:
        return {"l1_coefficient": recipe.l1_coefficient}


ARCHITECTURE = ReLUL1()
