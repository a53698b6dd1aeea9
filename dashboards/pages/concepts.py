"""The Concepts page: the table of latents, and behind each row the page of one concept."""

from __future__ import annotations

import streamlit as st

from dermaudit.dashboards.exhibits import latents as evidence
from dermaudit.dashboards.exhibits import markup, pictures
from dermaudit.dashboards.exhibits.run_view import POOLED, RunView, latent_title
from dermaudit.dashboards.pages import session
from dermaudit.errors import DermauditError, UserInputError

MAPS = 6


def show() -> None:
    if "latent" in st.query_params:
        session.page("Concept", _concept)
    else:
        session.page("Concepts", _list)


def _list(run: RunView) -> None:
    key = session.start_value("show", "all", evidence.FILTERS)
    kind = st.segmented_control("Show", evidence.FILTERS, required=True, key=key)
    kind = session.keep_value("show", kind or "all", "all")
    text = st.text_input(
        "Find",
        placeholder="a name, a label, a site or a number",
        key=session.start_value("find", ""),
    )
    session.keep_value("find", text, "")
    rows = evidence.concept_rows(run, kind, text)
    named = sum(bool(r["name"]) for r in rows)
    st.markdown(
        f"{len(rows)} latents, {named} of them named. Choose a row to open its page; click a "
        "column's head to sort."
    )
    if not rows:
        st.info("No latent fits this filter.")
        return
    chosen = session.table(
        evidence.concept_table(rows), alt="concepts", select=True, key=f"concepts-{kind}-{text}"
    )
    session.caption(evidence.CONCEPTS_CAPTION)
    if chosen is not None:
        st.query_params.from_dict({"latent": f"{rows[chosen]['site']}/{rows[chosen]['latent']}"})
        st.rerun()


def _concept(run: RunView) -> None:
    if st.button("All concepts"):
        st.query_params.clear()
        st.rerun()
    site, _, number = st.query_params["latent"].rpartition("/")
    if not site or not number.isdecimal():
        raise UserInputError(
            f"'{st.query_params['latent']}' is not a latent",
            "a link names it as site/number: visual.pooled/41",
        )
    row = evidence.find_concept(run, site, int(number))
    st.header(f"{latent_title(row)}: latent {row['latent']} of {site}")
    chosen = [
        r["concept"]
        for r in evidence.label_choices(run)
        if (r["site"], r["latent"]) == (site, row["latent"])
    ]
    st.markdown(f"{_sentence(row, chosen, run.n)} {evidence.over_seeds(run, row)}")
    st.subheader("Images in which it fires most")
    found = evidence.active_rows(run, site, row["latent"])
    session.paged_grid(
        run,
        [
            (i, tuple(x for x in (f"activation {value:.3g}", run.labels[i], run.splits[i]) if x))
            for i, value in found
        ],
        key=f"top-{site}-{row['latent']}",
    )
    left, right = st.columns(2, gap="large")
    key = (site, row["latent"])
    with left:
        session.exhibit("Activations", lambda: evidence.activations(run, row), run, *key)
        session.exhibit("Rival names", lambda: evidence.rival_names(row), run, *key)
    with right:
        session.exhibit(
            "Evidence against labels", lambda: evidence.against_labels(run, row), run, *key
        )
    _maps(run, site, row["latent"], [i for i, _ in found[:MAPS]])


def _sentence(row: dict, chosen: list[str], n: int) -> str:
    parts = [f"Fires in {row['n_active']} of {n} images ({row['frequency']:.1%})."]
    if row["name"]:
        parts.append(
            f"Name: **{row['name']}** ({row['type']}), z {row['z']:.2f}, q {row['q']:.3f}; not "
            "calibrated."
        )
    else:
        parts.append(f"Unnamed: {row['reason']}.")
    if chosen:
        parts.append(f"On val, the best latent of the run for: **{', '.join(chosen)}**.")
    if row["wrong"]:
        parts.append(
            "⚠ The name is wrong on test images: there the latent ranks another labelled concept "
            "better, or its own no better than chance."
        )
        if row["label_concept"] not in (None, row["name"]):
            parts.append(
                f"On train and validation images it ranks **{row['label_concept']}** best."
            )
    return " ".join(parts)


def _maps(run: RunView, site: str, latent: int, rows: list[int]) -> None:
    st.subheader("Where it fires")
    if site == POOLED:
        st.info(
            "Not measured: this latent reads the final embedding, which has no patches. Latents "
            "of a patch site have maps."
        )
        return
    opacity = st.slider("Opacity of the map", 0.0, 1.0, 0.55, 0.05)
    cards, scale = [], None
    for i in rows:
        try:
            made = session.patch_map(run, i, site, latent, opacity)
        except DermauditError as error:
            cards.append(markup.Card(None, "", (f"image {i}",), missing=error.message))
            continue
        scale = made
        said = made.in_words
        cards.append(
            markup.Card(made.plain, f"Image {i} without its map", (f"image {i}",), f"image?row={i}")
        )
        cards.append(
            markup.Card(made.picture, f"Map of latent {latent} over image {i}: {said}", (said,))
        )
    st.html(markup.grid(cards, width=220))
    if scale is not None:
        st.html(markup.scale(pictures.LEVELS, scale.edges, scale.top))
        session.caption(
            "Activation of each patch, from the stored activations and the SAE's weights. The "
            f"scale is absolute: 0 to {scale.top:.2f}, the "
            f"largest in this run; the latent fires {scale.fires}. "
            "Outlined: patches in which it fires; "
            "outlined twice as thick: 60 % of the largest and more. A patch has seen its "
            "neighbours, so a map shows where the model "
            "holds the information, not the outline of the thing."
        )
