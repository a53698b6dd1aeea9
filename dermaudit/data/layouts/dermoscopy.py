"""The table of $DERMAUDIT_DATA/dermoscopy: ISIC 2018 with artifacts annotated by people, and HAM10000.

Artifacts are known only where `has_artifact_annotation == 1`; elsewhere only present artifacts were
noted, which would give a set without negatives. Model outputs (`inferred_*`) are not used as truth.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from dermaudit.errors import UserInputError

from ..manifest.tables import RawTable, read_table
from .csv_rows import header_of
from .registry import Layout

ARTIFACTS = {
    "dark_corner": "dark_corner",
    "hair": "hair",
    "gel_border": "gel_border",
    "gel_bubble": "gel_bubble",
    "ruler": "ruler",
    "ink": "ink",
    "patches": "patch",
}
CONCEPTS = ("pigment_network", "milia_like_cyst", "globules", "negative_network", "streaks")
DIAGNOSES = {
    "mel": "melanoma",
    "nv": "a melanocytic nevus",
    "bkl": "benign keratosis",
    "bcc": "basal cell carcinoma",
    "akiec": "actinic keratosis",
    "vasc": "a vascular lesion",
    "df": "dermatofibroma",
}
_PRESENT_WORDS = {
    "ruler": "a ruler is visible",
    "ink": "ink marks are visible",
    "hair": "hair over the lesion",
    "gel_bubble": "gel bubbles are visible",
    "gel_border": "the border of the gel is visible",
    "dark_corner": "dark corners",
    "patch": "a coloured patch is visible",
    "pigment_network": "pigment network",
    "milia_like_cyst": "milia-like cysts",
    "globules": "globules",
    "negative_network": "negative network",
    "streaks": "streaks",
}
_ABSENT_WORDS = {
    "ruler": "no ruler",
    "ink": "no ink marks",
    "hair": "no hair",
    "gel_bubble": "no gel bubbles",
    "gel_border": "no gel border",
    "dark_corner": "no dark corners",
    "patch": "no patch",
}
_NEEDED = {"image_id", "dx", "group_id", "has_artifact_annotation", *ARTIFACTS}
_NEEDED |= {f"attr_{name}" for name in CONCEPTS}


def _file(path: Path) -> Path:
    return path if path.suffix.lower() == ".csv" else path / "metadata.csv"


def matches(path: Path) -> bool:
    """Return whether `path` is in this layout."""
    return set(header_of(_file(path))) >= _NEEDED


def read(path: Path) -> RawTable:
    """Read the table. Errors: UserInputError when metadata.csv is missing, unreadable or lacks a column."""
    file = _file(path)
    source, first_line = read_table(file)
    missing = sorted(_NEEDED - set(source.column_names))
    if missing:
        raise UserInputError(
            f"{file} has no column '{missing[0]}'"
            + (f" (nor {', '.join(missing[1:4])})" if missing[1:] else ""),
            "this layout is for the table described in dermoscopy/metadata.csv; see --layout",
        )
    rows = source.to_pylist()
    columns: dict[str, list] = {
        "image": [f"images/{row['image_id']}.jpg" for row in rows],
        "image_id": [row["image_id"] for row in rows],
        "label": [row["dx"] for row in rows],
        "group": [row["group_id"] for row in rows],
    }
    for name, word in ARTIFACTS.items():
        columns[f"artifact:{word}"] = [
            row[name] if row["has_artifact_annotation"] == 1 else None for row in rows
        ]
    for word in CONCEPTS:
        columns[f"concept:{word}"] = [row[f"attr_{word}"] for row in rows]
    captions = [_captions(row, {n: columns[n][i] for n in columns}) for i, row in enumerate(rows)]
    columns["caption"] = [sentences[0] for sentences in captions]
    for k in range(1, max(map(len, captions), default=1)):
        columns[f"subcaption_{k}"] = [s[k] if k < len(s) else None for s in captions]
    table = pa.table(columns)
    # The split of the source is `dev` in every row, so it is made from the group.
    left_out = {"split", "image_id", *ARTIFACTS, *(f"attr_{word}" for word in CONCEPTS)}
    for name in source.column_names:
        if name not in left_out:
            table = table.append_column(name, source.column(name))
    return RawTable(table, file.parent, file, "dermoscopy", first_line)


def _captions(row: dict, columns: dict) -> list[str]:
    """Return [caption, subcaption, ...] of one image; an unknown sign is not mentioned."""
    diagnosis = f"dermoscopic image of {DIAGNOSES.get(row['dx'], row['dx'] or 'a skin lesion')}"
    site = f"on the {row['localization']}" if row.get("localization") else ""
    truth = {n.split(":")[1]: value for n, value in columns.items() if ":" in n}
    signs = [_PRESENT_WORDS[w] for w in CONCEPTS if truth[w] == 1]
    artifacts = [_PRESENT_WORDS[w] for w in ARTIFACTS.values() if truth[w] == 1]
    absent = [_ABSENT_WORDS[w] for w in ARTIFACTS.values() if truth[w] == 0]
    caption = ", ".join([f"{diagnosis} {site}".strip(), *signs, *artifacts])
    parts = [
        diagnosis,
        f"a lesion {site}" if site else "",
        f"with {', '.join(signs)}" if signs else "",
        ", ".join(artifacts),
        ", ".join(absent),
    ]
    return [caption, *(part for part in parts if part)]


LAYOUT = Layout(
    "dermoscopy",
    "image_id, dx, group_id, has_artifact_annotation and those of its artifacts",
    matches,
    read,
    order=1,
)
