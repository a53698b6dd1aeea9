"""The exhibits of one image: its facts, its concepts, its prediction, what each recipe changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from dermaudit.concepts.recipes.recipe import load_recipe
from dermaudit.errors import DermauditError, EvidenceError

from . import figures
from .run_view import POOLED, RunView, latent_title
from .tables import Exhibit, Table, site_title

if TYPE_CHECKING:
    from dermaudit.concepts.recipes.recipe import SuppressionRecipe
    from dermaudit.sae import LatentSuppressor

SHOWN_LATENTS = 14
WRONG, RIGHT = "✗", "✓"


@dataclass(frozen=True)
class RecipeChange:
    """What one recipe does to the prediction of one image; `reason` where it cannot be computed."""

    concept: str
    edited: bool | None = None
    label: str | None = None
    before: float | None = None
    after: float | None = None
    decision: str | None = None
    reason: str | None = None


def facts(view: RunView, row: int) -> Table:
    """Return what the manifest records of an image."""
    rows = [
        (title, value)
        for title, column in (
            ("label", "label"),
            ("split", "split"),
            ("patient or lesion", "group"),
            ("skin tone", "skin_tone"),
            ("file", "image"),
        )
        if (value := str(view.column(column)[row]))
    ]
    present = [
        name for name, t in view.truth.items() if t.type != "diagnosis" and t.values[row] == 1
    ]
    return Table(("what", "value"), [*rows, ("labelled with", ", ".join(present) or "nothing")])


class ActiveLatent(TypedDict):
    """A latent that is active in an image."""

    site: str
    latent: int
    name: str | None
    wrong: bool | None
    value: float  # activation
    share: float  # of the latent's largest activation in the run


def active_latents(view: RunView, row: int) -> list[ActiveLatent]:
    """Return the latents active in an image, each with its share of its own largest activation."""
    known = {(r["site"], r["latent"]): r for r in view.live_latents}
    found: list[ActiveLatent] = []
    for site in view.sites:
        codes = view.codes(site)
        for latent, value in zip(*codes.row(row), strict=True):
            top = float(codes.column(int(latent)).max())
            row_of = known.get((site, int(latent)))
            found.append(
                {
                    "name": row_of["name"] if row_of else None,
                    "wrong": row_of["wrong"] if row_of else None,
                    "site": site,
                    "latent": int(latent),
                    "value": float(value),
                    "share": float(value) / max(top, 1e-12),
                }
            )
    return sorted(found, key=lambda r: (-r["share"], r["site"], r["latent"]))


def _short_name(row: ActiveLatent) -> str:
    """Return the name of a latent with a mark where it is wrong on test images."""
    name = row["name"] or "unnamed"
    return f"{name} ⚠" if row["wrong"] else name


def concepts(view: RunView, row: int) -> Exhibit:
    """Return the strongest latents of an image; unnamed ones are hatched."""
    found = active_latents(view, row)
    if not found:
        raise EvidenceError("no latent is active in this image")
    shown = found[:SHOWN_LATENTS]
    names = [f"{_short_name(r)} ({site_title(r['site'])}, {r['latent']})" for r in shown]
    return Exhibit(
        "Concepts in this image",
        f"The {len(shown)} strongest of {len(found)} latents that are active, by activation as a "
        "share of the latent's largest activation in this run; in brackets what the latent reads "
        "and its number; hatched: unnamed; ⚠: the name is wrong on test images.",
        Table(
            ("name", "reads", "latent", "activation", "share of its largest"),
            [
                (latent_title(r), site_title(r["site"]), r["latent"], r["value"], r["share"])
                for r in found
            ],
            shares=frozenset({"share of its largest"}),
        ),
        figures.scores(
            names,
            [r["share"] for r in shown],
            axis="share of its largest",
            hatched=[not r["name"] for r in shown],
        ),
        "; ".join(f"{n} {r['share']:.2f}" for n, r in zip(names, shown, strict=True)),
    )


def predicted_labels(view: RunView) -> np.ndarray:
    """Return the class that the run's head predicts for every image, (n,) words.

    EvidenceError where the run has no head.
    """
    if "predicted" not in view.memo:
        head = view.head()
        view.memo["predicted"] = np.array(head.classes, dtype=object)[
            head.probs(view.pooled).argmax(1)
        ]
    return view.memo["predicted"]


def mistake(view: RunView, row: int) -> str:
    """Return a mark with the predicted class where it is not the label of the image, else ""."""
    try:
        predicted, label = predicted_labels(view)[row], view.labels[row]
    except DermauditError:
        return ""
    known = label and label in view.head().classes
    return f"{WRONG} predicted {predicted}" if known and predicted != label else ""


def prediction(view: RunView, row: int) -> Exhibit:
    """Return the probabilities of the run's head for one image, marked right or wrong."""
    head = view.head()
    p = head.probs(view.pooled[row : row + 1])[0]
    order = np.argsort(-p, kind="stable")
    names = [head.classes[i] for i in order]
    label, split = view.labels[row], view.splits[row]
    verdict = "no label to compare with"
    if label:
        wrong = label != names[0]
        verdict = f"{WRONG} wrong, the label is {label}" if wrong else f"{RIGHT} right"
    seen = " The head was fitted on train images: its confidence here says little."
    return Exhibit(
        "Prediction of the classifier",
        f"The classifier is the run's head (label), a logistic regression on the embedding, fitted "
        f"on {head.n_train} train images. This image is in {split or 'no split'}."
        + (seen if split == "train" else ""),
        Table(
            ("class", "probability"), [(n, float(p[i])) for n, i in zip(names, order, strict=True)]
        ),
        figures.scores(
            [f"{n} (label)" if n == label else n for n in names],
            [float(p[i]) for i in order],
            axis="probability",
        ),
        "; ".join(f"{n} {p[i]:.2f}" for n, i in zip(names, order, strict=True)),
        [f"Predicted {names[0]}: {verdict}"],
    )


