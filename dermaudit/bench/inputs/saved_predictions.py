"""Saved predictions, one row per image: what `bench table` reads and the other benchmarks write.

The layout is the published one of DermFM-Zero (arXiv 2602.10624): `DIR/<dataset>/<model>.csv` with
image_path, true_label, predicted_label, probability_class_0 …, and `DIR/<dataset>.classes.csv`
(diag,label) in the same folder. A `group` column (patient, lesion) is optional.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.data.manifest.tables import read_table
from dermaudit.errors import UserInputError, closest
from dermaudit.files import write_text

_PROBABILITY = re.compile(r"probability_class_(\d+)")
CLASSES_SUFFIX = ".classes.csv"
_NOT_PREDICTIONS = ("published_intervals.csv",)
#: float32 softmax of 134 classes, written with 8 digits, is off by 1e-6.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Predictions:
    """Predictions of one model for n images.

    `truth` and `predicted` (n,) are columns of `probs` (n, classes). `groups` (n,): without a column of
    groups each image is its own group, and `grouped` is False.
    """

    images: list[str]
    truth: np.ndarray
    predicted: np.ndarray
    probs: np.ndarray
    classes: list[str]
    groups: list[str]
    grouped: bool
    path: Path | None = None

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.images)

    def take(self, rows: np.ndarray) -> Predictions:
        """Return some rows (integers), in the given order."""
        return replace(
            self,
            images=[self.images[i] for i in rows],
            groups=[self.groups[i] for i in rows],
            truth=self.truth[rows],
            predicted=self.predicted[rows],
            probs=self.probs[rows],
        )


def read_predictions(folder: Path | str) -> dict[str, dict[str, Predictions]]:
    """Return {dataset: {model: predictions}} below a folder, or of one data set's folder.

    Within a data set all models have the images of the first, in its order. Errors: UserInputError naming
    file, line and fix: a folder without predictions, a missing column, probabilities that do not sum to 1,
    a label outside the classes, images or labels that differ between models.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserInputError(
            f"{folder} is not a folder of predictions"
            if folder.exists()
            else f"{folder} does not exist",
            "give DIR with DIR/<dataset>/<model>.csv; `bench zeroshot --out DIR` writes one",
        )
    single = sorted(_files(folder))
    folders = [folder] if single else sorted(p for p in folder.iterdir() if p.is_dir())
    found: dict[str, dict[str, Predictions]] = {}
    for place in folders:
        files = sorted(_files(place))
        if files:
            name = place.absolute().name
            classes = _classes(place.absolute().parent / f"{name}{CLASSES_SUFFIX}")
            found[name] = aligned({p.stem: read_file(p, classes) for p in files})
    if not found:
        raise UserInputError(
            f"{folder} holds no predictions", "they are DIR/<dataset>/<model>.csv, one file a model"
        )
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.glob("*.csv"):
        if not path.name.endswith(CLASSES_SUFFIX) and path.name not in _NOT_PREDICTIONS:
            yield path


