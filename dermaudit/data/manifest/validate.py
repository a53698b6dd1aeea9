"""What is wrong with a table, row by row, and the same table made complete.

`findings` lists every problem; `complete` fills in what a table may leave out (image_id, group, split)
and turns truth columns into numbers. Blank is unknown, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from dermaudit.errors import UserInputError, closest

from ..splits import SPLITS, assign
from .image_paths import local_image, path_hint, path_problem
from .tables import IMAGE_SUFFIXES, NESTED_HINT, PLAIN_COLUMNS, TRUTH_PREFIXES, RawTable

#: other usual names of optional columns, which a user may want to rename.
_OTHER_NAMES = {
    "label": ("labels", "class", "diagnosis", "dx", "target"),
    "group": ("groups", "patient_id", "lesion_id", "group_id", "patient"),
    "split": ("splits", "fold", "subset"),
}


@dataclass(frozen=True)
class Finding:
    """One problem of a data set.

    `level`: error (the table is refused), skip (the image is left out), warning (used as it is).
    `row` counts from 0, `line` as an editor does.
    """

    kind: str
    level: str
    message: str
    row: int | None = None
    line: int | None = None
    image: str | None = None
    column: str | None = None
    hint: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the finding as JSON."""
        return asdict(self)


def findings(raw: RawTable) -> Iterator[Finding]:
    """Yield every error of the table itself; no image is opened."""
    names = raw.table.column_names
    if "image" not in names:
        near = _likely_image_column(raw)
        hint = f"rename the column '{near}' to 'image'"
        if near is None:
            hint = (
                f"add it: the path of each image, relative to {raw.file.name} (columns: "
                f"{', '.join(names[:12])})"
            )
        message = f"{raw.file} has no column 'image'"
        yield Finding("missing_column", "error", message, column="image", hint=hint)
        return
    if raw.table.num_rows == 0:
        if raw.skipped:
            yield Finding(
                "empty",
                "error",
                f"{raw.file}: none of its {len(raw.skipped)} rows can be used; the first: "
                f"{raw.describe(raw.skipped[0])}",
                hint=raw.skipped[0].hint,
            )
        else:
            yield Finding("empty", "error", f"{raw.file} has no rows", hint="add one row an image")
        return
    if raw.layout == "native":
        yield from _equal_names(raw)
    nested = list(_nested(raw))
    yield from nested
    if nested:
        return  # the cells of these columns cannot be read as text
    yield from _paths(raw)
    yield from _ids(raw)
    yield from _splits(raw)
    yield from _truth(raw)
    yield from _concept_names(raw)


def _error(raw: RawTable, kind: str, row: int, column: str, problem: str, hint: str) -> Finding:
    """Return an error at one row: the file, the row, what is wrong, and how to fix it."""
    return Finding(
        kind,
        "error",
        f"{raw.file}, {raw.at(row)}: {problem}",
        row=row,
        line=raw.line(row),
        image=_text(raw.table.column("image")[row].as_py()),
        column=column,
        hint=hint,
    )


def _equal_names(raw: RawTable) -> Iterator[Finding]:
    """Yield columns that differ in letter case alone: an SQL condition cannot tell them apart."""
    first: dict[str, str] = {}
    for name in raw.table.column_names:
        before = first.setdefault(name.casefold(), name)
        if before != name:
            yield Finding(
                "equal_columns",
                "error",
                f"{raw.file}: the columns '{before}' and '{name}' differ in letter case alone",
                column=name,
                hint="rename or remove one of them",
            )


def _nested(raw: RawTable) -> Iterator[Finding]:
    """Yield the first list or object in each column that needs one plain value per image."""
    for name in PLAIN_COLUMNS:
        if name not in raw.table.column_names:
            continue
        column = raw.table.column(name)
        if not pa.types.is_nested(column.type):
            continue
        row = next((i for i, cell in enumerate(column) if cell.is_valid), 0)
        yield _error(
            raw,
            "nested_value",
            row,
            name,
            f"column '{name}' holds {column[row].as_py()}, not one value",
            NESTED_HINT,
        )


def near_columns(names: list[str]) -> dict[str, str]:
    """Return {optional column that is absent: the column that is probably meant}."""
    found = {}
    folded = {name.casefold(): name for name in reversed(names)}
    for wanted, others in _OTHER_NAMES.items():
        if wanted not in names:
            near = next((folded[o] for o in (wanted, *others) if o in folded), None)
            if near:
                found[wanted] = near
    return found


