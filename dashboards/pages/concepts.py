"""The Concepts page: the table of latents; a click on a row opens the page of one."""

from __future__ import annotations

import streamlit as st

from dermaudit.dashboards.exhibits import latents
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.pages import display, session
from dermaudit.dashboards.pages.page import Page


def _show(run: RunView) -> None:
    key = session.start_value("show", "all", latents.FILTERS)
    kind = st.segmented_control("Show", latents.FILTERS, required=True, key=key)
    kind = session.keep_value("show", kind or "all", "all")
    text = st.text_input(
        "Find",
        placeholder="a name, a label, 'whole image', 'patches' or a number",
        key=session.start_value("find", ""),
    )
    text = session.keep_value("find", text or "", "")
    rows = latents.concept_rows(run, kind, text)
    named = sum(bool(r["name"]) for r in rows)
    st.markdown(
        f"{len(rows)} latents, {named} of them named. Click a row to open its page; click the head "
        "of a column to sort."
    )
    if not rows:
        st.info("No latent fits this filter.")
        return
    display.table(
        latents.concept_table(rows),
        alt="concepts",
        key=f"concepts-{kind}-{text}",
        open_row=lambda i: session.latent_address(rows[i]["site"], rows[i]["latent"]),
    )
    display.caption(latents.CONCEPTS_CAPTION)
    display.links(
        "Continue with:",
        [("overview", session.address("./")), ("all images", session.address("images"))],
    )


PAGE = Page("concepts", "Concepts", _show, order=2)
