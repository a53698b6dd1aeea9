"""One recipe from several: it suppresses all their latents. What they do together was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.files import sha256_json

from ..recipes.recipe import LatentEntry, Operation, RecipeBody, SuppressionRecipe
from ..recipes.weights import packed
from .combined import common_sae, make_suppressor

#: What must be the same in all recipes, and how it is called in messages.
_SAME = {
    "target": "targets",
    "site": "sites",
    "source": "kinds of latents",
    "sae": "SAEs",
    "distribution": "images",
}


def merged(recipes: Sequence[SuppressionRecipe], places: Sequence[Path]) -> SuppressionRecipe:
    """Return one recipe with the latents of all, in their order.

    UserInputError for fewer than two, for two of one concept, and for recipes of different models, targets, sites,
    kinds of latents or images, or in modes that do not go together.
    """
    if len(recipes) < 2:
        raise UserInputError("one recipe is given: there is nothing to merge", "give two or more")
    first = recipes[0].body
    for recipe, place in zip(recipes[1:], places[1:], strict=True):
        _check_same(first, recipe.body, places[0], place)
    concepts = [recipe.body["concept"] for recipe in recipes]
    if twice := sorted({name for name in concepts if concepts.count(name) > 1}):
        raise UserInputError(f"two of the recipes suppress {twice[0]}", "leave one of them out")
    make_suppressor(list(recipes))  # refuses modes that do not go together, and a TopK SAE
    sae, _ = common_sae(list(recipes))
    latents = [
        LatentEntry(latent=e["latent"], why=e["why"], concept=e.get("concept", r.body["concept"]))
        for r in recipes
        for e in r.body["latents"]
    ]
    if len(latents) != sae.d_sae:  # it holds each latent once
        raise UserInputError(
            "two of the recipes suppress the same latent of the SAE",
            "give them to dermaudit suppress together, with two --recipe",
        )
    body = RecipeBody(
        {
            **first,
            "concept": "+".join(concepts),
            "latents": latents,
            "weights": packed(sae, range(len(latents))),
            "operation": _operation(recipes),
            "intercept": None,
            "protocol": {r.body["concept"]: r.body["protocol"] for r in recipes},
            "effects": {
                "reason": f"what {' and '.join(concepts)} do together was not measured",
                "alone": {r.body["concept"]: r.body["effects"] for r in recipes},
            },
            "limits": [
                "measured one at a time: the joint effect, and the prevalence-matched threshold, are not known",
                *(f"{r.body['concept']}: {limit}" for r in recipes for limit in r.body["limits"]),
            ],
            "accepted_limits": "; ".join(
                f"{r.body['concept']}: {reason}"
                for r in recipes
                if (reason := r.body["accepted_limits"])
            )
            or None,
            "parent": [r.sha256 for r in recipes],
        }
    )
    return SuppressionRecipe(body)


def _check_same(first: RecipeBody, other: RecipeBody, here: Path, there: Path) -> None:
    if first["model"]["fingerprint"] != other["model"]["fingerprint"]:
        raise UserInputError(
            f"{here} and {there} are of different models "
            f"({first['model']['name']}, {other['model']['name']})",
            "a recipe belongs to one model",
        )
    for key, words in _SAME.items():
        if sha256_json(first[key]) != sha256_json(other[key]):
            raise UserInputError(
                f"{here} and {there} are of different {words}",
                "give them to dermaudit suppress one at a time",
            )


def _operation(recipes: Sequence[SuppressionRecipe]) -> Operation:
    operation = Operation({**recipes[0].body["operation"]})
    if "level" in operation:
        operation["level"] = [
            level for recipe in recipes for level in recipe.body["operation"].get("level", [])
        ]
    return operation