def read_file(path: Path, classes: list[str] | None = None) -> Predictions:
    """Read one file; `classes` are the names in the order of its columns, None for numbers."""
    table, first_line = read_table(path)
    names = table.column_names
    if not table.num_rows:
        raise UserInputError(f"{path} has no row", "write one row an image")
    probability = _probability_columns(path, names)
    for needed in ("image_path", "true_label", "predicted_label"):
        if needed not in names:
            near = closest(needed, names)
            raise UserInputError(
                f"{path} has no column {needed}",
                (f"rename {near}; " if near else "") + f"its columns: {', '.join(names[:8])}",
            )
    if classes is not None and len(classes) != len(probability):
        raise UserInputError(
            f"{path} has {len(probability)} columns of probabilities, its classes are {len(classes)}",
            f"fix {path.parent.name}{CLASSES_SUFFIX}",
        )
    classes = classes or [str(c) for c in range(len(probability))]

    def at(row: int) -> str:
        return f"{path}, " + (f"row {row}" if first_line is None else f"line {row + first_line}")

    probs = _probabilities(table, probability, at)
    labels = {name: _labels(table, name, classes, at) for name in ("true_label", "predicted_label")}
    images = [str(v) for v in table.column("image_path").to_pylist()]
    seen: dict[str, int] = {}
    for row, image in enumerate(images):
        if image in seen:
            raise UserInputError(
                f"{at(row)}: {image} occurs twice, first at {at(seen[image]).rpartition(', ')[2]}",
                "keep one row an image",
            )
        seen[image] = row
    stated = table.column("group").to_pylist() if "group" in names else [None] * len(images)
    # An image without a group is its own group; the prefix avoids equal names of real groups.
    groups = [str(g) if g is not None else f"image:{images[i]}" for i, g in enumerate(stated)]
    return Predictions(
        images,
        labels["true_label"],
        labels["predicted_label"],
        probs,
        classes,
        groups,
        any(g is not None for g in stated),
        path,
    )


def _probabilities(table: Any, columns: list[str], at: Callable[[int], str]) -> np.ndarray:
    """Return the probabilities (n, classes). Errors: UserInputError for rows that are no softmax."""
    probs = np.stack([_numbers(table, name, at) for name in columns], axis=1)
    outside = np.flatnonzero(((probs < -1e-6) | (probs > 1 + 1e-6)).any(1))
    if len(outside):
        raise UserInputError(
            f"{at(outside[0])}: a probability outside 0 … 1", "write probabilities, not logits"
        )
    total = probs.sum(1)
    wrong = np.flatnonzero(np.abs(total - 1) > _SUM_TOLERANCE)
    if len(wrong):
        raise UserInputError(
            f"{at(wrong[0])}: the probabilities sum to {total[wrong[0]]:.4g}, not 1 "
            f"({len(wrong)} of {len(total)} rows)",
            "write the softmax over all classes",
        )
    return probs


def _probability_columns(path: Path, names: list[str]) -> list[str]:
    numbers = sorted(int(m[1]) for name in names if (m := _PROBABILITY.fullmatch(name)))
    if not numbers:
        raise UserInputError(
            f"{path} has no column probability_class_0", "write one column of probabilities a class"
        )
    for expected, number in enumerate(numbers):
        if number != expected:
            raise UserInputError(
                f"{path} has no column probability_class_{expected}, but probability_class_{number}",
                "classes count from 0, without a gap",
            )
    if len(numbers) == 1:
        raise UserInputError(f"{path} has one class only", "write a column for each class")
    return [f"probability_class_{number}" for number in numbers]


def _numbers(table: Any, name: str, at: Callable[[int], str]) -> np.ndarray:
    values = np.empty(table.num_rows)
    for row, value in enumerate(table.column(name).to_pylist()):
        try:
            values[row] = float(value)
        except (TypeError, ValueError):
            values[row] = np.nan
        if not np.isfinite(values[row]):
            raise UserInputError(f"{at(row)}: {name} is {_quoted(value)}", "write a number")
    return values


def _labels(table: Any, name: str, classes: list[str], at: Callable[[int], str]) -> np.ndarray:
    values = np.empty(table.num_rows, dtype=int)
    for row, value in enumerate(table.column(name).to_pylist()):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0 <= number < len(classes) or number != int(number):
            raise UserInputError(
                f"{at(row)}: {name} is {_quoted(value)}, outside the classes 0 … {len(classes) - 1}",
                "labels are the numbers of the probability columns",
            )
        values[row] = int(number)
    return values


def _quoted(value: Any) -> str:
    return "blank" if value is None else f"'{value}'"


