"""Decoder-aligned BatchTopK: latents read their own direction with a gain of 1, w_enc · w_dec = 1 (2605.18629)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .batchtopk import BatchTopK

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

    from ..recipe import SAERecipe


class Aligned(BatchTopK):
    """Decoder rows have unit length, and the encoder goes the shortest way to where w_enc · w_dec = 1.

    The parts of the gradients against which this works are taken out: with them Adam diverges.
    """

    name = "aligned"

    def build(self, recipe: SAERecipe, common: dict[str, Any]) -> TrainingSAE:
        """Return a new SAE of sae-lens, whose encoder is its decoder of unit length."""
        import torch

        sae = super().build(recipe, common)
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
            sae.W_enc.copy_(sae.W_dec.t())
        return sae

    def constrain_gradient(self, sae: TrainingSAE) -> None:
        """Make the gradients of encoder and decoder orthogonal to the decoder."""
        import torch

        encoder, decoder = sae.W_enc.grad, sae.W_dec.grad
        assert encoder is not None and decoder is not None
        with torch.no_grad():
            encoder.sub_(sae.W_dec.t() * (encoder * sae.W_dec.t()).sum(0))
            decoder.sub_(sae.W_dec * (decoder * sae.W_dec).sum(1, keepdim=True))

    def constrain_weights(self, sae: TrainingSAE) -> None:
        """Give decoder rows unit length, and move the encoder along them to a product of 1."""
        import torch

        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))
            sae.W_enc.add_(sae.W_dec.t() * (1 - (sae.W_enc * sae.W_dec.t()).sum(0)))


ARCHITECTURE = Aligned()
