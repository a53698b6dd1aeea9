"""What architectures share: the dense training step, and the sparse one of the TopK family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens import TrainingSAE
    from torch import Tensor

    from ...inference.model import ThresholdSAE, TopKSAE
    from ..recipe import SAERecipe
    from ..sparse_step import StepResult


class BaseArchitecture:
    """An SAE that is trained through sae-lens' own forward pass: made sparse by a penalty, without k."""

    name: str
    penalties: tuple[str, ...] = ()
    own_settings: tuple[str, ...] = ()

    def derived_settings(self, recipe: SAERecipe) -> dict[str, Any]:
        """Return the settings that follow from the others."""
        return {}

    def has_k(self, recipe: SAERecipe) -> bool:
        """Return whether `k` is the mean L0 of the fitted SAE."""
        return False

    def build(self, recipe: SAERecipe, common: dict[str, Any]) -> TrainingSAE:
        """Return a new SAE of sae-lens."""
        raise NotImplementedError

    def step(
        self, sae: TrainingSAE, recipe: SAERecipe, x: Tensor, dead: Tensor, progress: float
    ) -> StepResult:
        """Return the loss of rows x (b, d)."""
        from ..sae_lens_model import dense_step

        return dense_step(sae, x, dead, recipe.penalty_factor(progress))

    def constrain_gradient(self, sae: TrainingSAE) -> None:
        """Change the gradients before the step of the optimizer."""

    def constrain_weights(self, sae: TrainingSAE) -> None:
        """Change the weights after the step of the optimizer."""

    def export(
        self, recipe: SAERecipe, folded: dict[str, Any], threshold: Tensor | None
    ) -> ThresholdSAE | TopKSAE:
        """Return the SAE in units of the rows."""
        from ...inference.model import ReLUSAE

        return ReLUSAE(**folded)

    def metadata(self, recipe: SAERecipe) -> dict[str, Any]:
        """Return the settings that `cfg.json` records."""
        return {}


class TopKArchitecture(BaseArchitecture):
    """An SAE that keeps its largest pre-activations.

    It is trained by `sparse_step`, which never computes the dense code, and exported with one threshold,
    at which the mean L0 is k.
    """

    def has_k(self, recipe: SAERecipe) -> bool:
        """Return whether `k` is the mean L0 of the fitted SAE."""
        return True

    def build(self, recipe: SAERecipe, common: dict[str, Any]) -> TrainingSAE:
        """Return a new SAE of sae-lens."""
        from ..sparse_step import transpose_storage

        sae = self.sae_lens_model(
            recipe,
            {
                **common,
                "aux_loss_coefficient": recipe.aux_coefficient,
                "rescale_acts_by_decoder_norm": True,
            },
        )
        transpose_storage(sae)
        return sae

    def sae_lens_model(self, recipe: SAERecipe, config: dict[str, Any]) -> TrainingSAE:
        """Return the SAE of sae-lens; `config` are the arguments that the TopK family shares."""
        raise NotImplementedError

    def step(
        self, sae: TrainingSAE, recipe: SAERecipe, x: Tensor, dead: Tensor, progress: float
    ) -> StepResult:
        """Return the loss of rows x (b, d)."""
        from ..sparse_step import sparse_step

        return sparse_step(sae, x, dead)

    def export(
        self, recipe: SAERecipe, folded: dict[str, Any], threshold: Tensor | None
    ) -> ThresholdSAE | TopKSAE:
        """Return the SAE in units of the rows."""
        from ...inference.model import ThresholdSAE

        return ThresholdSAE(**folded, threshold=folded["b_enc"].new_zeros(recipe.d_sae))
