"""Taught latents as a run holds them: a folder each, with the SAE of the latent and its provenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dermaudit.errors import UserInputError, unknown
from dermaudit.files import read_json
from dermaudit.run.directory import Run

from ..inputs import taught_concepts
from .provenance import PROVENANCE

if TYPE_CHECKING:
    from dermaudit.sae.concept_latents.latent import ConceptLatent


def provenance(run: Run, concept: str) -> dict[str, Any]:
    """Return the provenance of a taught latent, which is verified first."""
    run.require(f"teach:{concept}")
    path = run.files.concept_latent(concept) / PROVENANCE
    return {"after": [], **read_json(path, "provenance of a concept latent")}


def taught_latent(run: Run, concept: str) -> ConceptLatent:
    """Return a taught latent, which is verified first."""
    from dermaudit.sae import ThresholdSAE, load_sae
    from dermaudit.sae.concept_latents.latent import ConceptLatent

    run.require(f"teach:{concept}")
    sae = load_sae(run.files.concept_latent(concept))
    assert isinstance(sae, ThresholdSAE)  # `concepts teach` writes no other
    return ConceptLatent.of_sae(sae)[0]


def earlier_latents(run: Run, concepts: Sequence[str]) -> list[ConceptLatent]:
    """Return the latents of concepts that another one is taught after.

    Raises UserInputError for a concept that was not taught, was taught without labels, or was itself taught after
    one that is not named before it.
    """
    for i, concept in enumerate(concepts):
        if concept not in taught_concepts(run):
            raise unknown("taught concept", concept, taught_concepts(run))
        known = provenance(run, concept)
        if "ranked_by" in known:
            raise UserInputError(
                f"{concept} was taught without labels: nothing can be taught after it",
                f"teach it with labels: dermaudit concepts teach {concept} --run {run.path}",
            )
        if known["after"] != list(concepts[:i]):
            raise UserInputError(
                f"{concept} was taught after {', '.join(known['after']) or 'nothing'}",
                "give the same concepts, in the same order, in front of it: "
                + " ".join(f"--after {name}" for name in [*known["after"], concept]),
            )
    return [taught_latent(run, concept) for concept in concepts]
