"""One suppressor for the latents of several recipes, and the intercept that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dermaudit.errors import UserInputError
from dermaudit.files import sha256_file
from dermaudit.run.directory import Run
from dermaudit.sae import LatentSuppressor, ThresholdSAE, TopKSAE, load_sae
from dermaudit.sae.inference.modes import check_mode
from dermaudit.sae.run_data import RunData

from ..recipes.recipe import SuppressionRecipe
from .cross_fitted import recipe_rows, trap_data
from .editor import Edit, Levels, editor_of
from .intercept import intercept_correction

if TYPE_CHECKING:
    from .head import Head


@dataclass(frozen=True)
class NamedSuppressor:
    """A suppressor, and what its latents are called in tables: a number, or a concept."""

    module: LatentSuppressor
    names: list[str]


def make_suppressor(
    recipes: list[SuppressionRecipe],
    run: Run | None = None,
    mode: str | None = None,
    level: float | None = None,
) -> NamedSuppressor:
    """Return one suppressor for all latents of the recipes, each with the levels of its own recipe.

    `mode` (and `level`, the factor of `scale`) instead of the recipes' own: levels are then those of
    the run's artifact-free train and val images. Errors: UserInputError for a mode that cannot be, or that
    differs between recipes, and for `reactive` of several: a gate is one artifact's; EvidenceError
    where too few images are free of it.
    """
    own = sorted({recipe.body["operation"]["mode"] for recipe in recipes})
    concepts = ", ".join(recipe.body["concept"] for recipe in recipes)
    if mode is not None:
        check_mode(mode, level)
    elif len(own) > 1:
        raise UserInputError(
            f"the recipes of {concepts} suppress in different modes ({', '.join(own)})",
            "say one for all of them with --mode",
        )
    if (mode or own[0]) == "reactive" and len(recipes) > 1:
        raise UserInputError(
            f"mode reactive takes one concept, not {concepts}: its gate is one artifact's score",
            "suppress them one at a time, or in another mode",
        )
    sae, places = common_sae(recipes, run)
    levels: dict[int, torch.Tensor] = {}
    names: dict[int, str] = {}
    gate = None
    for recipe, place in zip(recipes, places, strict=True):
        found = _levels(recipe, run, mode, level)
        gate = found.get("gate_level", gate)
        if "level" in found:
            levels |= dict(zip(place, found["level"], strict=True))
        names |= dict(zip(place, recipe.latent_names, strict=True))
    latents = sorted(names)
    module = LatentSuppressor(
        sae,
        latents,
        mode=mode or own[0],
        level=torch.stack([levels[j] for j in latents]) if levels else None,
        gate_level=gate,
        renormalise=recipes[0].body["operation"]["renormalise"],
    )
    return NamedSuppressor(module, [names[j] for j in latents])


def common_sae(
    recipes: list[SuppressionRecipe], run: Run | None = None
) -> tuple[ThresholdSAE | TopKSAE, list[list[int]]]:
    """Return an SAE with the latents of all recipes, and for each recipe the places of its latents in it. A
    latent that several recipes suppress is there once.
    """
    saes = [recipe.sae() for recipe in recipes]
    own = [sae for sae in saes if sae is not None]
    if len(own) < len(recipes):  # a per-sample TopK: which latents fire depends on all of them
        if own or run is None:
            raise UserInputError(
                "a recipe for latents of a TopK SAE needs the run, and goes with no other kind of recipe",
                "suppress them one at a time, in the run that they were made in",
            )
        sae = load_sae(run.files.sae(recipes[0].site))
        return sae, [recipe.latents for recipe in recipes]
    place: dict[tuple[str, str, int], int] = {}
    rows: list[tuple[int, int]] = []
    places: list[list[int]] = []
    for number, recipe in enumerate(recipes):
        facts = recipe.body["sae"]
        places.append([])
        for i, (latent, name) in enumerate(zip(recipe.latents, recipe.latent_names, strict=True)):
            key = ("sae", facts["weights_sha256"], latent) if facts else ("concept", name, latent)
            if key not in place:
                place[key] = len(rows)
                rows.append((number, i))
            places[-1].append(place[key])
    return ThresholdSAE(
        W_enc=torch.stack([own[n].W_enc[:, i] for n, i in rows], 1),
        W_dec=torch.stack([own[n].W_dec[i] for n, i in rows]),
        b_enc=torch.stack([own[n].b_enc[i] for n, i in rows]),
        b_dec=own[0].b_dec,
        threshold=torch.stack([own[n].threshold[i] for n, i in rows]),
        metadata=own[0].metadata,
    ), places


def _levels(
    recipe: SuppressionRecipe, run: Run | None, mode: str | None, level: float | None
) -> Levels:
    """Return the levels of the recipe, or those of the run if `mode` is another."""
    operation = recipe.body["operation"]
    if mode is None and "level" in operation:
        return {"level": torch.tensor(operation["level"])}
    if mode is None and "gate_level" in operation:
        return {"gate_level": operation["gate_level"]}
    edit = Edit(mode or operation["mode"], level)
    if edit.mode == "subtract":
        return {}
    if edit.mode == "scale":
        return {"level": torch.full((len(recipe.latents),), float(level or 0.0))}
    if run is None:
        raise UserInputError(
            f"mode {edit.mode} takes its level from the images of a run, and there is none",
            "use the mode of the recipe, or give the run",
        )
    data = RunData(run)
    rows = recipe_rows(data, trap_data(data, recipe.body["concept"], target=recipe.body["target"]))
    own = recipe.sae()
    sae, latents = (
        (load_sae(run.files.sae(recipe.site)), recipe.latents)
        if own is None
        else (own, list(range(len(recipe.latents))))
    )
    return editor_of(sae, edit, rows)[0].levels(latents)


def intercept_of(
    run: Run,
    recipes: list[SuppressionRecipe],
    head: Head,
    head_name: str,
    suppressor: LatentSuppressor,
    target: str,
) -> float:
    """Return what is added to the logit of the target for the prevalence-matched operating point: the value
    of the recipe where it is of this head and mode, else that of the train and val images of the run.
    """
    path = run.files.head(head_name)
    sha256 = sha256_file(path) if path.is_file() else None
    stored = stored_intercept(recipes, head_name, sha256, suppressor, target)
    if stored is not None:
        return stored
    data = RunData(run)
    x = data.pooled[data.rows("train", "val")]
    edited = suppressor.apply_to(torch.from_numpy(x)).x.numpy()
    return intercept_correction(head.logits(x), head.logits(edited), head.classes.index(target))


def stored_intercept(
    recipes: list[SuppressionRecipe],
    head_name: str,
    head_sha256: str | None,
    suppressor: LatentSuppressor,
    target: str,
) -> float | None:
    """Return the intercept of a recipe, if it is of this head, mode and target; None for several recipes."""
    if len(recipes) > 1:
        return None
    body = recipes[0].body
    stored = body["intercept"]
    if (
        stored is None
        or body["target"] != target
        or body["operation"]["mode"] != suppressor.mode
        or (stored["head"], stored["head_sha256"]) != (head_name, head_sha256)
    ):
        return None
    return stored["value"]
