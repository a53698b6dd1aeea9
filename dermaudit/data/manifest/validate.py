"""What is wrong with a table, row by row, and the same table made complete.

`findings` names everything; `complete` fills in what a table may leave out (image_id, group, split)
and turns truth columns into numbers. Blank is unknown, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pyarrow as pa

from dermaudit.errors import UserInputError, closest

from ..splits import SPLITS, assign
from .tables import IMAGE_SUFFIXES, TRUTH_PREFIXES, RawTable


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `level`: error (the table is refused), skip (the image is left
    out), warning (used as it is). `row` counts from 0, `line` as an editor does."""

    kind: str
    level: str
    message: str
    row: int | None = None
    line: int | None = None
    image: str | None = None
    column: str | None = None
    hint: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def findings(raw: RawTable) -> Iterator[Finding]:
    """Everything wrong with the table itself (no image is opened), errors only."""
    names = raw.table.column_names
    if "image" not in names:
        near = _likely_image_column(raw)
        yield Finding(
            "missing_column",
            "error",
            f"{raw.file} has no column 'image'",
            column="image",
            hint=f"rename the column '{near}' to 'image'"
            if near
            else f"add it: the path of each image, relative to {raw.file.name} (columns: "
            f"{', '.join(names[:12])})",
        )
        return
    if raw.table.num_rows == 0:
        if raw.skipped:
            yield Finding(
                "empty",
                "error",
                f"{raw.file}: none of its {len(raw.skipped)} rows can be used; the first: "
                f"{raw.told(raw.skipped[0])}",
                hint=raw.skipped[0].hint,
            )
        else:
            yield Finding("empty", "error", f"{raw.file} has no rows", hint="add one row an image")
        return
    yield from _paths(raw)
    yield from _ids(raw)
    yield from _splits(raw)
    yield from _truth(raw)
    yield from _concept_names(raw)


def _likely_image_column(raw: RawTable) -> str | None:
    """Return the column that most likely names the images: its values are files that exist, or look
    like image files, or its own name says so. None if there is no such column."""
    best = None
    for name in raw.table.column_names:
        column = raw.table[name].slice(0, 20)
        values = [value for value in column.to_pylist() if isinstance(value, str) and value]
        if not values:
            continue
        if all(not path_problem(value) and (raw.root / value).is_file() for value in values):
            return name
        if best is None and all(value.lower().endswith(IMAGE_SUFFIXES) for value in values):
            best = name
    words = ("image", "file", "path", "img")
    return best or next(
        (n for n in raw.table.column_names if any(w in n.lower() for w in words)), None
    )


def _concept_names(raw: RawTable) -> Iterator[Finding]:
    """Names of concepts become file names (`recipes/<concept>.recipe.json`)."""
    for column in raw.table.column_names:
        name = column.partition(":")[2]
        if column.startswith(TRUTH_PREFIXES) and (
            re.search(r"[/\\\x00]", name) or name.startswith(".")
        ):
            yield Finding(
                "concept_name",
                "error",
                f"{raw.file}: the column {column!r} names a concept with a slash or a leading dot",
                column=column,
                hint="rename the column: names of concepts become file names",
            )


def check_table(raw: RawTable) -> None:
    """Raise UserInputError for the first error of the table, saying how many more there are."""
    found = list(findings(raw))
    if not found:
        return
    more = f" (and {len(found) - 1} more: dermaudit data check {raw.file})" if found[1:] else ""
    raise UserInputError(found[0].message + more, found[0].hint)


def skipped_findings(raw: RawTable) -> Iterator[Finding]:
    """The rows of the source that the layout set aside."""
    for one in raw.skipped:
        yield Finding(
            one.kind,
            "skip",
            raw.told(one),
            line=one.line,
            image=one.image,
            column=one.column,
            hint=one.hint,
        )


def complete(raw: RawTable) -> pa.Table:
    """The table with image, image_id, group, split filled in, and truth columns as float64 with
    nulls for unknown. Call `check_table` first."""
    table = raw.table
    images = [image or "" for image in texts(table, "image")]  # check_table refuses blank ones
    ids = [own or image for own, image in zip(texts(table, "image_id"), images, strict=True)]
    groups = [own or id_ for own, id_ in zip(texts(table, "group"), ids, strict=True)]
    splits = texts(table, "split")
    if not any(splits):
        splits = assign(groups)
    filled = {"image": images, "image_id": ids, "group": groups, "split": splits}
    for name, values in filled.items():
        table = put(table, name, pa.array(values, pa.string()))
    for name in table.column_names:
        if name == "label":
            table = put(table, name, pa.array(texts(table, name), pa.string()))
        elif name.startswith(TRUTH_PREFIXES):
            values = [truth_value(cell) for cell in table.column(name).to_pylist()]
            table = put(table, name, pa.array(values, pa.float64()))
    first = ["image", "image_id", "split", "label", "group"]
    order = [n for n in first if n in table.column_names]
    order += [n for n in table.column_names if n not in first]
    # Schema metadata (pandas writes its own) is no part of the data and would change its hash.
    return table.select(order).combine_chunks().replace_schema_metadata(None)


