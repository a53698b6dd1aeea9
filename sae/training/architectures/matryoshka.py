"""Matryoshka BatchTopK: nested prefixes of the latents each reconstruct the row (arXiv 2503.17547)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from dermaudit.errors import UserInputError

from .base import TopKArchitecture

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

    from ..recipe import SAERecipe


class Matryoshka(TopKArchitecture):
    """`widths` are the sizes of the prefixes; the last one is d_sae."""

    name = "matryoshka"
    own_settings = ("widths",)

    def derived_settings(self, recipe: SAERecipe) -> dict[str, Any]:
        """Return `widths` that end with d_sae."""
        default = default_widths(recipe.d_sae)
        widths = recipe.widths or default
        if widths[-1] != recipe.d_sae:
            widths = (*widths, recipe.d_sae)
        if widths[0] < 1 or any(a >= b for a, b in itertools.pairwise(widths)):
            raise UserInputError(
                f"widths = {_joined(recipe.widths)} do not rise up to d_sae = {recipe.d_sae}",
                f"for example widths={_joined(default)}",
            )
        return {"widths": widths}

    def sae_lens_model(self, recipe: SAERecipe, config: dict[str, Any]) -> TrainingSAE:
        """Return the SAE of sae-lens with its configuration."""
        from sae_lens import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig

        return MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(
                **config, k=recipe.k, matryoshka_widths=list(recipe.widths)
            )
        )

    def metadata(self, recipe: SAERecipe) -> dict[str, Any]:
        """Return the settings that `cfg.json` records."""
        return {"matryoshka_widths": list(recipe.widths)}


def default_widths(d_sae: int) -> tuple[int, ...]:
    """Return 1/16, 1/8, 1/4, 1/2 and all of the latents, as far as they differ (arXiv 2503.17547)."""
    return tuple(sorted({max(1, d_sae // part) for part in (16, 8, 4, 2, 1)}))


def _joined(values: tuple[int, ...]) -> str:
    return "-".join(map(str, values))


ARCHITECTURE = Matryoshka()
