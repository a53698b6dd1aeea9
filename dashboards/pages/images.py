"""The Images page: all images of the run, by split, label and concept; a click opens one."""

from __future__ import annotations

import numpy as np
import streamlit as st

from dermaudit.dashboards.exhibits import image
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.pages import display, session
from dermaudit.dashboards.pages.page import Page


def _show(run: RunView) -> None:
    columns = st.columns(3)
    with columns[0]:
        split = session.choice("Split", ["all", *sorted(set(run.splits) - {""})], "split")
    with columns[1]:
        label = session.choice("Label", ["all", *sorted(set(run.labels) - {""})], "label")
    with columns[2]:
        known = [name for name, truth in run.truth.items() if truth.type != "diagnosis"]
        concept = session.choice("With concept", ["any", *known], "with")
    keep = np.ones(run.n, dtype=bool)
    if split != "all":
        keep &= run.splits == split
    if label != "all":
        keep &= run.labels == label
    if concept != "any":
        keep &= run.truth[concept].values == 1
    rows = [int(i) for i in np.flatnonzero(keep)]
    st.markdown(
        f"{len(rows)} of {run.n} images. Click one to open it. {image.WRONG} marks an image whose "
        "label the run's classifier does not predict."
    )
    display.paged_grid(
        run,
        [(i, (run.labels[i], run.splits[i], image.mistake(run, i))) for i in rows],
        key=f"browse-{split}-{label}-{concept}",
    )
    display.links(
        "Continue with:",
        [("overview", session.address("./")), ("all concepts", session.address("concepts"))],
    )


PAGE = Page("images", "Images", _show, order=3)
