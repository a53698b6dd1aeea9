"""Sparse autoencoders: activation stores, training, the sae-lens files, codes, the suppressor.

Sites carry one name everywhere: `visual.pooled`, `visual.blocks.<i>.hook_resid_post`.
"""

from __future__ import annotations

import importlib
from typing import Any

if __name__ != "dermaudit.sae":
    raise ImportError("import dermaudit.sae, not the bare folder 'sae'")

_PUBLIC = {
    "ActivationStore": ".store.activation_store",
    "Rows": ".store.rows",
    "ThresholdSAE": ".inference.model",
    "ReLUSAE": ".inference.model",
    "TopKSAE": ".inference.model",
    "load_sae": ".inference.model",
    "Codes": ".inference.codes",
    "LatentSuppressor": ".inference.suppressor",
    "ConceptLatent": ".concept_latents.latent",
    "append_latents": ".concept_latents.latent",
    "AttributionMap": ".inference.attribution",
    "attribution_map": ".inference.attribution",
    "class_logit": ".inference.attribution",
    "latent_preactivation": ".inference.attribution",
    "SAERecipe": ".training.recipe",
    "fit_sae": ".training.loop",
    "fit_saes": ".training.loop",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.sae' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
