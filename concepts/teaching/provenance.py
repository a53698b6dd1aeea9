"""What is recorded of a taught latent: where its labels come from, and every image with its hash."""

from __future__ import annotations

from typing import Any

from dermaudit.run.directory import Run
from dermaudit.sae.run_data import POOLED

from .options import TeachOptions

PROVENANCE = "provenance.json"


def provenance_of(
    run: Run, options: TeachOptions, source: str, figures: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Return the provenance of a latent without its images."""
    return {
        "concept": options.concept,
        "site": POOLED,
        "model_fingerprint": run.meta["model"]["fingerprint"],
        "source": source,
        "left_out": options.target,
        "after": list(options.after),
        "seed": seed,
        "figures": figures,
    }


def metadata_of(run: Run, concept: str) -> dict[str, Any]:
    """Return what the SAE of a taught latent says of itself."""
    return {
        "hook_name": POOLED,
        "model_name": run.meta["model"]["name"],
        "concept": concept,
    }


def entries(names: list[str], hashes: list[str], present: list[int | None]) -> list[dict[str, Any]]:
    """Return an entry for each image; `present` is None for an image that stands for neither."""
    return [
        {"image": name, "sha256": digest, "present": value}
        for name, digest, value in zip(names, hashes, present, strict=True)
    ]
