"""Predictions with a concept suppressed: the context manager, and the table of `dermaudit suppress`.

What predicts is the run's head (logistic, fitted on its train split) or the zero-shot classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.errors import UserInputError
from dermaudit.heads import LinearHead
from dermaudit.rundir import Run
from dermaudit.sae import LatentSuppressor, ThresholdSAE

from .recipe import Recipe


class ZeroShotHead:
    """The zero-shot classifier in the form of a head: logits, classes, direction."""

    def __init__(self, tower: Any) -> None:
        from dermaudit.towers import ZeroShot
        from dermaudit.towers.prompts import ham_classes

        self._model = ZeroShot(tower, ham_classes())
        self.classes = list(self._model.classes)

    def logits(self, x: np.ndarray) -> np.ndarray:
        return self._model.logits(torch.from_numpy(x)).detach().numpy()

    def probs(self, x: np.ndarray) -> np.ndarray:
        return self._model.probs(torch.from_numpy(x)).detach().numpy()


@dataclass
class Prediction:
    """Rows are images. p (n, classes); z (n, |S|) codes of the suppressed latents; fired (n,)."""

    classes: list[str]
    p_before: np.ndarray
    p_after: np.ndarray
    z: np.ndarray
    fired: np.ndarray
    delta_logit: np.ndarray  # (n, |S|): the target's logit change by each latent alone

    def top1(self, p: np.ndarray) -> list[str]:
        return [self.classes[i] for i in p.argmax(1)]

    @property
    def flipped(self) -> np.ndarray:
        return self.p_before.argmax(1) != self.p_after.argmax(1)


class SuppressedModel:
    """A model under suppression. `encode_image(x)` gives edited unit embeddings of prepared images;
    `predict(images)` takes uint8 arrays or image paths and gives a `Prediction`."""

    def __init__(
        self, tower: Any, head: LinearHead | ZeroShotHead, suppressor: LatentSuppressor, target: str
    ) -> None:
        self.tower, self.head, self.suppressor, self.target = tower, head, suppressor, target

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.suppressor.apply_to(self.tower.encode_image(x, normalize=True)).x

    def predict(self, images: Sequence[Any], batch: int = 64) -> Prediction:
        from dermaudit.data import read_image

        rows = []
        for start in range(0, len(images), batch):
            part = [
                read_image(image) if isinstance(image, (str, Path)) else image
                for image in images[start : start + batch]
            ]
            with torch.no_grad():
                rows.append(
                    self.tower.encode_image(self.tower.preprocess(part), normalize=True).numpy()
                )
        return self.predict_rows(np.concatenate(rows))

    def predict_rows(self, x: np.ndarray) -> Prediction:
        """The same for unit embeddings x (n, d) that are already there."""
        edited = self.suppressor.apply_to(torch.from_numpy(x))
        after = edited.x.numpy()
        return Prediction(
            self.head.classes,
            self.head.probs(x),
            self.head.probs(after),
            edited.z.numpy(),
            edited.fired.numpy(),
            self._delta_logit(x),
        )

    def _delta_logit(self, x: np.ndarray) -> np.ndarray:
        # Each latent alone, by difference: exact also where the row is re-normalised.
        column = self.head.classes.index(self.target)
        base = self.head.logits(x)[:, column]
        parts = []
        for i in range(len(self.suppressor.latents)):
            one = _one_latent(self.suppressor, i)
            parts.append(
                self.head.logits(one.apply_to(torch.from_numpy(x)).x.numpy())[:, column] - base
            )
        return np.stack(parts, 1)


def reference_level(run: Run, concept: str, latents: list[int], mode: str) -> torch.Tensor:
    """What the modes `mean` and `clamp` hold a latent to: mean, or 95 % quantile, of its code over
    the train images known to lack the concept (all train images where none is labelled)."""
    from .rundata import POOLED, RunData

    data = RunData(run)
    rows = data.rows("train")
    truth = data.truth.get(concept)
    if truth is not None and (rows & (truth.values == 0)).any():
        rows = rows & (truth.values == 0)
    codes = np.stack([data.codes[POOLED].column(j)[rows] for j in latents], 1)
    level = codes.mean(0) if mode == "mean" else np.quantile(codes, 0.95, axis=0)
    return torch.from_numpy(level.astype(np.float32))


def make_suppressor(
    run: Run, recipes: list[Recipe], sae: ThresholdSAE, mode: str | None
) -> LatentSuppressor:
    """One suppressor for all latents of the recipes; `mode` instead of the recipes' own."""
    owner = {j: recipe.body["concept"] for recipe in recipes for j in recipe.latents}
    latents = sorted(owner)
    mode = mode or recipes[0].body["operation"]["mode"]
    level = None
    if mode in ("mean", "clamp"):
        level = torch.cat([reference_level(run, owner[j], [j], mode) for j in latents])
    return LatentSuppressor(
        sae,
        latents,
        mode=mode,
        level=level,
        renormalise=recipes[0].body["operation"]["renormalise"],
    )


