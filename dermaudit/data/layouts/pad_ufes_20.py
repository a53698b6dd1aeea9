"""PAD-UFES-20 (Pacheco et al., Data in Brief 32:106221): smartphone photographs, six diagnoses."""

from __future__ import annotations

from .public_table import PublicTable

LAYOUT = PublicTable(
    name="pad-ufes-20",
    description="img_id, diagnostic, patient_id (images in imgs_part_1 … imgs_part_3)",
    usual_file="metadata.csv",
    image="img_id",
    needed=("diagnostic", "patient_id"),
    columns={
        "label": "diagnostic",
        "group": "patient_id",
        "skin_tone": "fitspatrick",
        "site": "region",
        "age": "age",
        "sex": "gender",
    },
)
