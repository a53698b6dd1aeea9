"""Latents chosen by their name: those that the naming stage named after the concept."""

from __future__ import annotations

from ...evidence.cross_fit import TrainingRows
from ..editor import Edit
from .registry import ChosenLatents, NoLatent


class NameMethod:
    """Every latent of the pooled site that is named after the concept; no labels are needed."""

    name = "name"
    needs_labels = False

    def choose(self, rows: TrainingRows, edit: Edit) -> ChosenLatents:
        """Return the named latents, the highest z first."""
        data = rows.data
        if data.sae is None or not data.named:
            raise NoLatent(
                "no latent is named after the concept",
                "label some images, or teach the concept: dermaudit concepts teach NAME --run RUN",
                {"named": 0},
            )
        return ChosenLatents(
            data.sae,
            [latent for latent, _ in data.named],
            [figures for _, figures in data.named],
            "sae",
        )


METHOD = NameMethod()
