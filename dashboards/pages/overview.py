"""The Overview page: where the run comes from, what was found, what could not be measured."""

from __future__ import annotations

from html import escape

import streamlit as st

from dermaudit.dashboards.exhibits import latents as evidence
from dermaudit.dashboards.exhibits import limits, overview
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.exhibits.tables import Table
from dermaudit.dashboards.pages import session


def show() -> None:
    session.page("Overview", _body)


def _body(run: RunView) -> None:
    session.exhibit(
        "Concepts with a label: the best single latent", lambda: overview.found(run), run
    )
    _links(run)
    left, right = st.columns(2, gap="large")
    with left:
        session.exhibit("Names", lambda: overview.naming(run), run)
    with right:
        bottleneck = "Concept bottlenecks"
        session.exhibit(bottleneck, lambda: overview.bottleneck(run), run)
        session.exhibit("The run's head", lambda: overview.head(run), run)
    session.exhibit("Sparse autoencoders", lambda: overview.sae(run), run)
    session.exhibit("Artifacts by label", lambda: overview.artifact_prevalence(run), run)
    left, right = st.columns(2, gap="large")
    with left:
        session.exhibit("Images", lambda: overview.counts(run), run)
        session.exhibit("Skin tones", lambda: overview.skin_tones(run), run)
    with right:
        st.subheader("Provenance")
        session.small_table(overview.provenance(run))
    st.subheader("What could not be measured, and why")
    missing = session.computed(run, "unmeasured", (), lambda: limits.unmeasured(run))
    session.small_table(Table(("what", "why"), list(missing)))
    st.subheader("Do not use this run if")
    said = session.computed(run, "do not use", (), lambda: limits.do_not_use_if(run))
    st.html("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in said) + "</ul>")


def _links(run: RunView) -> None:
    """Straight to the concept pages of the latents that the labels chose."""
    links = [
        f'<a href="{escape(session.latent_link(r["site"], r["latent"]))}" target="_self">{escape(r["concept"])}</a>'
        for r in evidence.label_choices(run)
    ]
    if links:
        st.html(f'<p class="da-links">Open the latent chosen for: {" ".join(links)}</p>')
