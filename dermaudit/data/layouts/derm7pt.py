"""derm7pt (Kawahara et al., JBHI 2019): dermoscopic images with the seven-point checklist.

The dermoscopic image of each case is read; the path of the clinical photograph stays in `clinic`.
The attributes become concepts: presence of the structure, and its atypical form.
"""

from __future__ import annotations

from .csv_rows import CsvRows
from .public_table import Columns, PublicTable, indicator

_STRUCTURES = (
    "pigment_network",
    "streaks",
    "pigmentation",
    "regression_structures",
    "dots_and_globules",
    "blue_whitish_veil",
    "vascular_structures",
)
# The values for which the seven-point checklist gives points.
_ATYPICAL = {
    "atypical_pigment_network": ("pigment_network", ("atypical",)),
    "irregular_streaks": ("streaks", ("irregular",)),
    "irregular_pigmentation": ("pigmentation", ("diffuse irregular", "localized irregular")),
    "irregular_dots_and_globules": ("dots_and_globules", ("irregular",)),
    "irregular_vascular_structures": ("vascular_structures", ("linear irregular", "dotted")),
}


def _concepts(rows: CsvRows) -> Columns:
    made: Columns = {
        f"concept:{name}": indicator(rows.get(name), lambda cell: cell != "absent")
        for name in _STRUCTURES
        if name in rows.columns
    }
    for name, (source, values) in _ATYPICAL.items():
        if source in rows.columns:
            made[f"concept:{name}"] = indicator(rows.get(source), values.__contains__)
    return made


LAYOUT = PublicTable(
    name="derm7pt",
    description="derm, case_num, diagnosis and the attributes of the seven-point checklist",
    usual_file="meta.csv",
    image="derm",
    needed=("case_num", "diagnosis", "pigment_network"),
    columns={"label": "diagnosis", "group": "case_num", "site": "location", "sex": "sex"},
    derive=_concepts,
)
