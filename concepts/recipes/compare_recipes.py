"""What differs between two recipes, in plain words."""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from .recipe import RecipeBody, SuppressionRecipe

_COMPARED_APART = ("weights", "distribution")


class Difference(TypedDict):
    """One thing that differs: `key` as in the body ("operation.mode"), and what it is in each recipe."""

    key: str
    first: Any
    second: Any


def differences(first: SuppressionRecipe, second: SuppressionRecipe) -> list[Difference]:
    """Return what differs between the bodies; [] for recipes with the same hash."""
    if first.sha256 == second.sha256:
        return []
    flat = [_flat(_without_arrays(recipe.body)) for recipe in (first, second)]
    keys = sorted({*flat[0], *flat[1]})
    found = [
        Difference(key=key, first=flat[0].get(key), second=flat[1].get(key))
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    ]
    return found + [
        Difference(key=key, first="", second=_arrays(key, first, second))
        for key in _COMPARED_APART
        if first.body[key] != second.body[key]
    ]


def _without_arrays(body: RecipeBody) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in _COMPARED_APART}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} of nested objects; a list is one value."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in _flat(item, f"{prefix}.{key}" if prefix else key).items()
    }


def _arrays(key: str, first: SuppressionRecipe, second: SuppressionRecipe) -> str:
    """Return in words how the arrays differ."""
    if key == "distribution":
        return "made from other images"
    mine, other = first.sae(), second.sae()
    if mine is None or other is None or mine.W_dec.shape != other.W_dec.shape:
        return "other latents"
    cosine = torch.nn.functional.cosine_similarity
    encoder = cosine(mine.W_enc.T, other.W_enc.T).tolist()
    decoder = cosine(mine.W_dec, other.W_dec).tolist()
    threshold = (other.threshold - mine.threshold).tolist()
    return "; ".join(
        f"{name}: cosine of the encoders {e:.4f}, of the decoders {d:.4f}, threshold {t:+.4f}"
        for name, e, d, t in zip(first.latent_names, encoder, decoder, threshold, strict=True)
    )
