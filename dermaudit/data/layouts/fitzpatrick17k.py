"""Fitzpatrick17k (Groh et al., arXiv 2104.09957): clinical photographs named by their MD5 hash."""

from __future__ import annotations

from .csv_rows import CsvRows
from .public_table import Columns, PublicTable, binary


def _derived(rows: CsvRows) -> Columns:
    # Published files have either name; -1 is unknown.
    tone = next((n for n in ("fitzpatrick_scale", "fitzpatrick") if n in rows.columns), "")
    return {
        "skin_tone": [None if cell in ("-1", "-1.0") else cell for cell in rows.get(tone)],
        "malignant": binary(rows.get("three_partition_label"), ("malignant",)),
    }


LAYOUT = PublicTable(
    name="fitzpatrick17k",
    description="md5hash, label, three_partition_label, fitzpatrick_scale (or fitzpatrick)",
    usual_file="fitzpatrick17k.csv",
    image="md5hash",
    needed=("label",),
    columns={"label": "label"},
    derive=_derived,
)
