"""TopK: the k largest pre-activations of each row (arXiv 2406.04093)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dermaudit.errors import UserInputError

from .base import TopKArchitecture

if TYPE_CHECKING:
    from sae_lens import TrainingSAE
    from torch import Tensor

    from ...inference.model import ThresholdSAE, TopKSAE
    from ..recipe import SAERecipe


class TopK(TopKArchitecture):
    """Exported with a threshold, or (`export = topk`) as an SAE that keeps k latents in each row."""

    name = "topk"
    own_settings = ("export",)

    def derived_settings(self, recipe: SAERecipe) -> dict[str, Any]:
        """Refuse a k that is not a whole number."""
        if recipe.k != int(recipe.k):
            raise UserInputError(
                f"k = {recipe.k:g}: topk keeps a whole number of latents in every row",
                "batchtopk keeps a mean of any size",
            )
        return {}

    def sae_lens_model(self, recipe: SAERecipe, config: dict[str, Any]) -> TrainingSAE:
        """Return the SAE of sae-lens with its configuration."""
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

        return TopKTrainingSAE(TopKTrainingSAEConfig(**config, k=int(recipe.k)))

    def export(
        self, recipe: SAERecipe, folded: dict[str, Any], threshold: Tensor | None
    ) -> ThresholdSAE | TopKSAE:
        """Return the SAE in units of the rows."""
        if recipe.export == "threshold":
            return super().export(recipe, folded, threshold)
        from ...inference.model import TopKSAE

        return TopKSAE(**folded, k=int(recipe.k))


ARCHITECTURE = TopK()
