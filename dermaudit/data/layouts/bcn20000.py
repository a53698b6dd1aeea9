"""BCN20000 (Combalia et al., arXiv 1908.02288) as the authors publish it; ISIC's copy is `isic`."""

from __future__ import annotations

from .public_table import PublicTable

LAYOUT = PublicTable(
    name="bcn20000",
    description="bcn_filename, diagnosis, lesion_id, age_approx, sex, anatom_site_general",
    usual_file="bcn_20k_train.csv",
    image="bcn_filename",
    needed=("diagnosis",),
    columns={
        "label": "diagnosis",
        "group": "lesion_id",
        "site": "anatom_site_general",
        "age": "age_approx",
        "sex": "sex",
    },
)
