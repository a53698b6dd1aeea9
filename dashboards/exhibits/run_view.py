"""The run as the explorer and the report show it: `RunData`, and what pages ask for more than once.

A damaged, stale or missing part raises an error with one sentence; the parts that do not need it are
shown. torch is loaded only when the weights of an SAE are asked for, and no model is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from dermaudit.concepts.naming.concept_rows import ConceptRow
from dermaudit.errors import UserInputError
from dermaudit.run.directory import Run
from dermaudit.sae.run_data import POOLED, RunData, Truth

__all__ = ["POOLED", "RunView", "Truth", "latent_title", "rivals_of"]


class RunView(RunData):
    """A run, with the caches of the pages."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.memo: dict[str, Any] = {}  # what takes long to compute and is asked for more than once

    def file_name(self, row: int) -> str:
        """Return the path of an image below the data's folder: the id of the image, as in the manifest."""
        return str(self.images["image"][row].as_py())

    def image_file(self, row: int) -> Path | None:
        """Return the path of an image, None if the run's data is not where run.json says."""
        path = self.run.data_root() / self.file_name(row)
        return path if path.is_file() else None

    @property
    def live_latents(self) -> list[ConceptRow]:
        """The rows of concepts.parquet, as `concepts`, with their fields declared."""
        return cast(list[ConceptRow], self.concepts)

    def other_seeds(self, site: str) -> dict[str, Any] | None:
        """Return how the site's SAE compares with other seeds: `against` and `per_latent`.

        None where it was not measured, or no latent is active, or the SAE is newer.
        """
        found = self.stability(site) or {}
        return found if "per_latent" in found else None

    def stable(self, site: str, latent: int) -> bool | None:
        """Whether every other seed has a latent like it; None where that is not known."""
        report = self.other_seeds(site)
        return None if report is None else report["per_latent"]["stable"][latent]


def latent_title(row: Mapping[str, Any]) -> str:
    """Return the name of a latent, marked where it is wrong on test images, the set that it is one of, or the verdict
    why it has no name.
    """
    if row.get("one_of"):
        return " or ".join(row["one_of"])
    if not row.get("name"):
        return str(row.get("verdict") or "unnamed")
    return f"{row['name']} ⚠ wrong on test" if row.get("wrong") else str(row["name"])


def rivals_of(row: ConceptRow) -> list[tuple[str, float]]:
    """Return the words that scored best for a latent; words in brackets are distractors."""
    try:
        return [(str(word), float(score)) for word, score in json.loads(row["rivals"] or "[]")]
    except (ValueError, TypeError) as error:
        raise UserInputError(
            f"the rivals of latent {row['latent']} cannot be read ({error})"
        ) from error