def _one_latent(module: LatentSuppressor, i: int) -> LatentSuppressor:
    sae = ThresholdSAE(module.W_enc, module.W_dec, module.b_enc, module.b_dec, module.threshold)
    return LatentSuppressor(
        sae, [i], mode=module.mode, level=module.level[i : i + 1], renormalise=module.renormalise
    )


def pick_head(run: Run, tower: Any, name: str | None) -> LinearHead | ZeroShotHead:
    """The head named, `zeroshot`, or by default the run's `label` head where it has one."""
    if name == "zeroshot":
        return ZeroShotHead(tower)
    have = sorted(path.stem for path in run.path.glob("heads/*.safetensors"))
    if have:
        _refuse_stale(run, "heads", "heads")
    if name is None:
        return (
            LinearHead.load(run.file("heads", f"{have[0]}.safetensors"))
            if have
            else ZeroShotHead(tower)
        )
    if name not in have:
        raise UserInputError(
            f"the run {run.path} has no head '{name}'", "known: " + ", ".join([*have, "zeroshot"])
        )
    return LinearHead.load(run.file("heads", f"{name}.safetensors"))


def pick_target(classes: list[str], wanted: str | None) -> str:
    """The class whose Δlogit is logged: the one asked for, melanoma, or the last."""
    if wanted is not None:
        if wanted not in classes:
            raise UserInputError(
                f"the head has no class '{wanted}'", f"known: {', '.join(classes)}"
            )
        return wanted
    return "mel" if "mel" in classes else classes[-1]


def build(
    run: Run,
    recipe: Recipe,
    tower: Any,
    *,
    head: str | None = None,
    target: str | None = None,
    mode: str | None = None,
) -> SuppressedModel:
    """The suppressed model of a recipe; another model than the run's is refused."""
    run.check_model(tower.fingerprint)
    sae = ThresholdSAE.load(run.file("sae", recipe.site))
    chosen = pick_head(run, tower, head)
    suppressor = make_suppressor(run, [recipe], sae, mode)
    return SuppressedModel(tower, chosen, suppressor, pick_target(chosen.classes, target))


@contextmanager
def suppressed(
    run: Run, concept: str, model: Any, *, head: str | None = None, target: str | None = None
) -> Iterator[SuppressedModel]:
    """`with run.suppress("ruler", model) as m: m.predict(images)`. The model itself is not changed."""
    recipe = load_recipe(run, concept)
    yield build(run, recipe, model, head=head, target=target)


def load_recipe(run: Run, concept: str) -> Recipe:
    """The run's recipe for a concept, checked against its model and SAE."""
    path = run.file("recipes", f"{concept}.recipe.json")
    if not path.is_file():
        have = sorted(
            p.name.removesuffix(".recipe.json") for p in run.path.glob("recipes/*.recipe.json")
        )
        raise UserInputError(
            f"the run {run.path} has no recipe for '{concept}'",
            (f"it has: {', '.join(have)}; " if have else "")
            + f"make it: dermaudit recipe make --concept {concept}",
        )
    recipe = Recipe.load(path)
    recipe.check(run, path)
    _refuse_stale(run, f"recipe:{concept}", f"recipe make --concept {concept} --force")
    return recipe


def _refuse_stale(run: Run, stage: str, verb: str) -> None:
    """A file that a stage of this run made is used only while what it stands on is unchanged."""
    if stage in run.meta["stages"]:
        run.require(stage, verb)
