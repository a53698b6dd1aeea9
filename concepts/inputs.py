"""What the stages of concepts read from a run: vocabulary, model, and the concepts that it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dermaudit.errors import UserInputError, unknown
from dermaudit.files import sha256_file
from dermaudit.run.directory import Run
from dermaudit.sae.run_data import POOLED, RunData

from .suppression.reference_recipe import concepts_of_reference
from .vocabulary.vocabulary import Vocabulary

VOCABULARY_HELP = (
    "a bundled vocabulary, or a TOML / JSON file "
    "(default: the one that the run was named with, else dermoscopy)"
)
THREADS_HELP = "torch threads"


def vocabulary_of(run: Run, given: str | Path | None = None) -> Vocabulary:
    """Return the given vocabulary; without one, the vocabulary that the run was named with; in a run
    without names, the bundled one.
    """
    if given is not None:
        return Vocabulary.load(given)
    path, record = run.files.vocabulary, run.meta["stages"].get("name")
    if record is not None and path.is_file():
        # It is made from nothing else, so it holds for a run whose SAEs are newer than its names too.
        if sha256_file(path) != record["outputs"].get(path.name):
            run.require("name")
        return Vocabulary.load(path)
    return Vocabulary.load()


def tower_of(run: Run, threads: int) -> Any:
    """Load the model of the run. ForeignArtifactError if another model has its name."""
    if not run.meta.get("model"):
        raise UserInputError(
            f"the run {run.path} has no embed stage yet",
            f"run: {run.remake_command('embed', force=False)}",
        )
    import torch

    from dermaudit.towers import load_model

    torch.set_num_threads(threads)
    tower = load_model(run.meta["model"]["name"])
    run.check_model(tower.fingerprint)
    return tower


def labelled_concepts(run: Run) -> list[str]:
    """Return the concepts that have an `artifact:` or `concept:` column, in alphabetical order."""
    path = run.files.images
    columns = pq.read_schema(path).names if path.is_file() else []
    pairs = [name.split(":", 1) for name in columns if name.startswith(("artifact:", "concept:"))]
    return sorted({concept for _, concept in pairs})


def taught_concepts(run: Run) -> list[str]:
    """Return the concepts that were taught in a run, in alphabetical order."""
    stages = run.meta["stages"]
    return sorted(name.removeprefix("teach:") for name in stages if name.startswith("teach:"))


def known_concept(run: Run, vocabulary: Vocabulary, word: str) -> str:
    """Return the concept that `word` means, from the run's labels or the vocabulary.

    Raises UserInputError that offers the nearest concept.
    """
    labelled = labelled_concepts(run)
    if word in labelled:
        return word
    try:
        return vocabulary.concept(word).id
    except UserInputError as error:
        ids = [concept.id for concept in vocabulary.concepts]
        raise unknown("concept", word, sorted({*labelled, *ids})) from error


def artifacts_of(run: Run, vocabulary: Vocabulary) -> list[str]:
    """Return the concepts that an audit suppresses: artifacts with labels in the run, concepts that were
    taught to it, artifacts that a latent of the pooled site is named after, and those of the reference if its
    dictionary is the SAE of the run. Those of the vocabulary come first, in its order.
    """
    in_vocabulary = [c.id for c in vocabulary.concepts if c.type == "artifact"]
    columns = pq.read_schema(run.files.images).names
    own = sorted(name.removeprefix("artifact:") for name in columns if name.startswith("artifact:"))
    taught = taught_concepts(run)
    reference = concepts_of_reference(RunData(run))
    found = {*own, *taught, *reference, *(c for c in labelled_concepts(run) if c in in_vocabulary)}
    if run.files.concepts.is_file():
        rows = pq.read_table(run.files.concepts, columns=["name", "site"]).to_pylist()
        named = {row["name"] for row in rows if row["site"] == POOLED}
        found |= {concept for concept in in_vocabulary if concept in named}
    return [c for c in dict.fromkeys([*in_vocabulary, *own, *taught, *reference]) if c in found]
