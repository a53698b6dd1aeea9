"""The reference that a bundled model ships: a head, and for each artifact a recipe or the reason why there is none.

`checkpoints/<model>/reference/reference.json` names every file with its sha256; a changed file is refused. It is made
by `docs/scripts/reference.py` from a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaudit.errors import AlteredArtifactError, EvidenceError, unknown
from dermaudit.files import read_json, sha256_file, sha256_json
from dermaudit.towers.loading.names import bundled_folder, bundled_names

from ..recipes.recipe import SuppressionRecipe
from ..suppression.stage import refusal, refused_numbers

FORMAT_VERSION = 1
_AGAIN = "install dermaudit again"


@dataclass(frozen=True)
class Reference:
    """The reference of a bundled model. `made_from`: name and number of images, and the licence of the data set."""

    model: str
    folder: Path
    files: dict[str, str]
    made_from: dict[str, Any]

    @classmethod
    def load(cls, model: str) -> Reference:
        """Return the reference of a bundled model. UserInputError for a model without one."""
        with_one = [name for name in sorted(bundled_names()) if _file(name).is_file()]
        if model not in with_one:
            raise unknown("model with a reference", model, with_one)
        path = _file(model)
        raw = read_json(path, "reference")
        if not isinstance(raw, dict) or raw.get("sha256") != sha256_json(raw.get("body")):
            raise AlteredArtifactError(f"{path} was altered", _AGAIN)
        body = raw["body"]
        return cls(model, path.parent, body["files"], body["made_from"])

    @classmethod
    def of_model(cls, model: str) -> Reference | None:
        """Return the reference of a model, or None where it has none."""
        bundled = model in bundled_names() and _file(model).is_file()
        return cls.load(model) if bundled else None

    @property
    def concepts(self) -> list[str]:
        """The concepts whose suppression was tried."""
        names = (name for name in self.files if name.startswith("suppression/"))
        return sorted({Path(name).name.split(".")[0] for name in names})

    def file(self, name: str) -> Path:
        """Return a file of the reference, verified."""
        path = self.folder / name
        if not path.is_file() or sha256_file(path) != self.files[name]:
            raise AlteredArtifactError(f"{path} is missing or was altered", _AGAIN)
        return path

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


def _file(model: str) -> Path:
    return bundled_folder() / model / "reference" / "reference.json"