def _likely_image_column(raw: RawTable) -> str | None:
    """Return the column that most likely names the images, None without one.

    Its values are files that exist, or look like image files, or its own name says so.
    """
    best = None
    for name in raw.table.column_names:
        column = raw.table[name].slice(0, 20)
        values = [value for value in column.to_pylist() if isinstance(value, str) and value]
        if not values:
            continue
        local = [local_image(raw.root, value) for value in values]
        if all(not path_problem(value) and (raw.root / value).is_file() for value in local):
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
    """Raise UserInputError for the first error of the table, with the number of further errors."""
    found = list(findings(raw))
    if not found:
        return
    more = f" (and {len(found) - 1} more: dermaudit data check {raw.file})" if found[1:] else ""
    raise UserInputError(found[0].message + more, found[0].hint)


def skipped_findings(raw: RawTable) -> Iterator[Finding]:
    """Yield the rows of the source that the layout skipped."""
    for one in raw.skipped:
        yield Finding(
            one.kind,
            "skip",
            raw.describe(one),
            line=one.line,
            image=one.image,
            column=one.column,
            hint=one.hint,
        )


def complete(raw: RawTable) -> pa.Table:
    """Return the table with image, image_id, group and split filled in; call `check_table` first.

    Truth columns become float64 with nulls for unknown.
    """
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
    # Schema metadata (pandas writes its own) is not part of the data and would change its hash.
    return table.select(order).combine_chunks().replace_schema_metadata(None)


def texts(table: pa.Table, name: str) -> list[str | None]:
    """Return a column as stripped text, None where blank or if the column is absent."""
    if name not in table.column_names:
        return [None] * table.num_rows
    return [_text(cell) for cell in table.column(name).to_pylist()]


def _text(cell: Any) -> str | None:
    return None if cell is None or cell != cell else str(cell).strip() or None


def truth_value(cell: Any) -> float | None:
    """Return 1, 0 or a probability as a number, None for blank. Errors: ValueError for anything else."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    value = float(cell)
    if value != value:
        return None
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{value} is not between 0 and 1")
    return value


def put(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """Return the table with this column, in the place of one of the same name."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _paths(raw: RawTable) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for row, image in enumerate(texts(raw.table, "image")):
        if image is None:
            problem = "column 'image' is blank"
            hint = "write the path of the image, or remove the row"
            yield _error(raw, "blank_image", row, "image", problem, hint)
            continue
        problem = path_problem(image)
        if problem:
            problem, hint = f"column 'image': '{image}' is {problem}", path_hint(image, raw.root)
            yield _error(raw, "bad_path", row, "image", problem, hint)
        elif image in first:
            problem = f"column 'image': '{image}' was there before, at {raw.at(first[image])}"
            hint = "one row an image: remove one of the two"
            yield _error(raw, "duplicate_image", row, "image", problem, hint)
        first.setdefault(image, row)


def _ids(raw: RawTable) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for row, id_ in enumerate(texts(raw.table, "image_id")):
        if id_ is not None and id_ in first:
            problem = f"column 'image_id': '{id_}' was there before, at {raw.at(first[id_])}"
            hint = "give every image its own id"
            yield _error(raw, "duplicate_id", row, "image_id", problem, hint)
        elif id_ is not None:
            first[id_] = row


def _splits(raw: RawTable) -> Iterator[Finding]:
    splits = texts(raw.table, "split")
    if not any(splits):
        return
    seen: dict[str, int] = {}
    for row, (split, group) in enumerate(zip(splits, texts(raw.table, "group"), strict=True)):
        if split not in SPLITS:
            near = closest(split or "", SPLITS)
            value = f"says '{split}'" if split else "is blank, but not in all rows"
            hint = (f"did you mean '{near}'? " if near else "") + (
                "write train, val or test, or remove the column: then the split is made by group"
            )
            yield _error(raw, "unknown_split", row, "split", f"column 'split' {value}", hint)
        elif group is not None:
            before = seen.setdefault(group, row)
            if splits[before] != split:
                problem = f"group '{group}' is in {split} here and in {splits[before]} at {raw.at(before)}"
                hint = (
                    "a group (lesion, patient) stays in one split: remove the column 'split' to have "
                    "it made by group"
                )
                yield _error(raw, "group_across_splits", row, "split", problem, hint)


def _truth(raw: RawTable) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name in raw.table.column_names:
        if not name.startswith(TRUTH_PREFIXES):
            continue
        short = name.split(":", 1)[1]
        if not short or short in seen:
            problem = f"says the same word as '{seen[short]}'" if short else "names no concept"
            yield Finding(
                "bad_column",
                "error",
                f"{raw.file}: column '{name}' {problem}",
                column=name,
                hint="a word is a concept or an artifact: rename one column",
            )
            continue
        seen[short] = name
        for row, cell in enumerate(raw.table.column(name).to_pylist()):
            try:
                truth_value(cell)
            except (ValueError, TypeError):
                hint = "write 1, 0, a probability between them, or leave it blank for unknown"
                yield _error(raw, "bad_value", row, name, f"column '{name}' says '{cell}'", hint)
