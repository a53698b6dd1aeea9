"""What the stages of concepts read from a run: verified files, vocabulary, seed, model and artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dermaudit.errors import UserInputError, unknown
from dermaudit.run.directory import Run

from .vocabulary.vocabulary import Vocabulary

POOLED = "visual.pooled"
VOCABULARY_FILE = "vocabulary.json"


def finished_fits(run: Run) -> list[str]:
    """Return the names of the finished SAE stages; UserInputError if the run has none."""
    stages = [stage for stage in run.meta["stages"] if stage.startswith("fit:")]
    if not stages:
        raise UserInputError(
            f"the run {run.path} has no sparse autoencoder yet",
            f"run: dermaudit fit --run {run.path}",
        )
    for stage in stages:
        run.require(stage)
    return stages


def vocabulary_of(run: Run, given: str | Path | None = None) -> Vocabulary:
    """Return the given vocabulary; without one, the vocabulary that the run was named with; in a run
    without names, the bundled one."""
    if given is not None:
        return Vocabulary.load(given)
    recorded = run.file(VOCABULARY_FILE)
    if "name" in run.meta["stages"] and recorded.is_file():
        run.require("name")
        return Vocabulary.load(recorded)
    return Vocabulary.load()


def seed_of(run: Run, given: int | None = None) -> int:
    """Return the given seed, by default the seed of the run."""
    return run.meta["seed"] if given is None else given


def tower_of(run: Run, threads: int) -> Any:
    """Load the model of the run. ForeignArtifactError if another model has its name."""
    if not run.meta.get("model"):
        raise UserInputError(
            f"the run {run.path} has no embeddings yet",
            f"run: dermaudit audit IMAGES --model NAME --run {run.path}",
        )
    import torch

    from dermaudit.towers import load_model

    torch.set_num_threads(threads)
    tower = load_model(run.meta["model"]["name"])
    run.check_model(tower.fingerprint)
    return tower


def labelled_concepts(run: Run) -> list[str]:
    """Return the concepts that have an `artifact:` or `concept:` column, in alphabetical order."""
    path = run.file("images.parquet")
    columns = pq.read_schema(path).names if path.is_file() else []
    pairs = [name.split(":", 1) for name in columns if name.startswith(("artifact:", "concept:"))]
    return sorted({concept for _, concept in pairs})


def known_concept(run: Run, vocabulary: Vocabulary, word: str) -> str:
    """Return the concept that `word` means, from the run's labels or the vocabulary.

    Raises UserInputError that offers the nearest concept."""
    labelled = labelled_concepts(run)
    if word in labelled:
        return word
    try:
        return vocabulary.concept(word).id
    except UserInputError as error:
        ids = [concept.id for concept in vocabulary.concepts]
        raise unknown("concept", word, sorted({*labelled, *ids})) from error


def artifacts_of(run: Run, vocabulary: Vocabulary) -> list[str]:
    """Return the artifacts that an audit suppresses, in the order of the vocabulary.

    They are the artifacts with labels in the run; in a run without any, the artifacts that a latent
    of the pooled site is named after. A labelled artifact that the vocabulary lacks comes last.
    """
    in_vocabulary = [c.id for c in vocabulary.concepts if c.type == "artifact"]
    columns = pq.read_schema(run.file("images.parquet")).names
    own = sorted(name.removeprefix("artifact:") for name in columns if name.startswith("artifact:"))
    labelled = {*own, *(c for c in labelled_concepts(run) if c in in_vocabulary)}
    if labelled:
        return [c for c in dict.fromkeys([*in_vocabulary, *own]) if c in labelled]
    rows = pq.read_table(run.file("concepts.parquet"), columns=["name", "site"]).to_pylist()
    named = {row["name"] for row in rows if row["site"] == POOLED}
    return [concept for concept in in_vocabulary if concept in named]
