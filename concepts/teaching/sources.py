"""What ranks images without labels: the words of a concept, artifacts that are drawn onto them, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np

from dermaudit.errors import EvidenceError, unknown
from dermaudit.sae.run_data import RunData

from ..drawing import drawn_embeddings
from ..vocabulary.vocabulary import Vocabulary
from .options import Source

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from dermaudit.towers import HookedTower

SOURCES: tuple[Source, ...] = get_args(Source)
DRAWN_WEIGHT = (
    0.5  # of the drawn score beside that of the text, both standardised (docs/labbook.md)
)
DRAWN_IMAGES = 800


def rank(
    source: Source,
    x: Float[np.ndarray, "n d"],
    groups: np.ndarray,
    text_direction: Float[np.ndarray, " d"] | None,
    drawn: Float[np.ndarray, "n d"] | None,
    seed: int = 0,
) -> Float[np.ndarray, " n"]:
    """Return the score (n,) of rows x by a source: the text alone, the drawn artifacts alone, or both.

    `text_direction` and `drawn` as in `TrapData`. Raises EvidenceError where one that is needed is missing,
    or shows nothing.
    """
    total = np.zeros(len(x))
    if source != "drawn":
        if text_direction is None:
            raise EvidenceError(
                "the model has no text encoder, or the vocabulary no words and opposites of the concept"
            )
        total += _standardised(x.astype(np.float64) @ text_direction)
    if source != "text_seeded":
        from dermaudit.sae.concept_latents.ranked import drawn_score

        if drawn is None:
            raise EvidenceError("the artifact cannot be drawn")
        weight = 1.0 if source == "drawn" else DRAWN_WEIGHT
        total += weight * _standardised(drawn_score(x, drawn, groups, seed=seed))
    return total


def text_direction(
    tower: HookedTower | None, words: Vocabulary, concept: str
) -> Float[np.ndarray, " d"] | None:
    """Return the embedding of texts with the concept minus that of texts with its opposites; None without
    a text encoder, or without such words.
    """
    from dermaudit.towers.zeroshot import prompt_vector

    entry = next((entry for entry in words.concepts if entry.id == concept), None)
    if tower is None or tower.tokenizer is None or entry is None or not entry.opposites:
        return None
    present, absent = (
        prompt_vector(
            tower, [template.format(word) for word in terms for template in words.templates]
        )
        for terms in (entry.terms, entry.opposites)
    )
    return (present - absent).numpy()


def drawn_rows(
    data: RunData, concept: str, target: str, tower: HookedTower, seed: int
) -> Float[np.ndarray, "n d"]:
    """Return a row for each image of the run: its embedding with the artifact drawn onto it, or nan. It is drawn
    onto at most DRAWN_IMAGES train and val images without the target.

    Raises UserInputError for a concept that cannot be drawn.
    """
    from dermaudit.phantom import ARTIFACTS

    if concept not in ARTIFACTS:
        raise unknown("artifact that can be drawn", concept, ARTIFACTS)
    usable = np.flatnonzero(teachable(data, target))
    rows = np.sort(np.random.default_rng(seed).permutation(usable)[:DRAWN_IMAGES])
    found = np.full(data.pooled.shape, np.nan, dtype=np.float32)
    if len(rows):
        found[rows] = drawn_embeddings(data, concept, rows, tower, seed)
    return found


def teachable(data: RunData, target: str) -> Bool[np.ndarray, " n"]:
    """Return which images of the run a concept may be taught with: train and val, without the target."""
    return data.rows("train", "val") & (data.labels != target)


def _standardised(score: np.ndarray) -> np.ndarray:
    return (score - score.mean()) / (score.std() + 1e-12)
