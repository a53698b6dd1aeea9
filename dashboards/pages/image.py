"""The Image page: pick an image; its concepts, its prediction, its neighbours, what recipes change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from dermaudit.dashboards.exhibits import figures, markup, measures, pictures
from dermaudit.dashboards.exhibits.run_view import POOLED, RunView
from dermaudit.dashboards.exhibits.tables import Exhibit, Table
from dermaudit.dashboards.pages import session
from dermaudit.errors import DermauditError, EvidenceError, UserInputError

if TYPE_CHECKING:
    from dermaudit.concepts.suppression.recipe import SuppressionRecipe
    from dermaudit.sae import LatentSuppressor

CONCEPTS = 14


def show() -> None:
    if "row" in st.query_params:
        session.page(f"Image {st.query_params['row']}", _image)
    else:
        session.page("Images", _browse)


def _browse(run: RunView) -> None:
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
    rows = np.flatnonzero(keep)
    st.markdown(f"{len(rows)} of {run.n} images. Choose one to open it.")
    session.paged_grid(
        run,
        [(int(i), tuple(x for x in (run.labels[i], run.splits[i]) if x)) for i in rows],
        key=f"browse-{split}-{label}-{concept}",
    )


def _image(run: RunView) -> None:
    if st.button("All images"):
        st.query_params.clear()
        st.rerun()
    said = st.query_params["row"]
    if not said.isdecimal() or int(said) >= run.n:
        raise UserInputError(
            f"there is no image '{said}' in this run", f"the run has images 0 to {run.n - 1}"
        )
    row = int(said)
    left, right = st.columns([1, 2], gap="large")
    with left:
        blur = (
            "<style>.da-grid img { filter: blur(9px); }</style>"
            if st.session_state.get("blur")
            else ""
        )
        st.html(blur + markup.grid([session.card(run, row, side=480, link=False)], width=320))
        _facts(run, row)
    with right:
        session.exhibit("Concepts in this image", lambda: concepts(run, row), run, row)
        session.exhibit("Prediction of the run's head", lambda: prediction(run, row), run, row)
    _recipes(run, row)
    _map(run, row)
    st.subheader("Nearest images")
    try:
        near = measures.nearest(run, row)
    except DermauditError as error:
        session.tell(error)
        return
    session.paged_grid(
        run,
        [
            (
                i,
                tuple(
                    x
                    for x in (
                        f"cosine {c:.3f}",
                        run.labels[i],
                        run.splits[i],
                        "same group" if run.groups[i] == run.groups[row] else "",
                    )
                    if x
                ),
            )
            for i, c in near
        ],
        key=f"near-{row}",
    )
    session.caption("By cosine of the pooled embedding, over all splits.")


def _facts(run: RunView, row: int) -> None:
    facts = [("file", str(run.images["image"][row].as_py()))]
    facts += [
        (name, str(run.words(name)[row]))
        for name in ("label", "split", "group", "skin_tone")
        if run.words(name)[row]
    ]
    present = [
        name for name, t in run.truth.items() if t.type != "diagnosis" and t.values[row] == 1
    ]
    facts.append(("labelled with", ", ".join(present) or "nothing"))
    session.small_table(Table(("what", "value"), facts))


def fired(run: RunView, row: int) -> list[dict]:
    """The latents that fire in an image, each with its share of its own largest activation."""
    known = {(r["site"], r["latent"]): r for r in run.concepts}
    found = []
    for site in run.sites:
        codes = run.codes(site)
        for latent, value in zip(*codes.row(row), strict=True):
            top = float(codes.column(int(latent)).max())
            found.append(
                {
                    **known.get((site, int(latent)), {"name": None}),
                    "site": site,
                    "latent": int(latent),
                    "value": float(value),
                    "share": float(value) / max(top, 1e-12),
                }
            )
    return sorted(found, key=lambda r: (-r["share"], r["site"], r["latent"]))


def concepts(run: RunView, row: int) -> Exhibit:
    """The strongest latents of an image; unnamed ones are hatched."""
    found = fired(run, row)
    if not found:
        raise EvidenceError("no latent fires in this image")
    shown = found[:CONCEPTS]
    names = [
        f"{r['name'] or 'unnamed'} "
        f"({r['site'].removeprefix('visual.').replace('.hook_resid_post', '')}/{r['latent']})"
        for r in shown
    ]
    return Exhibit(
        "Concepts in this image",
        f"The {len(shown)} strongest of {len(found)} latents that fire, by activation as a share "
        "of the latent's largest in this run; "
        "hatched: unnamed.",
        Table(
            ("name", "site", "latent", "activation", "share of its largest"),
            [
                (r["name"] or "unnamed", r["site"], r["latent"], r["value"], r["share"])
                for r in found
            ],
            shares=frozenset({"share of its largest"}),
        ),
        figures.scores(
            names,
            [r["share"] for r in shown],
            axis="share of the latent's largest activation",
            hatched=[not r["name"] for r in shown],
        ),
        "; ".join(f"{n} {r['share']:.2f}" for n, r in zip(names, shown, strict=True)),
    )


def prediction(run: RunView, row: int) -> Exhibit:
    """Probabilities of the run's head for one image."""
    head = run.head()
    p = head.probs(run.pooled[row : row + 1])[0]
    order = np.argsort(-p, kind="stable")
    names = [head.classes[i] for i in order]
    split = run.splits[row]
    note = f" This image is in {split}." + (
        " The head was fitted on train images: its confidence here says little."
        if split == "train"
        else ""
    )
    return Exhibit(
        "Prediction of the run's head",
        f"Logistic head on the pooled embedding, fitted on {head.n_train} train images.{note}",
        Table(
            ("class", "probability"), [(n, float(p[i])) for n, i in zip(names, order, strict=True)]
        ),
        figures.scores(names, [float(p[i]) for i in order], axis="probability"),
        "; ".join(f"{n} {p[i]:.2f}" for n, i in zip(names, order, strict=True)),
    )


