"""A tower and a head with a suppressor between them, and the context manager `run.suppress`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dermaudit.run.directory import Run
from dermaudit.sae.inference.attribution import (
    AttributionMap,
    Method,
    attribution_map,
    class_logit,
)
from dermaudit.towers.preprocess import ImageInput, as_list

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

from ..evidence.operating_points import flip_cause
from ..recipes.distribution import Distribution, Gaussian, unlike
from ..recipes.recipe import SuppressionRecipe, load_recipe
from ..suppression.combined import NamedSuppressor, intercept_of, make_suppressor
from ..suppression.head import Head, ZeroShotHead, pick_head, pick_target

_ROWS = 4096  # edited at a time: a TopK makes d_sae numbers of each


@dataclass
class Prediction:
    """Rows are images. p (n, classes): before, after at the unchanged operating point, and after at the
    prevalence-matched one (nan where that is not known); z (n, |S|) codes of the suppressed latents.
    """

    classes: list[str]
    p_before: np.ndarray
    p_after: np.ndarray
    p_matched: np.ndarray
    z: np.ndarray
    fired: np.ndarray  # (n,): whether the embedding changed
    delta_logit: np.ndarray  # (n, |S|): the target's logit change by each latent alone
    relative_change: np.ndarray  # (n,): length of the change of the embedding by its length
    unlike: np.ndarray  # (n,): whether the image is unlike those that a recipe was made from

    def top1(self, p: np.ndarray) -> list[str | None]:
        """Return the most probable class of each row; None where p is not known."""
        return [self.classes[row.argmax()] if np.isfinite(row).all() else None for row in p]

    @property
    def flipped(self) -> np.ndarray:
        """Whether the most probable class changed at the unchanged operating point, by image."""
        return self.p_before.argmax(1) != self.p_after.argmax(1)

    def causes(self, target: str) -> np.ndarray:
        """Return why the decision for or against the target flips at the prevalence-matched operating point,
        by image: "edit", "threshold", "both" or "" (`flip_cause`). All are "" where that is not known.
        """
        column = self.classes.index(target)
        if not np.isfinite(self.p_matched).all():
            return np.full(len(self.fired), "", dtype=object)
        before, after, matched = (
            p.argmax(1) == column for p in (self.p_before, self.p_after, self.p_matched)
        )
        return flip_cause(before, after, matched, self.fired)


class SuppressedModel:
    """A tower and a head with a suppressor between them; `target` is the class whose logit is logged.

    `intercept` is added to its logit at the prevalence-matched operating point; None: that is not known.
    `distributions`: of the images that the recipes were made from.
    """

    def __init__(
        self,
        tower: HookedTower,
        head: Head,
        suppressor: NamedSuppressor,
        target: str,
        *,
        intercept: float | None = 0.0,
        distributions: Sequence[Distribution] = (),
    ) -> None:
        self.tower, self.head, self.target = tower, head, target
        self.suppressor, self.latent_names = suppressor.module, suppressor.names
        self.intercept = intercept
        self._ordinary = [Gaussian(distribution) for distribution in distributions]

    def encode_image(self, images: ImageInput | Sequence[ImageInput]) -> torch.Tensor:
        """Return edited unit embeddings (n, d) of what `HookedTower.encode_image` takes."""
        with torch.no_grad():
            return self.suppressor.apply_to(self.tower.encode_image(images, normalize=True)).x

    def predict(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = 64
    ) -> Prediction:
        """Predict before and after suppression, for one image or several.

        An image is a path, a PIL image, a uint8 array (height, width, 3) or a tensor: uint8
        (3, height, width), or floating point, prepared by `tower.preprocess`. Raises UserInputError
        for anything else, BadImage for a file that cannot be decoded.
        """
        listed, _ = as_list(images)
        embeddings = [np.empty((0, self.tower.d_pooled), np.float32)]
        with torch.no_grad():
            for start in range(0, len(listed), batch_size):
                x = self.tower.encode_image(listed[start : start + batch_size], normalize=True)
                embeddings.append(x.float().cpu().numpy())
        return self.predict_rows(np.concatenate(embeddings))

    def attribution_map(
        self,
        image: ImageInput,
        label: str | None = None,
        method: Method = "integrated_gradients",
        *,
        suppressed: bool = False,
        **options: Any,
    ) -> AttributionMap:
        """Return the map of an image for the logit of a class, by default the target.

        `suppressed`: of the prediction after suppression, not before; `options` are those of
        `dermaudit.sae.attribution_map`.
        """
        x = self.tower.preprocess.unless_prepared(image)
        head = self.head.model if isinstance(self.head, ZeroShotHead) else self.head
        suppressor = self.suppressor if suppressed else None
        score = class_logit(self.tower, head, label or self.target, suppressor)
        return attribution_map(score, x, method, **options)

    def predict_rows(self, x: np.ndarray) -> Prediction:
        """Predict for unit embeddings x (n, d) that are computed already."""
        parts = [self.suppressor.apply_to(part) for part in torch.from_numpy(x).split(_ROWS)]
        after, z, fired = (torch.cat(column) for column in zip(*parts, strict=True))
        edited = after.numpy()
        p_after = self.head.probs(edited)
        length = np.maximum(np.linalg.norm(x, axis=1), 1e-12)
        return Prediction(
            self.head.classes,
            self.head.probs(x),
            p_after,
            self._matched(p_after),
            z.numpy(),
            fired.numpy(),
            self._delta_logit(x, z),
            np.linalg.norm(edited - x, axis=1) / length,
            unlike(self._ordinary, x),
        )

    def _matched(self, p: np.ndarray) -> np.ndarray:
        # softmax(logits + c) of one logit, from the probabilities: the odds of the target times e^c.
        if self.intercept is None:
            return np.full_like(p, np.nan)
        factor = np.ones(p.shape[1])
        factor[self.head.classes.index(self.target)] = np.exp(self.intercept)
        weighted = p * factor
        return weighted / weighted.sum(1, keepdims=True)

    def _delta_logit(self, x: np.ndarray, z: torch.Tensor) -> np.ndarray:
        # Each latent alone, by difference: exact also where the row is re-normalised. What becomes of
        # it is decided by all of them (the gate of `reactive`).
        column = self.head.classes.index(self.target)
        base = self.head.logits(x)[:, column]
        change = self.suppressor.change(z)
        parts = []
        for i in range(len(self.suppressor.latents)):
            alone = torch.zeros_like(change)
            alone[:, i] = change[:, i]
            edited, _ = self.suppressor.edit(torch.from_numpy(x), alone)
            parts.append(self.head.logits(edited.numpy())[:, column] - base)
        return np.stack(parts, 1)


def build(
    run: Run,
    recipes: list[SuppressionRecipe],
    tower: Any,
    *,
    head: str | None = None,
    target: str | None = None,
    mode: str | None = None,
    level: float | None = None,
) -> SuppressedModel:
    """Return the suppressed model of recipes of a run. Raises an error for another model than the run's."""
    run.check_model(tower.fingerprint)
    chosen, name = pick_head(run, tower, head)
    suppressor = make_suppressor(recipes, run, mode, level)
    wanted = pick_target(chosen.classes, target)
    return SuppressedModel(
        tower,
        chosen,
        suppressor,
        wanted,
        intercept=intercept_of(run, recipes, chosen, name, suppressor.module, wanted),
        distributions=[recipe.body["distribution"] for recipe in recipes],
    )


@contextmanager
def suppressed(
    run: Run,
    concept: str,
    model: Any,
    *,
    head: str | None = None,
    target: str | None = None,
    mode: str | None = None,
    level: float | None = None,
) -> Iterator[SuppressedModel]:
    """Suppress a concept: `with run.suppress("ruler", model) as m: m.predict(images)`.

    The model itself is not changed. `mode`, and the `level` of mode `scale`, replace the recipe's.
    """
    recipe = load_recipe(run, concept)
    yield build(run, [recipe], model, head=head, target=target, mode=mode, level=level)
