"""The sae-lens SAE that is trained: built from the seed of a recipe, its dense step, its held-out loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput
from torch import Tensor

from .architectures.registry import architecture
from .recipe import SAERecipe
from .sparse_step import StepResult

if TYPE_CHECKING:
    from sae_lens import TrainingSAE


def build(
    recipe: SAERecipe, mean: Tensor, *, dtype: torch.dtype, device: torch.device
) -> TrainingSAE:
    """Return a new SAE of the recipe's seed; `mean` (d,) of the rows, in units of training.

    The state of torch's own random generator stays as it was.
    """
    common = {
        "d_in": len(mean),
        "d_sae": recipe.d_sae,
        "device": "cpu",
        "dtype": str(dtype).removeprefix("torch."),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        sae = architecture(recipe.architecture).build(recipe, common)
    if recipe.centre:
        with torch.no_grad():
            sae.b_dec.copy_(mean)
    return sae.to(device)


def dense_step(
    sae: TrainingSAE, x: Tensor, dead: Tensor, penalty_factor: float = 1.0
) -> StepResult:
    """Return the loss of sae-lens' own forward pass, its penalties times `penalty_factor`."""
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={
                name: penalty_factor * value for name, value in coefficients(sae).items()
            },
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=False,
        )
    )
    fires = output.feature_acts > 0
    losses = {name: value.detach() for name, value in output.losses.items()}
    return StepResult(output.loss, losses, fires.any(0), fires.sum() / len(x))


def coefficients(sae: TrainingSAE) -> dict[str, float]:
    """Return the coefficients of the penalties after their warm-up."""
    return {
        name: value.value if isinstance(value, TrainCoefficientConfig) else float(value)
        for name, value in sae.get_coefficients().items()
    }


@torch.no_grad()
def held_out_sums(sae: TrainingSAE, x: Tensor, penalties: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return (Σ‖x − x̂‖², Σ of the named `penalties`) of rows x (b, d) in float64, for early stopping.

    Penalties have their full coefficients: by the reconstruction alone, an SAE that a penalty makes
    sparse would look best before the penalty has worked.
    """
    sae.eval()
    z, pre = sae.encode_with_hidden_pre(x)
    residual = ((x.double() - sae.decode(z).double()) ** 2).sum()
    penalty = residual.new_zeros(())
    if penalties:
        losses = sae.calculate_aux_loss(
            TrainStepInput(x, coefficients(sae), None, 0, False),
            feature_acts=z,
            hidden_pre=pre,
            sae_out=x,
        )
        assert isinstance(losses, dict)
        penalty = torch.stack([losses[name] for name in penalties]).sum().double() * len(x)
    sae.train()
    return residual, penalty