def recipe_changes(view: RunView, row: int) -> list[RecipeChange]:
    """Return what each recipe of the run does to the prediction of the run's head for one image."""
    return [_recipe_change(view, row, concept) for concept in view.suppressions]


def _recipe_change(view: RunView, row: int, concept: str) -> RecipeChange:
    import torch

    try:
        recipe = load_recipe(view.run, concept)
    except DermauditError as error:
        return RecipeChange(concept, reason=f"no recipe: {_why(view, concept, error)}")
    if recipe.site != POOLED:
        mode = recipe.body["operation"]["mode"]
        reason = f"{mode} at {recipe.site} needs the model: dermaudit suppress"
        return RecipeChange(concept, reason=reason)
    head = view.head()
    x = view.pooled[row : row + 1]
    try:
        edited = suppressor(view, recipe).apply_to(torch.from_numpy(x))
    except EvidenceError as error:
        return RecipeChange(concept, reason=error.message)
    before, after = head.probs(x)[0], head.probs(edited.x.numpy())[0]
    first, then = int(before.argmax()), int(after.argmax())
    target = recipe.body["target"]
    at = head.classes.index(target) if target in head.classes else first
    changed = f"{head.classes[first]} → {head.classes[then]}"
    return RecipeChange(
        concept,
        bool(edited.fired[0]),
        head.classes[at],
        float(before[at]),
        float(after[at]),
        changed if first != then else "unchanged",
    )


def suppressor(view: RunView, recipe: SuppressionRecipe) -> LatentSuppressor:
    """Return the suppressor of one recipe ."""
    from dermaudit.concepts.suppression.combined import make_suppressor

    return make_suppressor([recipe], view.run).module


def _why(view: RunView, concept: str, error: DermauditError) -> str:
    try:
        view.suppression(concept)
    except DermauditError as refused:
        return refused.message
    return error.message


def recipes(view: RunView, row: int) -> Exhibit:
    """Return what each recipe changes in one image as a table."""
    changes = recipe_changes(view, row)
    if not changes:
        raise EvidenceError("the run has no recipe: make one with dermaudit recipe make")
    header = ("recipe", "embedding changed", "class", "p before", "p after", "decision")
    rows = [
        (c.concept, c.edited, c.label, c.before, c.after, c.decision, c.reason) for c in changes
    ]
    return Exhibit(
        "What each recipe changes",
        "p = probability of the class by the same classifier as above, before and after the "
        "recipe's latents are suppressed in the embedding (error term kept). Where nothing "
        "changes, the embedding is the same bit for bit. The suppression page shows each recipe "
        "on the classifier on which it was measured.",
        Table((*header, "not computed because"), rows).without_empty_last(),
    )
