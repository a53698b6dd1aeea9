"""The Overview page: what was found, where the run comes from, what could not be measured."""

from __future__ import annotations

from html import escape

import streamlit as st

from dermaudit.dashboards.exhibits import latents, limits, overview, verdict
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.exhibits.tables import Table
from dermaudit.dashboards.pages import display, session
from dermaudit.dashboards.pages.page import Page


def _show(run: RunView) -> None:
    display.exhibit("Which artifacts the model leans on", lambda: verdict.verdict(run), run)
    display.exhibit(
        "How far the prediction moves with the artifact", lambda: verdict.leaning(run), run
    )
    display.links(
        "Continue with:",
        [
            ("all concepts", session.address("concepts")),
            ("all images", session.address("images")),
            *(
                (f"suppression of {c}", session.address("suppression", concept=c))
                for c in run.suppressions
            ),
        ],
    )
    display.exhibit(
        "How well one latent detects each labelled concept", lambda: overview.found(run), run
    )
    display.links(
        "Open the latent chosen for:",
        [
            (r.concept, session.latent_address(r.site, r.latent))
            for r in latents.label_choices(run)
            if r.site is not None and r.latent is not None
        ],
    )
    left, right = display.halves("results")
    with left:
        display.exhibit("How many latents have a name", lambda: overview.naming(run), run)
    with right:
        display.exhibit(
            "Predicting the target from a few concepts", lambda: overview.bottleneck(run), run
        )
    display.exhibit("The classifier of this run", lambda: overview.head(run), run)
    display.exhibit("Sparse autoencoders", lambda: overview.sae(run), run)
    display.exhibit(
        "Which artifacts go with which label", lambda: overview.artifact_prevalence(run), run
    )
    left, right = display.halves("data")
    with left:
        display.exhibit("Images of each label", lambda: overview.counts(run), run)
        display.exhibit("Images of each skin tone", lambda: overview.skin_tones(run), run)
    with right:
        display.exhibit("Model, data and versions", lambda: overview.provenance(run), run)
    st.header(limits.UNMEASURED, anchor=False)
    missing = session.computed(run, "unmeasured", (), lambda: limits.unmeasured(run))
    display.small_table(Table(("what", "why"), list(missing)))
    st.header(limits.DO_NOT_USE, anchor=False)
    lines = session.computed(run, "do not use", (), lambda: limits.do_not_use_if(run))
    st.html("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>")


PAGE = Page("overview", "Overview", _show, order=1)
