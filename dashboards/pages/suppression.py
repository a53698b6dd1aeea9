"""The Suppression page: one recipe, its groups before and after, its cost, changed decisions."""

from __future__ import annotations

import streamlit as st

from dermaudit.dashboards.exhibits import suppression
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.pages import display, session
from dermaudit.dashboards.pages.page import Page
from dermaudit.errors import DermauditError


def _show(run: RunView) -> None:
    if not run.suppressions:
        st.info(
            "The run has no recipe yet. Make one: dermaudit recipe make --concept ruler --run "
            f"{run.run.path}"
        )
        return
    concept = session.choice("Concept", run.suppressions, "concept")
    display.links("Continue with:", _next_pages(run, concept))
    try:
        suppression.measured(run, concept)
    except DermauditError as error:
        display.absent(error)
        if run.has_recipe(concept):
            display.exhibit(
                "Suppressed latents", lambda: suppression.latents(run, concept), run, concept
            )
        return
    found = suppression.measured(run, concept)
    if found["refused"]:
        (st.warning if found["accepted_limits"] else st.error)(suppression.decision(run, concept))
    _one_image(run, concept)
    for title, make in (
        ("The effect at its three operating points", suppression.effect),
        ("Sensitivity and specificity of each group", suppression.groups),
    ):
        display.exhibit(title, lambda make=make: make(run, concept), run, concept, open_table=True)
    left, right = display.halves("recipe")
    with left:
        display.exhibit(
            "Compared with random latents", lambda: suppression.null(run, concept), run, concept
        )
    with right:
        if run.has_recipe(concept):
            display.exhibit(
                "Suppressed latents", lambda: suppression.latents(run, concept), run, concept
            )
        display.exhibit(
            f"{concept} drawn onto images",
            lambda: suppression.insertion(run, concept),
            run,
            concept,
        )
    display.exhibit(
        "Images whose decision changes", lambda: suppression.flips(run, concept), run, concept
    )
    display.paged_grid(
        run,
        [
            (c["row"], suppression.case_lines(run, concept, c))
            for c in suppression.cases(run, concept)
        ],
        key=f"flips-{concept}",
    )


def _one_image(run: RunView, concept: str) -> None:
    """Show what the recipe does to the image that the address names, on this page's classifier."""
    row = st.query_params.get("row", "")
    if not row.isdecimal():
        return
    st.header(f"Image {row} under this recipe", anchor=False)
    case = suppression.case(run, concept, int(row))
    if case is None:
        st.info(f"Image {row} is not among the images on which this recipe was tested.")
        return
    display.paged_grid(
        run, [(case["row"], suppression.case_lines(run, concept, case))], key=f"image-{concept}"
    )


def _next_pages(run: RunView, concept: str) -> list[tuple[str, str]]:
    return [
        *(
            (f"latent {latent}", session.latent_address(site, latent))
            for site, latent in suppression.recipe_latents(run, concept)
        ),
        (f"images with {concept}", session.address("images", **{"with": concept})),
        ("overview", session.address("./")),
    ]


PAGE = Page("suppression", "Suppression", _show, order=4)
