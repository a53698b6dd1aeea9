"""A suppressor without a run: from recipe files, or from the reference of a bundled model, in front of any head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.towers.loading.fingerprint import tower_fingerprint
from dermaudit.towers.splice import HasSites

from ..recipes.distribution import Gaussian, unlike
from ..recipes.recipe import SuppressionRecipe
from ..suppression.combined import make_suppressor
from .options import DEFAULT_MODEL
from .reference import Reference

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_PREDICT = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples")


class Suppressor:
    """Suppresses the concepts of recipes in embeddings (n, d). See `attach` for models.

    `mode`, and the `level` of mode `scale`, replace those of the recipes. Errors: those of `make_suppressor`.
    """

    def __init__(
        self,
        recipes: Sequence[SuppressionRecipe],
        *,
        mode: str | None = None,
        level: float | None = None,
    ) -> None:
        self.recipes = list(recipes)
        made = make_suppressor(self.recipes, None, mode, level)
        self.module, self.latent_names = made.module, made.names
        self._ordinary = [Gaussian(recipe.body["distribution"]) for recipe in self.recipes]
        self._within = False  # a method of an attached estimator, which may call another one

    @classmethod
    def load(cls, *paths: Path | str, **options: Any) -> Suppressor:
        """Return the suppressor of recipe files. Errors: those of `SuppressionRecipe.load`."""
        if not paths:
            raise UserInputError("no recipe is given", 'Suppressor.load("ruler.recipe.json")')
        return cls([SuppressionRecipe.load(Path(path)) for path in paths], **options)

    @classmethod
    def bundled(cls, *concepts: str, model: str = DEFAULT_MODEL, **options: Any) -> Suppressor:
        """Return the suppressor of concepts from the reference of a bundled model. Errors: those of `Reference`."""
        reference = Reference.load(model)
        return cls([reference.recipe(concept) for concept in concepts], **options)

    def __call__(self, x: Any) -> Any:
        """Return embeddings x (n, d), an array or a tensor, with the concepts suppressed."""
        if isinstance(x, Tensor):
            self._check_width(x.shape[-1])
            return self.module(x)
        rows = np.asarray(x)
        self._check_width(rows.shape[-1])
        edited = self.module.apply_to(torch.from_numpy(np.ascontiguousarray(rows, np.float32)))
        if not edited.fired.any():
            return x
        fired = edited.fired.numpy()
        return np.where(fired[:, None], edited.x.numpy().astype(rows.dtype), rows)

    def unlike(self, x: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
        """Return which embeddings (n, d) are unlike those that a recipe was made from."""
        return unlike(self._ordinary, x)

    @contextmanager
    def attach(self, model: Any) -> Iterator[Any]:
        """Within the block the model predicts with the concepts suppressed; afterwards it is as it was.

        `model` is

        - a HookedTower or a plain open_clip model, of the weights that the recipe names: its image embeddings are
          edited;
        - an object with `predict`, `predict_proba` or `decision_function`, as those of scikit-learn: the embeddings
          that it is given are edited;
        - a function of embeddings: the block yields a function that edits them first.

        Yields the model. Raises ForeignArtifactError for other weights or another width.
        """
        with ExitStack() as stack:
            if isinstance(model, (HasSites, nn.Module)):
                self._check_model(model)
                yield stack.enter_context(self.module.attach(model, self.recipes[0].site))
                return
            methods = [name for name in _PREDICT if callable(getattr(model, name, None))]
            if not methods:
                if not callable(model):
                    raise UserInputError(
                        f"a {type(model).__name__} neither predicts nor can be called",
                        "give a model, a scikit-learn estimator, or a function of embeddings",
                    )
                yield self._before(model)
                return
            for name in methods:
                self._replace(model, name, stack)
            yield model

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def suppressed(x: Any, *arguments: Any, **named: Any) -> Any:
            return function(self(x), *arguments, **named)

        return suppressed

    def _replace(self, model: Any, name: str, stack: ExitStack) -> None:
        """Replace a method of an object until the end of the block, on the object itself: not on its class."""
        own = vars(model).get(name)
        method = getattr(model, name)

        # An estimator calls its own methods (predict calls decision_function): the edit must not be made twice.
        def suppressed(x: Any, *arguments: Any, **named: Any) -> Any:
            if self._within:
                return method(x, *arguments, **named)
            self._within = True
            try:
                return method(self(x), *arguments, **named)
            finally:
                self._within = False

        def restore() -> None:
            if own is None:
                delattr(model, name)
            else:
                setattr(model, name, own)

        setattr(model, name, suppressed)
        stack.callback(restore)

    def _check_width(self, width: int) -> None:
        if width != self.module.d_in:
            raise ForeignArtifactError(
                f"the recipe is of embeddings of width {self.module.d_in}, not {width}",
                "give embeddings of the model that the recipe names: "
                f"{self.recipes[0].body['model']['name']}",
            )

    def _check_model(self, model: Any) -> None:
        for recipe in self.recipes:
            fingerprint = getattr(model, "fingerprint", None)  # of a tower
            if fingerprint is None:
                preprocess = recipe.body["model"]["preprocess"]
                fingerprint = tower_fingerprint(model.state_dict(), preprocess)
            recipe.check_model(fingerprint)
