"""MAKE's training table (arXiv 2505.09372): the text views of an image, and masks of which count.

The masks are text such as "[1, 1, 0]" and are parsed as such; the published loader runs them as code.
`knowledge_masks` is [caption, ontology, visual concepts]: the order of the published code, not of its
guide. A view that a mask leaves out becomes blank.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..manifest.tables import RawTable, SkippedRow
from .csv_rows import CsvRows, header_of, one_file, raw_table, read_rows
from .derm1m import clean, empty_problem, joined
from .registry import Layout

NAME = "make"
NEEDS = (
    "filename, caption, ontology_caption, visual_concept_caption, "
    "subcaption_1 …, sub_caption_mask, knowledge_masks"
)
_NEEDED = {"filename", "caption", "sub_caption_mask", "knowledge_masks"}
_VIEWS = {
    "caption": "caption",
    "ontology_caption": "ontology_caption",
    "visual_concept_caption": "concept_caption",
}
_USED = {"filename", "sub_captions", "sub_caption_mask", "knowledge_masks", *_VIEWS}
_MASK = re.compile(r"\[\s*[01]\s*(?:,\s*[01]\s*)*\]")
_LABELS = ("standardized_disease", "disease_label")
_PATHS = ("ontology_final", "hierarchical_disease_label")


def matches(path: Path) -> bool:
    """Return whether `path` is such a table."""
    header = set(header_of(path))
    return header >= {"filename", "sub_caption_mask", "knowledge_masks"} and "image" not in header


def read(path: Path) -> RawTable:
    """Read the table. Rows whose masks do not parse, or disagree with the captions, are skipped.

    Errors: UserInputError for a file that is missing, unreadable or lacks a column.
    """
    file = one_file(path, matches, NAME, "MAKE_training.csv")
    rows = read_rows(file)
    names = _subcaptions(rows)
    rows.need([*sorted(_NEEDED), *_VIEWS, *([] if names else ["subcaption_1"])], NAME)
    rest = set(rows.columns) - _USED - set(names)
    for name in [*rest, *_VIEWS, *names]:
        rows.columns[name] = clean(rows.columns[name])
    columns = {new: list(rows.get(old)) for old, new in _VIEWS.items()}
    columns |= {name: list(rows.get(name)) for name in names}
    bad: dict[int, SkippedRow] = {}
    first: dict[str, int] = {}
    for row, image in enumerate(rows.get("filename")):
        found = _row(rows, names, row, first)
        if isinstance(found, SkippedRow):
            bad[row] = found
            continue
        assert image is not None  # _row refuses a blank one
        first[image] = rows.lines[row]
        for name, counts in zip(columns, found, strict=True):
            if not counts:
                columns[name][row] = None
    label = next((name for name in _LABELS if name in rows.columns), "")
    path_of = next((name for name in _PATHS if name in rows.columns), "")
    columns = {"image": rows.get("filename"), "label": rows.get(label), **columns}
    columns["ontology"] = [joined(cell) for cell in rows.get(path_of)]
    return raw_table(rows, NAME, columns, _USED | {label, path_of}, bad)


def parse_mask(cell: str | None, n: int) -> list[int]:
    """Return the n zeros and ones of a cell such as "[1, 0, 0]".

    Errors: ValueError with the end of a sentence that begins with the column.
    """
    if cell is None:
        raise ValueError("is blank")
    if len(cell) > 1000 or _MASK.fullmatch(cell) is None:
        shown = cell if len(cell) <= 40 else cell[:40] + "…"
        raise ValueError(f"says '{shown}', which is not a list of 0 and 1")
    mask = [int(digit) for digit in re.findall(r"[01]", cell)]
    if len(mask) != n:
        raise ValueError(f"has {len(mask)} entries, {n} are needed")
    return mask


def _subcaptions(rows: CsvRows) -> list[str]:
    """Return subcaption_1 … up to the first number that is missing."""
    names = []
    while f"subcaption_{len(names) + 1}" in rows.columns:
        names.append(f"subcaption_{len(names) + 1}")
    return names


def _row(
    rows: CsvRows, names: list[str], row: int, first: dict[str, int]
) -> list[int] | SkippedRow:
    """Return which of [caption, ontology, concept, subcaption_1 …] count, or what is wrong."""
    image = rows.get("filename")[row]
    problem = empty_problem(rows, row, image, caption="not checked here")
    if problem:
        return problem
    if image in first:
        reason = f"the image was there before, at line {first[image]}"
        hint = "one row an image: remove one of the two"
        return rows.skip(row, "duplicate_image", reason, "filename", hint, image)
    masks = {}
    for column, n in (("knowledge_masks", 3), ("sub_caption_mask", len(names))):
        try:
            masks[column] = parse_mask(rows.get(column)[row], n)
        except ValueError as error:
            ones = ", ".join("1" * min(n, 3)) + (", …" if n > 3 else "")
            hint = f"write {n} zeros and ones: [{ones}]"
            return rows.skip(row, "bad_mask", f"column '{column}' {error}", column, hint, image)
    views, mask = masks["knowledge_masks"], masks["sub_caption_mask"]
    return _disagreement(rows, names, row, views, mask) or [*views, *mask]


def _disagreement(
    rows: CsvRows, names: list[str], row: int, views: list[int], mask: list[int]
) -> SkippedRow | None:
    """Return what is wrong if the masks of a row do not agree with its texts."""

    def skip(kind: str, reason: str, column: str, hint: str) -> SkippedRow:
        return rows.skip(row, kind, reason, column, hint, rows.get("filename")[row])

    for old, counts in zip(_VIEWS, views, strict=True):
        if counts and rows.get(old)[row] is None:
            # A missing caption is the most frequent case and has a kind of its own.
            return skip(
                "empty_caption" if old == "caption" else "mask_disagrees",
                f"knowledge_masks counts '{old}', which is empty",
                old,
                "the order is [caption, ontology_caption, visual_concept_caption]: write 0 for it",
            )
    filled = [int(rows.get(name)[row] is not None) for name in names]
    if filled != mask:
        k = next(k for k, (a, b) in enumerate(zip(filled, mask, strict=True)) if a != b)
        return skip(
            "mask_disagrees",
            f"sub_caption_mask says {mask[k]} for '{names[k]}', which is "
            + ("filled" if filled[k] else "empty"),
            "sub_caption_mask",
            "write 1 for each sub-caption that is filled, 0 for the rest",
        )
    count = rows.get("sub_captions")[row]
    if count is not None and count != str(sum(mask)):
        return skip(
            "count_disagrees",
            f"sub_captions says {count[:20]}, sub_caption_mask has {sum(mask)} ones",
            "sub_captions",
            f"write {sum(mask)}, or fix the mask",
        )
    if not any(views) and not any(mask):
        hint = "write a caption, or remove the row"
        return skip("empty_caption", "no text of this row counts", "caption", hint)
    return None


LAYOUT = Layout(NAME, NEEDS, matches, read, order=50)
