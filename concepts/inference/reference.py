"""The reference that a bundled model ships: a head, and for each artifact a recipe or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

from dermaudit.errors import EvidenceError, unknown
from dermaudit.files import read_json
from dermaudit.towers.loading.reference import ReferenceFiles

from ..recipes.recipe import SuppressionRecipe
from ..suppression.reference_recipe import suppressed_concepts
from ..suppression.stage import refusal, refused_numbers


class Reference(ReferenceFiles):
    """The reference of a bundled model."""

    @property
    def concepts(self) -> list[str]:
        """The concepts whose suppression was tried."""
        return suppressed_concepts(self)

    def head_file(self, name: str) -> Path:
        """Return the file of a head."""
        heads = {Path(file).stem: file for file in self.files if file.startswith("heads/")}
        if name not in heads:
            raise unknown("head", name, [*heads, "zeroshot"])
        return self.file(heads[name])

    def recipe(self, concept: str) -> SuppressionRecipe:
        """Return the recipe of a concept. EvidenceError with the figures where there is none."""
        if concept not in self.concepts:
            raise unknown("concept", concept, self.concepts)
        name = f"recipes/{concept}.recipe.json"
        if name in self.files:
            return SuppressionRecipe.load(self.file(name))
        reason = f"suppression/{concept}.reason.json"
        known = read_json(
            self.file(reason if reason in self.files else f"suppression/{concept}.json")
        )
        raise EvidenceError(
            f"{concept}: {refusal(known)}",
            f"the reference of {self.model} suppresses: {', '.join(self.with_recipe)}",
            refused_numbers(known),
        )

    @property
    def with_recipe(self) -> list[str]:
        """The concepts that there is a recipe for."""
        return [c for c in self.concepts if f"recipes/{c}.recipe.json" in self.files]
