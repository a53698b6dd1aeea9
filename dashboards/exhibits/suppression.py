"""The exhibits of one suppressed concept: its effect at three operating points, groups, control, decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from dermaudit.concepts.recipes.recipe import load_recipe
from dermaudit.concepts.suppression.figures import MeasuredFigures
from dermaudit.errors import DermauditError, EvidenceError

from . import figures, measures
from .run_view import RunView, latent_title
from .tables import Exhibit, Table, span


def group_words(name: str, concept: str, target: str) -> str:
    """Return a group in words: `y=1 a=0` is "mel, no ruler"."""
    y, a = (part.endswith("1") for part in name.split(" "))
    return f"{target if y else 'not ' + target}, {'with' if a else 'no'} {concept}"


def measured(view: RunView, concept: str) -> MeasuredFigures:
    """Return the figures of a suppression with a measured effect; else EvidenceError with the reason."""
    found = view.suppression(concept)
    if "cross_group_auroc_before" not in found:
        raise EvidenceError(
            f"{found.get('reason')}; the recipe was written because: {found.get('accepted_limits')}"
        )
    return cast(MeasuredFigures, found)


def decision(view: RunView, concept: str) -> str:
    """Return in a sentence whether there is a recipe, and why not."""
    found = measured(view, concept)
    borrowed = ""
    if "measured_on" in found:
        on = found["measured_on"]
        borrowed = (
            f"Recipe and figures are those of the reference of {on['reference']}, measured on {on['images']} other "
            "images; the images of this run cannot show it. "
        )
    return borrowed + _decision(found)


def _decision(found: MeasuredFigures) -> str:
    if found["accepted_limits"]:
        return (
            f"This recipe was written against the evidence, because: {found['accepted_limits']}. "
            f"What speaks against it: {'; '.join(found['refused'])}."
        )
    if found["refused"]:
        return f"No recipe is written: {'; '.join(found['refused'])}."
    return "The evidence allows the recipe: no reason to refuse it was found."


def _images(view: RunView, concept: str) -> list[measures.ScoredImage]:
    return cast(list[measures.ScoredImage], view.suppressed_rows(concept))


def _pair(values: Sequence[float | None] | None) -> tuple[float, float] | None:
    low, high = values or (None, None)
    return None if low is None or high is None else (low, high)


def effect(view: RunView, concept: str) -> Exhibit:
    """Return the effect at its three operating points: without a threshold, unchanged, prevalence-matched."""
    found = measured(view, concept)
    target = found["target"]
    flips = found["flips"]
    rows = [
        (
            f"cross-group AUROC ({target} without {concept} against the rest with it)",
            found["cross_group_auroc_before"],
            found["cross_group_auroc_after"],
            span(*(found["ci"])),
        ),
        ("  of a head fitted without the trap", found["oracle"], None, None),
        ("AUROC of all images", found["auroc_before"], found["auroc_after"], None),
        (
            f"AUROC of images without {concept}, change",
            None,
            found["clean_auroc_delta"],
            span(*(found["clean_auroc_ci"])),
        ),
        (
            "worst group at the unchanged threshold",
            found["worst_group_before"],
            found["worst_group_fixed"],
            None,
        ),
        (
            "worst group at the prevalence-matched threshold",
            found["worst_group_before"],
            found["worst_group_prevalence"],
            None,
        ),
        ("share of images left bit for bit unchanged", None, found["identity_share"], None),
    ]
    if stability := found.get("stability"):
        rows.append(
            (
                "cosine of what it takes off, made from two halves of the groups",
                None,
                stability["cosine"],
                span(stability["low"], stability["high"]),
            )
        )
    return Exhibit(
        "The effect at its three operating points",
        f"The classifier of this test is a head for {target} that is fitted where {concept} predicts "
        f"{target} (strength {found['strength']}), in each of five folds over groups anew. It is not the "
        f"run's head. The {found['n_scored']} images of val and test are scored by the fold in which they "
        "were held out. The first line needs no threshold; it is the headline. The prevalence-matched "
        "threshold calls as many images positive as before, and needs no labels. Of the decisions that "
        f"flip at it, {flips['edit']} are flipped by the edit, {flips['threshold']} by the moved "
        f"threshold alone, {flips['both']} by both together.",
        Table(("figure", "before", "after", "change, 95 % interval"), rows),
        notes=[decision(view, concept)],
    )


def groups(view: RunView, concept: str) -> Exhibit:
    """Return sensitivity and specificity of the groups of the trap, before and at both thresholds after."""
    found = measured(view, concept)
    rows = measures.group_rates(_images(view, concept), view.groups)
    names = [f"{group_words(r['group'], concept, found['target'])}: {r['measure']}" for r in rows]
    notes = [f"{n}: {r['reason']}" for n, r in zip(names, rows, strict=True) if r["reason"]]
    return Exhibit(
        "Sensitivity and specificity of each group",
        "Share of right decisions in each of the four groups: before suppression, after it at the "
        "unchanged threshold, and after it at the prevalence-matched threshold. 95 % intervals by "
        f"bootstrap over groups, {measures.DRAWS} draws.",
        Table.of(
            [{**r, "name": n} for n, r in zip(names, rows, strict=True)],
            ("group and measure", "name"),
            ("n", "n"),
            ("before", "before"),
            ("before 95 %", "before_ci"),
            ("unchanged threshold", "fixed"),
            ("unchanged 95 %", "fixed_ci"),
            ("prevalence-matched", "matched"),
            ("matched 95 %", "matched_ci"),
            ("change 95 %", "change_ci"),
            ("embedding changed", "fired"),
            ("flipped", "flipped"),
        ),
        figures.pairs(
            names,
            ("before", [r["before"] for r in rows]),
            ("after", [r["matched"] for r in rows]),
            [r["before_ci"] for r in rows],
            [r["matched_ci"] for r in rows],
            axis="share of right decisions, before and prevalence-matched",
            bounds=(-0.02, 1.02),
        ),
        "; ".join(
            f"{n} {r['before']:.2f} to {r['fixed']:.2f} at the unchanged threshold and "
            f"{r['matched']:.2f} at the prevalence-matched one (n {r['n']})"
            for n, r in zip(names, rows, strict=True)
        ),
        notes,
    )


def null(view: RunView, concept: str) -> Exhibit:
    """Return the change of the cross-group AUROC, with that of random latents that are as often active."""
    found = measured(view, concept)
    changes = [float(v) for v in found["random_changes"]]
    if not changes:
        raise EvidenceError("no random latents were measured")
    change = found["cross_group_auroc_after"] - found["cross_group_auroc_before"]
    interval = span(*found["ci"])
    return Exhibit(
        "Compared with random latents",
        f"Change of the cross-group AUROC by this suppression, beside {len(changes)} random latents that "
        f"fire as often and change the embedding as much: {found['random_beaten']} of them are beaten. If "
        "it lay within them, any edit would have done.",
        Table(
            ("latents", "change of the cross-group AUROC", "95 % interval"),
            [
                ("this suppression", change, interval),
                ("random: lowest", min(changes), None),
                ("random: median", float(np.median(changes)), None),
                ("random: highest", max(changes), None),
            ],
        ),
        figures.null_strip(
            changes, change, _pair(found["ci"]), axis="change of the cross-group AUROC"
        ),
        f"This suppression {change:+.2f}; random latents from {min(changes):+.2f} to "
        f"{max(changes):+.2f}; {found['random_beaten']} of {len(changes)} beaten.",
    )


def insertion(view: RunView, concept: str) -> Exhibit:
    """Return how far the drawn artifact moves the prediction, before and after suppression."""
    found = measured(view, concept)
    residual = found["insertion_residual"]
    rows = [
        ("mean shift of p before suppression", found.get("insertion_before")),
        ("mean shift of p after suppression", found.get("insertion_after")),
        ("what is left (after / before; 0 = the drawn artifact moves nothing)", residual),
    ]
    if all(value is None for _, value in rows):
        raise EvidenceError(found.get("insertion_residual_reason", "not measured"))
    return Exhibit(
        f"{concept} drawn onto images",
        f"{concept} is drawn onto {found.get('insertion_n')} images without it, and the same heads predict "
        "both.",
        Table(("figure", "value"), rows),
        notes=[why] if (why := found.get("insertion_residual_reason")) else [],
    )


def latents(view: RunView, concept: str) -> Exhibit:
    """Return which latents the recipe suppresses, and why each was selected."""
    recipe = load_recipe(view.run, concept)  # also refuses a recipe of another model or SAE
    try:
        names = {(r["site"], r["latent"]): latent_title(r) for r in view.concepts}
    except DermauditError:
        names = {}  # the names stage is absent or stale; the recipe stands without it
    body = recipe.body
    taught = body["source"] == "concept_latent"
    rows = [
        (
            "concept latent" if taught else e["latent"],
            name if taught else names.get((recipe.site, e["latent"])) or "unnamed",
            ", ".join(f"{k} {v:.3g}" for k, v in (e.get("why") or {}).items()),
        )
        for e, name in zip(body["latents"], recipe.latent_names, strict=True)
    ]
    operation, level_from = body["operation"], body["operation"].get("level_from")
    intercept = body["intercept"]
    matched = (
        ""
        if intercept is None
        else f" Prevalence-matched threshold: {intercept['value']:+.3f} on the logit of {body['target']}."
    )
    return Exhibit(
        "Suppressed latents",
        f"Operation: {operation['mode']} at {recipe.site}, error term {operation['error_term']}"
        f"{f', its level from {level_from}' if level_from else ''}.{matched} "
        f"Body hash {recipe.sha256[:16]}. Made from train and val images.",
        Table(("latent", "name", "why it was selected"), rows),
        notes=[f"Limit: {limit}" for limit in body["limits"]],
    )


def cases(view: RunView, concept: str) -> list[measures.FlippedCase]:
    """Return the images whose decision changes, gravest first."""
    return measures.flipped_cases(_images(view, concept), measured(view, concept)["target"])


def case(
    view: RunView, concept: str, row: int
) -> measures.FlippedCase | measures.ScoredImage | None:
    """Return what the suppression does to one image; None where it was not measured on it."""
    flipped = next((c for c in cases(view, concept) if c["row"] == row), None)
    return flipped or next((r for r in _images(view, concept) if r["row"] == row), None)


CAUSES = {
    "edit": "by the edit",
    "threshold": "by the moved threshold",
    "both": "by the edit and the moved threshold",
}


def case_lines(
    view: RunView, concept: str, case: measures.FlippedCase | measures.ScoredImage
) -> tuple[str, ...]:
    """Return what is written under the picture of an image."""
    cause = CAUSES.get(case["cause"])
    change = f"p {case['p_before']:.3f} → {case['p_after']:.3f}{f', {cause}' if cause else ''}"
    target = measured(view, concept)["target"]
    decided = target if case["positive_before"] else f"not {target}"
    kind = case.get("kind", f"{decided}, unchanged")
    return kind, change, group_words(case["group4"], concept, target)


def recipe_latents(view: RunView, concept: str) -> list[tuple[str, int]]:
    """Return the (site, latent) that the recipe of a concept suppresses; [] without a recipe."""
    try:
        recipe = load_recipe(view.run, concept)
    except DermauditError:
        return []
    if recipe.body["source"] == "concept_latent":
        return []  # no latent of the run's SAE, so it has no page
    return [(recipe.site, latent) for latent in recipe.latents]


def flips(view: RunView, concept: str) -> Exhibit:
    """Return the number of flipped images, by what changed and why."""
    target = measured(view, concept)["target"]
    flipped = cases(view, concept)
    counted = [
        (
            kind,
            *(sum(c["kind"] == kind and c["cause"] == cause for c in flipped) for cause in CAUSES),
        )
        for kind in dict.fromkeys(c["kind"] for c in flipped)
    ]
    by_threshold = sum(c["cause"] == "threshold" for c in flipped)
    return Exhibit(
        "Images whose decision changes",
        f"{len(flipped)} of {len(view.suppressed_rows(concept))} images change their decision at the "
        f"prevalence-matched threshold, {by_threshold} of them only because the threshold moved. First "
        f"those in which a true {target} is no longer called: look at each of them.",
        Table(("what changed", *CAUSES.values()), counted),
    )
