"""The images that a concept is taught with: of the run, by a column, or of two folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.errors import UserInputError, unknown
from dermaudit.sae.run_data import RunData

from .options import TeachOptions
from .sources import teachable


@dataclass(frozen=True)
class TaughtImages:
    """Embeddings x (n, d) of images with (`present` 1) and without the concept (0), the group, name and
    sha256 of each, and where the labels come from.
    """

    x: np.ndarray
    present: np.ndarray
    groups: np.ndarray
    names: list[str]
    hashes: list[str]
    source: str


def images_of_run(data: RunData, options: TeachOptions) -> TaughtImages:
    """Return the train and val images of the run whose label is known and is not the target.

    Raises UserInputError for a column that the run does not have.
    """
    column = _label_column(data, options)
    values = label_values(data, column)
    rows = np.flatnonzero(np.isfinite(values) & teachable(data, options.target))
    names, hashes = data.images["image"].to_pylist(), data.images["sha256"].to_pylist()
    return TaughtImages(
        data.pooled[rows],
        values[rows].astype(int),
        np.asarray(data.groups)[rows].astype(str),
        [names[i] for i in rows],
        [hashes[i] for i in rows],
        f"column {column}",
    )


def _label_column(data: RunData, options: TeachOptions) -> str:
    have = [c for c in data.images.column_names if c.startswith(("artifact:", "concept:"))]
    wanted = (
        [options.labels]
        if options.labels
        else [f"artifact:{options.concept}", f"concept:{options.concept}"]
    )
    column = next((c for c in wanted if c in data.images.column_names), None)
    if column is None:
        raise unknown("column of labels", wanted[0], have)
    return column


def label_values(data: RunData, column: str) -> np.ndarray:
    """Return a column of labels of the run: (n,) 1, 0, or nan where unknown; a probability counts as 1 from
    .5 on. UserInputError for other values.
    """
    try:
        raw = np.array([np.nan if v is None else float(v) for v in data.images[column].to_pylist()])
    except (TypeError, ValueError) as error:
        raise UserInputError(
            f"the column {column} holds values that are not numbers ({error})",
            "write 1 where the concept is present, 0 where it is absent, nothing where unknown",
        ) from error
    return np.where(np.isfinite(raw), (raw >= 0.5).astype(float), np.nan)


def images_of_folders(tower: Any, options: TeachOptions) -> TaughtImages:
    """Embed the images of both folders. UserInputError for an image that is in both."""
    from dermaudit.files import sha256_file

    assert options.with_ is not None and options.without is not None  # checked by the options
    sides = [_embedded(tower, folder) for folder in (options.with_, options.without)]
    hashes = [[sha256_file(path) for path in paths] for _, paths in sides]
    both = set(hashes[0]) & set(hashes[1])
    if both:
        name = next(p.name for p, h in zip(sides[0][1], hashes[0], strict=True) if h in both)
        raise UserInputError(
            f"{len(both)} images are in {options.with_} and in {options.without}, such as {name}",
            "leave each image in one folder",
        )
    paths = [path for _, side in sides for path in side]
    return TaughtImages(
        np.concatenate([x for x, _ in sides]),
        np.repeat([1, 0], [len(x) for x, _ in sides]),
        np.array([digest for side in hashes for digest in side]),
        [path.name for path in paths],
        [digest for side in hashes for digest in side],
        "two folders",
    )


def _embedded(tower: Any, folder: Path) -> tuple[np.ndarray, list[Path]]:
    from dermaudit.data import Manifest
    from dermaudit.towers.embedding import embed_images

    manifest = Manifest.load(folder)
    x, _ = embed_images(tower, manifest.paths())
    read = np.flatnonzero(np.isfinite(x).all(1))
    paths = manifest.paths()
    return x[read], [paths[i] for i in read]
