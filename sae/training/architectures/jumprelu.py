"""JumpReLU: a learned threshold for each latent, and a penalty on L0 (arXiv 2407.14435)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import BaseArchitecture

if TYPE_CHECKING:
    from sae_lens import TrainingSAE
    from torch import Tensor

    from ...inference.model import ThresholdSAE, TopKSAE
    from ..recipe import SAERecipe


class JumpReLU(BaseArchitecture):
    """The quadratic penalty pulls the mean L0 to k.

    It does not reach k (1.1 to 3.6 times k were measured), so the thresholds are shifted after the fit.
    """

    name = "jumprelu"
    penalties = ("l0_loss",)

    def has_k(self, recipe: SAERecipe) -> bool:
        """Return whether the penalty has a target: the quadratic one pulls the mean L0 to k."""
        return recipe.l0_penalty == "quadratic"

    def build(self, recipe: SAERecipe, common: dict[str, Any]) -> TrainingSAE:
        """Return a new SAE of sae-lens."""
        from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

        sae = JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(
                **common,
                l0_coefficient=recipe.l0_coefficient,
                jumprelu_sparsity_loss_mode=recipe.l0_penalty,
                jumprelu_bandwidth=recipe.l0_bandwidth,
                # With gradients of the threshold alone, too few samples lie within the bandwidth in
                # short runs.
                jumprelu_ste_to_input=True,
                jumprelu_init_threshold=recipe.l0_threshold,
                target_l0=recipe.k if self.has_k(recipe) else None,
                pre_act_loss_coefficient=recipe.aux_coefficient or None,
                decoder_init_norm=0.5,
            )
        )
        sae.threshold.data = sae.threshold.data.to(sae.W_enc.dtype)  # sae-lens makes it float32
        return sae

    def export(
        self, recipe: SAERecipe, folded: dict[str, Any], threshold: Tensor | None
    ) -> ThresholdSAE | TopKSAE:
        """Return the SAE in units of the rows."""
        from ...inference.model import ThresholdSAE

        assert threshold is not None
        return ThresholdSAE(**folded, threshold=threshold)

    def metadata(self, recipe: SAERecipe) -> dict[str, Any]:
        """Return the settings that `cfg.json` records."""
        return {"l0_coefficient": recipe.l0_coefficient}


ARCHITECTURE = JumpReLU()
