"""Photographs with an artifact beside the same photographs without it: what the artifact moves, and what is left."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.concepts.inputs import known_concept, labelled_concepts
from dermaudit.concepts.suppression.insertion import sigmoid
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.errors import UserInputError
from dermaudit.heads import probe_score
from dermaudit.run.directory import Run
from dermaudit.stats.intervals import MIN_CELL

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

COLUMNS = ("artifact", "with_file", "without_file", "group_id")


@dataclass(frozen=True)
class Pairs:
    """Pairs of one concept: embeddings with and without it (n, d), group (n,) and the name of the file with it."""

    present: np.ndarray
    absent: np.ndarray
    groups: np.ndarray
    names: list[str]


def read_pairs(
    path: Path, run: Run, vocabulary: Vocabulary, tower: HookedTower
) -> dict[str, Pairs]:
    """Read a CSV of pairs (COLUMNS; files relative to it) and embed them: {concept: pairs}. An unknown
    name that shares a word with one labelled concept alone means that one (ruler_horizontal: ruler).

    Raises UserInputError for a table that lacks a column, and for an image that cannot be read.
    """
    from dermaudit.towers.embedding import embed_images

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserInputError(f"the table of pairs {path} cannot be read: {error}") from error
    missing = [name for name in COLUMNS if not lines or name not in lines[0]]
    if missing:
        raise UserInputError(
            f"the table of pairs {path} has no {'rows' if not lines else f'column {missing[0]}'}",
            f"it needs the columns {', '.join(COLUMNS)}",
        )
    sides = []
    for column in ("with_file", "without_file"):
        files = [path.parent / line[column] for line in lines]
        x, failed = embed_images(tower, files)
        if failed:
            row, why = next(iter(failed.items()))
            raise UserInputError(f"{path}, row {row + 2}: {files[row]} cannot be read: {why}")
        sides.append(x)
    concepts = np.array([_concept(run, vocabulary, line["artifact"]) for line in lines])
    groups = np.array([line["group_id"] for line in lines])
    return {
        concept: Pairs(
            sides[0][rows],
            sides[1][rows],
            groups[rows],
            [lines[i]["with_file"] for i in rows],
        )
        for concept in sorted(set(concepts))
        for rows in [np.flatnonzero(concepts == concept)]
    }


def _concept(run: Run, vocabulary: Vocabulary, word: str) -> str:
    try:
        return known_concept(run, vocabulary, word)
    except UserInputError:
        words = set(word.split("_"))
        alike = [name for name in labelled_concepts(run) if words & set(name.split("_"))]
        if len(alike) != 1:
            raise
        return alike[0]


def changes_in_pairs(found: list[Fold], fitted: list[EditedHead], pairs: Pairs) -> dict[str, Any]:
    """Return {"n", "before", "after", "reason", "pairs"}: the mean over pairs of |Δp(target)| between the
    photographs with and without the artifact, by the trap heads before and after suppression. Each pair is scored
    by the heads of the folds that were fitted without its group. A mean over fewer than MIN_CELL pairs has a
    `reason`: it says little, so that every pair is listed.
    """
    listed = []
    for i, group in enumerate(pairs.groups):
        shifts = [
            [
                sigmoid(score(pairs.present[i : i + 1])) - sigmoid(score(pairs.absent[i : i + 1]))
                for score in (lambda x, head=fold.head: probe_score(head, x), one.score)
            ]
            for fold, one in zip(found, fitted, strict=True)
            if group not in set(fold.data.groups[fold.train])
        ]
        before, after = np.array(shifts)[:, :, 0].mean(0)
        listed.append({"image": pairs.names[i], "before": float(before), "after": float(after)})
    mean = {key: float(np.mean([abs(one[key]) for one in listed])) for key in ("before", "after")}
    reason = f"n too small: {len(listed)} pairs" if len(listed) < MIN_CELL else None
    return {"n": len(listed), **mean, "reason": reason, "pairs": listed}
