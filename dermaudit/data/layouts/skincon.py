"""SkinCon (Daneshjou et al., NeurIPS 2022): 48 clinical concepts for Fitzpatrick17k and DDI images."""

from __future__ import annotations

import re

from .csv_rows import CsvRows
from .public_table import Columns, PublicTable

_EXCLUDED = "Do not consider this image"
_ZERO_ONE = {"0", "1", "0.0", "1.0", None}


def _concepts(rows: CsvRows) -> Columns:
    made: Columns = {}
    excluded = [cell in ("1", "1.0") for cell in rows.get(_EXCLUDED)]
    for name, cells in rows.columns.items():
        if name in ("ImageID", _EXCLUDED) or name.startswith("unnamed_"):
            continue
        if set(cells) <= _ZERO_ONE:
            # "Brown(Hyperpigmentation)" is brown_hyperpigmentation.
            concept = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
            # The concepts of an image that the annotators rejected are unknown.
            known = zip(cells, excluded, strict=True)
            made[f"concept:{concept}"] = [None if out else cell for cell, out in known]
    return made


LAYOUT = PublicTable(
    name="skincon",
    description="ImageID, a 0/1 column a concept, 'Do not consider this image'",
    usual_file="annotations_fitzpatrick17k.csv",
    image="ImageID",
    needed=(_EXCLUDED,),
    derive=_concepts,
    order=40,
)
