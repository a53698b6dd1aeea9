"""The Suppression page: one recipe, its groups before and after, its null, its cost, who flips."""

from __future__ import annotations

import streamlit as st

from dermaudit.dashboards.exhibits import suppression
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.pages import session
from dermaudit.errors import DermauditError


def show() -> None:
    session.page("Suppression", _body)


def _body(run: RunView) -> None:
    if not run.suppressions:
        st.info(
            "The run has no recipe yet. Make one: dermaudit recipe make --concept ruler --run "
            f"{run.run.path}"
        )
        return
    concept = session.choice("Concept", run.suppressions, "concept")
    try:
        suppression.measured(run, concept)
    except DermauditError as error:
        st.info(f"Not measured: {error.message}" if error.exit_code == 3 else error.message)
        if run.has_recipe(concept):
            session.exhibit("The recipe", lambda: suppression.latents(run, concept), run, concept)
        return
    session.exhibit(
        "Before and after, by group",
        lambda: suppression.groups(run, concept),
        run,
        concept,
        open_table=True,
    )
    session.exhibit(
        "By the edit, or by the threshold",
        lambda: suppression.thresholds(run, concept),
        run,
        concept,
        open_table=True,
    )
    left, right = st.columns(2, gap="large")
    with left:
        session.exhibit(
            "Against random latents", lambda: suppression.null(run, concept), run, concept
        )
        session.exhibit("The recipe", lambda: suppression.latents(run, concept), run, concept)
    with right:
        session.exhibit(
            "What it does and what it costs", lambda: suppression.cost(run, concept), run, concept
        )
    session.exhibit("Flipped cases", lambda: suppression.flips(run, concept)[1], run, concept)
    cases = suppression.flips(run, concept)[0]
    session.paged_grid(
        run,
        [
            (
                c["row"],
                (
                    c["kind"],
                    f"p {c['p_before']:.2f} to {c['p_after']:.2f}, "
                    + ("by the edit" if c["cause"] == "edit" else "by the moved threshold"),
                    suppression.group_words(
                        c["group4"], concept, suppression.measured(run, concept)["target"]
                    ),
                ),
            )
            for c in cases
        ],
        key=f"flips-{concept}",
    )
