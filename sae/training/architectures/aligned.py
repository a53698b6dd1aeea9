"""Decoder-aligned BatchTopK: latents read their own direction with a gain of 1, w_enc · w_dec = 1 (2605.18629)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .batchtopk import BatchTopK

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

    from ..recipe import SAERecipe


class Aligned(BatchTopK):
    """After each step the encoder goes the shortest way to where w_enc · w_dec = 1."""

    name = "aligned"

    def build(self, recipe: SAERecipe, common: dict[str, Any]) -> TrainingSAE:
        """Return a new SAE of sae-lens, whose encoder is its decoder of unit length."""
        import torch

        sae = super().build(recipe, common)
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
            sae.W_enc.copy_(sae.W_dec.t())
        return sae

    def constrain_weights(self, sae: TrainingSAE) -> None:
        """Move the encoder along the decoder, to a product of 1."""
        import torch

        with torch.no_grad():
            product = (sae.W_enc * sae.W_dec.t()).sum(0)
            square = (sae.W_dec**2).sum(1).clamp_min(1e-12)
            sae.W_enc.add_(sae.W_dec.t() * ((1 - product) / square))


ARCHITECTURE = Aligned()