def recipe_changes(run: RunView, row: int) -> list[tuple]:
    """What each recipe of the run does to one image: live on the run's head, and as stored for the
    recipe's own trap head where the image is among its test images."""
    import torch

    head = run.head()
    x = run.pooled[row : row + 1]
    before = head.probs(x)[0]
    out = []
    for concept in run.suppressions:
        try:
            recipe = run.recipe(concept)
        except DermauditError as error:
            out.append(
                (concept, None, None, None, None, None, f"no recipe: {_why(run, concept, error)}")
            )
            continue
        operation = recipe.body["operation"]
        try:
            if recipe.site != POOLED:
                raise EvidenceError(
                    f"{operation['mode']} at {recipe.site} needs the model: dermaudit suppress"
                )
            edited = suppressor(run, recipe).apply_to(torch.from_numpy(x))
        except EvidenceError as error:
            out.append((concept, None, None, None, None, None, error.message))
            continue
        after = head.probs(edited.x.numpy())[0]
        target = recipe.body["target"]
        at = head.classes.index(target) if target in head.classes else int(before.argmax())
        flip = (
            f"{head.classes[before.argmax()]} → {head.classes[after.argmax()]}"
            if before.argmax() != after.argmax()
            else "unchanged"
        )
        stored = _stored(run, concept, row)
        out.append(
            (
                concept,
                bool(edited.fired[0]),
                head.classes[at],
                float(before[at]),
                float(after[at]),
                flip,
                stored,
            )
        )
    return out


def suppressor(run: RunView, recipe: SuppressionRecipe) -> LatentSuppressor:
    """Return the suppressor of one recipe on the run's pooled SAE."""
    from dermaudit.concepts.suppression.suppressed_model import make_suppressor

    return make_suppressor(run.run, [recipe], run.sae(POOLED))


def _why(run: RunView, concept: str, error: DermauditError) -> str:
    try:
        run.suppression(concept)
    except DermauditError as refused:
        return refused.message
    return error.message


def _stored(run: RunView, concept: str, row: int) -> str:
    try:
        found = next((r for r in run.suppressed_rows(concept) if r["row"] == row), None)
    except DermauditError as error:
        return error.message
    if found is None:
        return "not among its test images"
    flip = (
        f"{found['top1_before']} → {found['top1_after']}"
        if found["flipped"]
        else f"{found['top1_before']}, unchanged"
    )
    return f"{found['p_before']:.3f} → {found['p_after']:.3f}, {flip}"


def _recipes(run: RunView, row: int) -> None:
    st.subheader("What each recipe changes")
    if not run.suppressions:
        st.info("The run has no recipe: make one with dermaudit recipe make.")
        return
    try:
        rows = session.computed(run, "recipes", (row,), lambda: recipe_changes(run, row))
    except DermauditError as error:
        session.tell(error)
        return
    session.small_table(
        Table(
            (
                "recipe",
                "edited here",
                "class",
                "p before",
                "p after",
                "top class",
                "its trap head, on test",
            ),
            rows,
        )
    )
    session.caption(
        "p = probability of the class by the run's head on the stored embedding, before and "
        "after the recipe's latents are edited in its mode (error term "
        "kept). Where that changes nothing, the embedding is the same bit for bit. "
        "Last column: the stored result with the head on "
        "which the recipe was measured."
    )


def _map(run: RunView, row: int) -> None:
    patches = [r for r in fired(run, row) if r["site"] != POOLED][:CONCEPTS]
    if not patches:
        return
    st.subheader("Where a concept fires")
    names = {f"{r['name'] or 'unnamed'}: latent {r['latent']} of {r['site']}": r for r in patches}
    chosen = names[st.selectbox("Concept", list(names))]
    opacity = st.slider("Opacity of the map", 0.0, 1.0, 0.55, 0.05)
    try:
        made = session.patch_map(run, row, chosen["site"], chosen["latent"], opacity)
    except DermauditError as error:
        session.tell(error)
        return
    said = made.in_words
    st.html(
        markup.grid(
            [
                markup.Card(made.plain, f"Image {row} without its map"),
                markup.Card(
                    made.picture,
                    f"Map of latent {chosen['latent']} over image {row}: {said}",
                    (said,),
                ),
            ],
            width=300,
        )
    )
    st.html(markup.scale(pictures.LEVELS, made.edges, made.top))
    session.caption(
        f"Absolute scale, 0 to the latent's largest activation in this run ({made.top:.2f}); "
        f"fires {made.fires}; outlined where it does."
    )
