"""BatchTopK: the largest k·B pre-activations of a batch of B rows (arXiv 2412.06410)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import TopKArchitecture

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

    from ..recipe import SAERecipe


class BatchTopK(TopKArchitecture):
    """The default: the mean number of active latents is k."""

    name = "batchtopk"

    def sae_lens_model(self, recipe: SAERecipe, config: dict[str, Any]) -> TrainingSAE:
        """Return the SAE of sae-lens with its configuration."""
        from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**config, k=recipe.k))


ARCHITECTURE = BatchTopK()