def texts(table: pa.Table, name: str) -> list[str | None]:
    """A column as stripped text, None where blank or where the column is absent."""
    if name not in table.column_names:
        return [None] * table.num_rows
    return [
        None if cell is None or cell != cell else str(cell).strip() or None
        for cell in table.column(name).to_pylist()
    ]


def truth_value(cell: Any) -> float | None:
    """1, 0 or a probability as a number, None for blank. ValueError for anything else."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    value = float(cell)
    if value != value:
        return None
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{value} is not between 0 and 1")
    return value


def path_problem(image: str) -> str | None:
    """Why a path may not be used, None when it may: it must stay below the data folder."""
    pure = PurePosixPath(image)
    if pure.is_absolute() or PureWindowsPath(image).is_absolute():
        return "an absolute path"
    if ".." in pure.parts or ".." in PureWindowsPath(image).parts:
        return "a path outside the data folder"
    if "\0" in image:
        return "not a path"
    if pure.suffix.lower() not in IMAGE_SUFFIXES:
        return f"not the name of an image ({' '.join(s[1:] for s in IMAGE_SUFFIXES)})"
    return None


def put(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _at(raw: RawTable, row: int) -> str:
    return f"{raw.file}, {raw.at(row)}"


def _paths(raw: RawTable) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for row, image in enumerate(texts(raw.table, "image")):
        where = {"row": row, "line": raw.line(row), "image": image, "column": "image"}
        if image is None:
            yield Finding(
                "blank_image",
                "error",
                f"{_at(raw, row)}: column 'image' is blank",
                hint="write the path of the image, or remove the row",
                **where,
            )
            continue
        problem = path_problem(image)
        if problem:
            yield Finding(
                "bad_path",
                "error",
                f"{_at(raw, row)}: column 'image': '{image}' is {problem}",
                hint=f"paths are relative to {raw.root} and stay inside it",
                **where,
            )
        elif image in first:
            yield Finding(
                "duplicate_image",
                "error",
                f"{_at(raw, row)}: column 'image': '{image}' was there before, at "
                f"{raw.at(first[image])}",
                hint="one row an image: remove one of the two",
                **where,
            )
        first.setdefault(image, row)


def _ids(raw: RawTable) -> Iterator[Finding]:
    first: dict[str, int] = {}
    images = texts(raw.table, "image")
    for row, id_ in enumerate(texts(raw.table, "image_id")):
        if id_ is not None and id_ in first:
            yield Finding(
                "duplicate_id",
                "error",
                f"{_at(raw, row)}: column 'image_id': '{id_}' was there before, at "
                f"{raw.at(first[id_])}",
                row,
                raw.line(row),
                images[row],
                "image_id",
                "give every image its own id",
            )
        elif id_ is not None:
            first[id_] = row


def _splits(raw: RawTable) -> Iterator[Finding]:
    splits = texts(raw.table, "split")
    if not any(splits):
        return
    images = texts(raw.table, "image")
    seen: dict[str, int] = {}
    for row, (split, group) in enumerate(zip(splits, texts(raw.table, "group"), strict=True)):
        where = {"row": row, "line": raw.line(row), "image": images[row], "column": "split"}
        if split not in SPLITS:
            near = closest(split or "", SPLITS)
            yield Finding(
                "unknown_split",
                "error",
                f"{_at(raw, row)}: column 'split' "
                + (f"says '{split}'" if split else "is blank, but not in all rows"),
                hint=(f"did you mean '{near}'? " if near else "")
                + "write train, val or test, or remove the column: then the split is made by group",
                **where,
            )
        elif group is not None:
            before = seen.setdefault(group, row)
            if splits[before] != split:
                yield Finding(
                    "group_across_splits",
                    "error",
                    f"{_at(raw, row)}: group '{group}' is in {split} here and in {splits[before]} "
                    f"at {raw.at(before)}",
                    hint="a group (lesion, patient) stays in one split: remove the column 'split' "
                    "to have it made by group",
                    **where,
                )


def _truth(raw: RawTable) -> Iterator[Finding]:
    images = texts(raw.table, "image")
    seen: dict[str, str] = {}
    for name in raw.table.column_names:
        if not name.startswith(TRUTH_PREFIXES):
            continue
        short = name.split(":", 1)[1]
        if not short or short in seen:
            yield Finding(
                "bad_column",
                "error",
                f"{raw.file}: column '{name}' "
                + (f"says the same word as '{seen[short]}'" if short else "names no concept"),
                column=name,
                hint="a word is a concept or an artifact: rename one column",
            )
            continue
        seen[short] = name
        for row, cell in enumerate(raw.table.column(name).to_pylist()):
            try:
                truth_value(cell)
            except (ValueError, TypeError):
                yield Finding(
                    "bad_value",
                    "error",
                    f"{_at(raw, row)}: column '{name}' says '{cell}'",
                    row,
                    raw.line(row),
                    images[row],
                    name,
                    "write 1, 0, a probability between them, or leave it blank for unknown",
                )
