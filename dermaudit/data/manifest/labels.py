"""One class under several spellings (`nv`, `NV`): found, reported with counts, merged on request."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import pyarrow as pa

from dermaudit.errors import UserInputError, unknown

from .tables import RawTable


def spellings(labels: Iterable[str | None]) -> list[Counter[str]]:
    """Return the counts of every group of labels that differ in case, blanks or punctuation alone."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for label in labels:
        if label is not None and label.strip():
            key = "".join(c for c in label.casefold() if c.isalnum())
            groups[key or label][label.strip()] += 1
    return [counts for counts in groups.values() if len(counts) > 1]


def describe(counts: Counter[str]) -> tuple[str, str]:
    """Return what is wrong with such a group, and the flag that merges it into its first spelling."""
    by_count = sorted(counts, key=lambda label: (-counts[label], label))
    listed = ", ".join(f"{label!r} ({counts[label]} images)" for label in by_count)
    merge = " ".join(f"--merge-labels '{label}={by_count[0]}'" for label in by_count[1:])
    return f"one class under several spellings? {listed} are different labels", f"merge: {merge}"


def merge_labels(raw: RawTable, merges: Sequence[str]) -> RawTable:
    """Return the table with labels replaced as `old=new` says.

    Raises UserInputError for a merge without "=", for a table without labels, and for a label that
    no image has.
    """
    if not merges:
        return raw
    if "label" not in raw.table.column_names:
        raise UserInputError(
            f"--merge-labels needs labels, and {raw.file} has no column 'label'",
            "leave out --merge-labels, or name the column of the labels 'label'",
        )
    labels = [None if v is None else str(v).strip() for v in raw.table["label"].to_pylist()]
    known = sorted({label for label in labels if label})
    new: dict[str, str] = {}
    for merge in merges:
        old, separator, target = (part.strip() for part in merge.partition("="))
        if not (old and separator and target):
            raise UserInputError(
                f"--merge-labels {merge!r} is not of the form old=new",
                "write: --merge-labels nv=NV",
            )
        if old not in known:
            raise unknown("label", old, known)
        new[old] = target
    merged = [new.get(label, label) if label else label for label in labels]
    index = raw.table.column_names.index("label")
    table = raw.table.set_column(index, "label", pa.array(merged, pa.string()))
    return dataclasses.replace(raw, table=table)
