"""ReLU and L1 with decoder rows of unit length (DN-CBM, arXiv 2407.14499)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import BaseArchitecture

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

    from ..recipe import SAERecipe


class ReLUL1(BaseArchitecture):
    """Decoder rows keep unit length, and each step of the optimizer is orthogonal to them."""

    name = "relu_l1"
    penalties = ("l1_loss",)

    def build(self, recipe: SAERecipe, common: dict[str, Any]) -> TrainingSAE:
        """Return a new SAE of sae-lens."""
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
        """Remove the component of the gradient along each decoder row."""
        grad, rows = sae.W_dec.grad, sae.W_dec.data
        assert grad is not None
        grad -= (grad * rows).sum(1, keepdim=True) * rows

    def constrain_weights(self, sae: TrainingSAE) -> None:
        """Scale each decoder row to unit length."""
        rows = sae.W_dec.data
        rows /= rows.norm(dim=1, keepdim=True).clamp_min(1e-8)

    def metadata(self, recipe: SAERecipe) -> dict[str, Any]:
        """Return the settings that `cfg.json` records."""
        return {"l1_coefficient": recipe.l1_coefficient}


ARCHITECTURE = ReLUL1()