def _classes(path: Path) -> list[str] | None:
    """Return the names in `<dataset>.classes.csv` by number; None without the file."""
    if not path.is_file():
        return None
    table, _ = read_table(path)
    for needed in ("diag", "label"):
        if needed not in table.column_names:
            raise UserInputError(f"{path} has no column {needed}", "its columns are diag,label")
    by_number = dict(
        zip(
            (str(v) for v in table.column("label").to_pylist()),
            (str(v) for v in table.column("diag").to_pylist()),
            strict=True,
        )
    )
    numbers = [str(i) for i in range(table.num_rows)]
    if set(by_number) != set(numbers):
        raise UserInputError(
            f"{path} does not number its classes 0 … {table.num_rows - 1}", "one line a class"
        )
    return [by_number[number] for number in numbers]


def aligned(models: dict[str, Predictions]) -> dict[str, Predictions]:
    """Return the models on the same images, in the order of the first.

    Errors: UserInputError when images, classes or labels differ, because no paired test is possible then.
    """
    first_name, first = next(iter(models.items()))
    place = {image: row for row, image in enumerate(first.images)}
    out = {first_name: first}
    for name, other in list(models.items())[1:]:
        where, against = other.path or name, first.path or first_name
        extra = [image for image in other.images if image not in place]
        if extra or other.n != first.n:
            known = set(other.images)
            example = extra[0] if extra else next(i for i in first.images if i not in known)
            lacking = against if extra else where
            raise UserInputError(
                f"{where} and {against} hold different images (the first: {example}, not in {lacking}): "
                "no paired test is possible",
                "predict the same images with every model, or compare them in separate folders",
            )
        if other.classes != first.classes:
            raise UserInputError(
                f"{where} has {len(other.classes)} classes, {against} has {len(first.classes)}",
                "predict the same classes with every model",
            )
        rows = np.empty(first.n, dtype=int)
        for row, image in enumerate(other.images):
            rows[place[image]] = row
        ordered = other.take(rows)
        differs = np.flatnonzero(ordered.truth != first.truth)
        if len(differs):
            raise UserInputError(
                f"{where} and {against} disagree on the true label of {first.images[differs[0]]} "
                f"({len(differs)} images)",
                "one of the files belongs to another data set",
            )
        out[name] = ordered
    return _grouped(out)


def _grouped(models: dict[str, Predictions]) -> dict[str, Predictions]:
    """Give the groups of one file to all models. Errors: UserInputError when two files disagree."""
    stated = [(name, p) for name, p in models.items() if p.grouped]
    if not stated:
        return models
    first_name, first = stated[0]
    for name, other in stated[1:]:
        if other.groups != first.groups:
            row = next(i for i in range(first.n) if other.groups[i] != first.groups[i])
            raise UserInputError(
                f"{other.path or name} and {first.path or first_name} disagree on the group of "
                f"{first.images[row]}",
                "give the same patient or lesion in every file",
            )
    return {name: replace(p, groups=first.groups, grouped=True) for name, p in models.items()}


def write_predictions(folder: Path, dataset: str, models: dict[str, Predictions]) -> list[Path]:
    """Write DIR/<dataset>/<model>.csv and DIR/<dataset>.classes.csv; return the paths."""
    first = next(iter(models.values()))
    lines = [("diag", "label"), *((c, i) for i, c in enumerate(first.classes))]
    paths = [folder / f"{dataset}{CLASSES_SUFFIX}"]
    write_text(paths[0], _csv(lines))
    for name, found in models.items():
        header = [
            "image_path",
            "group",
            "true_label",
            "predicted_label",
            *(f"probability_class_{c}" for c in range(len(found.classes))),
        ]
        rows = (
            [image, group, int(t), int(p), *(f"{v:.9g}" for v in probs)]
            for image, group, t, p, probs in zip(
                found.images, found.groups, found.truth, found.predicted, found.probs, strict=True
            )
        )
        paths.append(folder / dataset / f"{name}.csv")
        write_text(paths[-1], _csv([header, *rows]))
    return paths


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
