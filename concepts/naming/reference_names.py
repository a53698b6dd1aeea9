"""The names of a reference dictionary: as they were made and judged on its reference images."""

from __future__ import annotations

from typing import Any

import numpy as np

from dermaudit.errors import UserInputError
from dermaudit.files import read_json
from dermaudit.sae.run_data import RunData
from dermaudit.towers.loading.reference import ReferenceFiles

from ..vocabulary.vocabulary import Vocabulary

NEVER = "never active on the images of the reference"
#: What a row of concepts.parquet has of the name of a latent without one; its reason is added.
UNNAMED: dict[str, Any] = {
    "verdict": "unnamed",
    **dict.fromkeys(
        (
            "name",
            "named_by",
            "type",
            "z",
            "p_null",
            "q",
            "p_correct",
            "agreement",
            "half_names",
            "one_of",
            "reason",
        )
    ),
    "rivals": "[]",
}


def reference_names(
    files: ReferenceFiles, site: str, vocabulary: Vocabulary
) -> dict[int, dict[str, Any]]:
    """Return {latent: its name and the evidence for it} of a site. UserInputError for another vocabulary."""
    known = read_json(files.file("names.json"))
    if known["vocabulary"] != vocabulary.sha256():
        raise UserInputError(
            f"the reference dictionary of {files.model} has names of another vocabulary than {vocabulary.name}",
            "leave out --vocabulary, or fit an SAE of the images of the run: give fit --sae own",
        )
    return {
        row["latent"]: {key: row[key] for key in (*UNNAMED, "label_concept")}
        for row in known["latents"]
        if row["site"] == site
    }


def name_fields(names: dict[int, dict[str, Any]], latent: int) -> dict[str, Any]:
    """Return what a row of concepts.parquet has of the name of a latent."""
    return names.get(latent, {**UNNAMED, "reason": NEVER})


def only_reference(data: RunData) -> bool:
    """Whether every SAE of a run is the reference dictionary, so that nothing was made from its images."""
    return all(data.reference(site) is not None for site in data.sites)


def best_latents(data: RunData) -> dict[str, tuple[str, int]]:
    """Return {concept: (site, latent)} of the labelled concepts of the reference; {} for a run with an SAE of its own,
    whose latents are compared with the labels of its images.
    """
    found: dict[str, tuple[str, int]] = {}
    if not only_reference(data):
        return found
    for site in data.sites:
        files = data.reference(site)
        assert files is not None, "every SAE is the reference"
        for row in read_json(files.file("labels.json")):
            if row["site"] == site and row["latent"] is not None:
                found[row["concept"]] = site, int(row["latent"])
    return found


def judged_rows(data: RunData) -> np.ndarray:
    """Return the mask (n,) of the images whose labels judge names and latents: test; and all images where nothing was
    made from any of them.
    """
    return np.ones(data.n, dtype=bool) if only_reference(data) else data.rows("test")
