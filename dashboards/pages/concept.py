"""The page of one latent: its images, its activations, its name, its evidence, its maps."""

from __future__ import annotations

import streamlit as st

from dermaudit.concepts.naming.concept_rows import ConceptRow
from dermaudit.dashboards.exhibits import latents
from dermaudit.dashboards.exhibits.run_view import POOLED, RunView, latent_title
from dermaudit.dashboards.exhibits.tables import site_title
from dermaudit.dashboards.pages import display, session
from dermaudit.dashboards.pages.page import Page
from dermaudit.errors import UserInputError

MAPS = 6


def _row(run: RunView) -> ConceptRow:
    """Return the row of the latent that the address names."""
    named = st.query_params.get("latent", "")
    site, _, number = named.rpartition("/")
    if not site or not number.isdecimal():
        raise UserInputError(
            f"'{named}' is not a latent", "an address names it as site/number: visual.pooled/41"
        )
    return latents.find_concept(run, site, int(number))


def _heading(run: RunView) -> str:
    row = _row(run)
    return f"{latent_title(row)}: latent {row['latent']}, {site_title(row['site'])}"


def _show(run: RunView) -> None:
    row = _row(run)
    site, latent = row["site"], row["latent"]
    display.links("Continue with:", _next_pages(run, row))
    st.markdown(latents.summary(run, row))
    st.header("Images in which it is most active", anchor=False)
    active = latents.active_rows(run, site, latent)
    display.paged_grid(
        run,
        [(i, (f"activation {value:.3g}", run.labels[i], run.splits[i])) for i, value in active],
        key=f"top-{site}-{latent}",
    )
    left, right = display.halves("latent")
    with left:
        display.exhibit("Activations", lambda: latents.activations(run, row), run, site, latent)
    with right:
        display.exhibit("Words that fit best", lambda: latents.rival_names(row), run, site, latent)
    display.exhibit(
        "How well it ranks labelled images",
        lambda: latents.against_labels(run, row),
        run,
        site,
        latent,
    )
    st.header("Where in the image it is active", anchor=False)
    if site == POOLED:
        st.info(
            "Not measured: this latent reads the embedding of the whole image, which has no "
            "patches. Latents of patches have maps."
        )
        return
    display.patch_maps(run, [i for i, _ in active[:MAPS]], site, latent, width=300)


def _next_pages(run: RunView, row: ConceptRow) -> list[tuple[str, str]]:
    suppressed = latents.suppressed_by(run, row["site"], row["latent"])
    return [
        ("all concepts", session.address("concepts")),
        *(
            (f"suppression of {concept}", session.address("suppression", concept=concept))
            for concept in suppressed
        ),
        ("overview", session.address("./")),
    ]


PAGE = Page("concept", "Concept", _show, heading=_heading)
