"""The five architectures as sae-lens' training classes, and one training step of each.

The TopK family goes through `sparse_step`, which never makes the dense code; jumprelu and relu_l1 are
dense by nature.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor, nn

from .recipe import TOPK_FAMILY, SAERecipe
from .sparse_step import Step, sparse_step, transpose_storage

if TYPE_CHECKING:
    from sae_lens import TrainingSAE


class UnitNormReLU(StandardTrainingSAE):
    """ReLU and L1 with decoder rows of unit length: the gradient along a row is taken out before the
    optimizer's step, and the row brought back to length 1 after it (DN-CBM, arXiv 2407.14499)."""

    def initialize_weights(self) -> None:
        super().initialize_weights()
        with torch.no_grad():
            nn.init.kaiming_uniform_(self.W_enc.T, nonlinearity="relu")
            self.W_dec.normal_()
            self.renormalise()

    @torch.no_grad()
    def remove_radial_gradient(self) -> None:
        grad = self.W_dec.grad
        grad -= (grad * self.W_dec).sum(1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def renormalise(self) -> None:
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8)


def build(
    recipe: SAERecipe, mean: Tensor, *, dtype: torch.dtype, device: torch.device
) -> TrainingSAE:
    """A fresh training SAE of the recipe's seed; `mean` (d,): the rows' mean in units of training.

    The draw leaves the state of torch's own generator as it was.
    """
    common: dict[str, Any] = {
        "d_in": len(mean),
        "d_sae": recipe.d_sae,
        "device": "cpu",
        "dtype": str(dtype).removeprefix("torch."),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        sae = _make(recipe, common)
    if recipe.centre:
        with torch.no_grad():
            sae.b_dec.copy_(mean)
    if dtype == torch.float64 and isinstance(sae, JumpReLUTrainingSAE):
        sae.threshold.data = sae.threshold.data.double()  # sae-lens keeps it in float32
    if recipe.architecture in TOPK_FAMILY:
        transpose_storage(sae)
    return sae.to(device)


def _make(recipe: SAERecipe, common: dict[str, Any]) -> TrainingSAE:
    if recipe.architecture == "relu_l1":
        return UnitNormReLU(
            StandardTrainingSAEConfig(
                **common, l1_coefficient=recipe.l1_coefficient, decoder_init_norm=1.0
            )
        )
    if recipe.architecture == "jumprelu":
        return JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(
                **common,
                l0_coefficient=recipe.l0_coefficient,
                jumprelu_sparsity_loss_mode=recipe.l0_penalty,
                jumprelu_bandwidth=recipe.l0_bandwidth,
                # Of a threshold alone the few samples in its window move too little in short runs.
                jumprelu_ste_to_input=True,
                jumprelu_init_threshold=recipe.l0_threshold,
                target_l0=recipe.k if recipe.l0_penalty == "quadratic" else None,
                pre_act_loss_coefficient=recipe.aux_coefficient or None,
                decoder_init_norm=0.5,
            )
        )
    common |= {"aux_loss_coefficient": recipe.aux_coefficient, "rescale_acts_by_decoder_norm": True}
    if recipe.architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**common, k=int(recipe.k)))
    if recipe.architecture == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**common, k=recipe.k))
    return MatryoshkaBatchTopKTrainingSAE(
        MatryoshkaBatchTopKTrainingSAEConfig(
            **common, k=recipe.k, matryoshka_widths=list(recipe.widths)
        )
    )


def step(sae: TrainingSAE, recipe: SAERecipe, x: Tensor, dead: Tensor, share: float) -> Step:
    """The loss of rows x (b, d) in units of training; `dead` (d_sae,) bool, `share` of the steps done."""
    if recipe.architecture in TOPK_FAMILY:
        return sparse_step(sae, x, dead)
    return dense_step(sae, x, dead, penalty_share(recipe, share))


def dense_step(sae: TrainingSAE, x: Tensor, dead: Tensor, penalty: float = 1.0) -> Step:
    """sae-lens' own forward pass; its penalties at `penalty` of their coefficients."""
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={
                name: penalty * coefficient for name, coefficient in coefficients(sae).items()
            },
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=False,
        )
    )
    fires = output.feature_acts > 0
    losses = {name: value.detach() for name, value in output.losses.items()}
    return Step(output.loss, losses, fires.any(0), fires.sum() / len(x))


def coefficients(sae: TrainingSAE) -> dict[str, float]:
    """The coefficients of the penalties, as they are after their warm-up."""
    return {
        name: float(getattr(value, "value", value))
        for name, value in sae.get_coefficients().items()
    }


def penalty_share(recipe: SAERecipe, share: float) -> float:
    return 1.0 if recipe.penalty_warmup == 0 else min(1.0, share / recipe.penalty_warmup)


@torch.no_grad()
def held_out_sums(sae: TrainingSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """(Σ‖x − x̂‖², Σ penalty) of rows x (b, d), float64: what early stopping goes by.

    Penalties are at their full coefficients: judged by the reconstruction alone, an SAE that is held
    sparse by a penalty would look best before the penalty has worked.
    """
    sae.eval()
    z, pre = sae.encode_with_hidden_pre(x)
    residual = ((x.double() - sae.decode(z).double()) ** 2).sum()
    penalty = residual.new_zeros(())
    if wanted := coefficients(sae):
        losses = sae.calculate_aux_loss(
            TrainStepInput(x, wanted, None, 0, False), feature_acts=z, hidden_pre=pre, sae_out=x
        )
        named = [value for name, value in losses.items() if name in ("l1_loss", "l0_loss")]
        penalty = torch.stack(named).sum().double() * len(x)
    sae.train()
    return residual, penalty


def learning_rate(recipe: SAERecipe, step: int, steps: int) -> float:
    """Linear warm-up over a share of the steps, then the recipe's decay to 0."""
    warm = max(1, int(steps * recipe.warmup)) if recipe.warmup else 0
    if step < warm:
        return recipe.lr * (step + 1) / warm
    left = (step - warm) / max(1, steps - warm)
    if recipe.decay == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * left))
    return recipe.lr * (1 - left) if recipe.decay == "linear" else recipe.lr
