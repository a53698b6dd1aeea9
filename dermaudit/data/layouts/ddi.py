"""DDI, Diverse Dermatology Images (Daneshjou et al., Science Advances 8:eabq6147)."""

from __future__ import annotations

from .csv_rows import CsvRows
from .public_table import Columns, PublicTable, binary


def _malignant(rows: CsvRows) -> Columns:
    return {"malignant": binary(rows.get("malignant"), ("true", "1"))}


LAYOUT = PublicTable(
    name="ddi",
    description="DDI_file, disease, malignant, skin_tone (12, 34, 56)",
    usual_file="ddi_metadata.csv",
    image="DDI_file",
    needed=("disease", "malignant"),
    columns={"label": "disease", "skin_tone": "skin_tone"},
    derive=_malignant,
)
