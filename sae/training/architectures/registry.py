"""The extension point for SAE architectures: the protocol and the discovery of its implementations.

A file of this folder that defines `ARCHITECTURE` adds an architecture. The command line imports these
files to validate its options, so torch and sae-lens are imported inside their methods.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

from dermaudit.errors import unknown
from dermaudit.plugins import discover

if TYPE_CHECKING:
    from sae_lens import TrainingSAE
    from torch import Tensor

    from ...inference.model import ThresholdSAE, TopKSAE
    from ..recipe import SAERecipe
    from ..sparse_step import StepResult


class SAEArchitecture(Protocol):
    """How SAEs of one architecture are validated, built, trained and exported.

    `penalties` are the names of the sae-lens losses that early stopping adds to the reconstruction
    error. `own_settings` are the fields of SAERecipe that no other architecture has.
    `TopKArchitecture` and `BaseArchitecture` (base.py) implement most of it.
    """

    name: str
    penalties: tuple[str, ...]
    own_settings: tuple[str, ...]

    def derived_settings(self, recipe: SAERecipe) -> dict[str, Any]:
        """Return settings that follow from the others; UserInputError if some contradict each other."""
        ...

    def has_k(self, recipe: SAERecipe) -> bool:
        """Return whether `recipe.k` is the mean L0 of the fitted SAE."""
        ...

    def build(self, recipe: SAERecipe, common: dict[str, Any]) -> TrainingSAE:
        """Return a new sae-lens SAE on the CPU; `common` are the arguments of every sae-lens config."""
        ...

    def step(
        self, sae: TrainingSAE, recipe: SAERecipe, x: Tensor, dead: Tensor, progress: float
    ) -> StepResult:
        """Return the loss of rows x (b, d) in units of training.

        `dead` (d_sae,) bool are the dead latents, `progress` is the fraction of the steps that are done.
        """
        ...

    def constrain_gradient(self, sae: TrainingSAE) -> None:
        """Change the gradients before the step of the optimizer."""
        ...

    def constrain_weights(self, sae: TrainingSAE) -> None:
        """Change the weights after the step of the optimizer."""
        ...

    def export(
        self, recipe: SAERecipe, folded: dict[str, Any], threshold: Tensor | None
    ) -> ThresholdSAE | TopKSAE:
        """Return the SAE in units of the rows from its `folded` weights.

        `threshold` (d_sae,) is the learned one in the same units, if the architecture learns any.
        """
        ...

    def metadata(self, recipe: SAERecipe) -> dict[str, Any]:
        """Return what `cfg.json` records of the settings of this architecture."""
        ...


@functools.cache
def architectures() -> dict[str, SAEArchitecture]:
    """Return {name: architecture} of every module of this folder that defines `ARCHITECTURE`."""
    return discover(__name__.rpartition(".")[0], "ARCHITECTURE")


def architecture(name: str) -> SAEArchitecture:
    """Return an architecture; UserInputError offers the nearest for an unknown name."""
    if name not in architectures():
        raise unknown("architecture", name, architectures())
    return architectures()[name]
