"""The page of one image: its concepts, its prediction, its neighbours, what recipes change."""

from __future__ import annotations

import streamlit as st

from dermaudit.dashboards.exhibits import image, markup, measures
from dermaudit.dashboards.exhibits.run_view import POOLED, RunView
from dermaudit.dashboards.exhibits.tables import site_title
from dermaudit.dashboards.pages import display, session
from dermaudit.dashboards.pages.page import Page
from dermaudit.errors import DermauditError, UserInputError


def _row(run: RunView) -> int:
    """Return the number of the image that the address names."""
    named = st.query_params.get("row", "")
    if not named.isdecimal() or int(named) >= run.n:
        raise UserInputError(
            f"there is no image '{named}' in this run", f"the run has images 0 to {run.n - 1}"
        )
    return int(named)


def _show(run: RunView) -> None:
    row = _row(run)
    around = [("previous image", row - 1), ("next image", row + 1)]
    display.links(
        "Continue with:",
        [
            ("all images", session.address("images")),
            *((w, session.address("image", row=i)) for w, i in around if 0 <= i < run.n),
            ("overview", session.address("./")),
        ],
    )
    left, right = display.halves("image")
    with left:
        card = display.card(run, row, image.mistake(run, row), side=480, link=False)
        st.html(markup.grid([card], width=320))
        display.small_table(image.facts(run, row))
    with right:
        display.exhibit(
            "Prediction of the classifier", lambda: image.prediction(run, row), run, row
        )
    active = _active(run, row)
    _concepts(run, row, active)
    display.exhibit("What each recipe changes", lambda: image.recipes(run, row), run, row)
    display.links(
        "Open the measured effect:",
        [
            (f"suppression of {c}", session.address("suppression", concept=c, row=row))
            for c in run.suppressions
        ],
    )
    _map(run, row, active)
    st.header("Nearest images", anchor=False)
    near = [
        (i, (f"cosine {c:.3f}", run.labels[i], run.splits[i], _same_group(run, i, row)))
        for i, c in measures.nearest(run, row)
    ]
    display.paged_grid(run, near, key=f"near-{row}")
    display.caption("By cosine of the pooled embedding, over all splits.")


def _same_group(run: RunView, one: int, other: int) -> str:
    return "same patient or lesion" if run.groups[one] == run.groups[other] else ""


def _active(run: RunView, row: int) -> list[image.ActiveLatent]:
    """Return the latents active in an image, [] where the names are missing or damaged."""
    try:
        return image.active_latents(run, row)
    except DermauditError:
        return []  # the exhibit of the concepts shows the reason


def _concepts(run: RunView, row: int, active: list[image.ActiveLatent]) -> None:
    def latent(i: int) -> str:
        return session.latent_address(active[i]["site"], active[i]["latent"])

    display.exhibit(
        "Concepts in this image", lambda: image.concepts(run, row), run, row, open_row=latent
    )
    display.links(
        "Open a latent:",
        [
            (f"{r['name'] or 'unnamed'} ({r['latent']})", latent(i))
            for i, r in enumerate(active[: image.SHOWN_LATENTS])
        ],
    )


def _map(run: RunView, row: int, active: list[image.ActiveLatent]) -> None:
    patches = [r for r in active if r["site"] != POOLED]
    if not patches:
        return
    st.header("Where in the image a concept is active", anchor=False)
    names = {
        f"{r['name'] or 'unnamed'}: latent {r['latent']}, {site_title(r['site'])}": r
        for r in patches[: image.SHOWN_LATENTS]
    }
    chosen = names[st.selectbox("Concept", list(names))]
    display.patch_maps(run, [row], chosen["site"], chosen["latent"], width=640)


PAGE = Page("image", "Image", _show, heading=lambda run: f"Image {_row(run)}")
