"""The exhibits of one suppressed concept: groups before and after, null, cost, changed decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from dermaudit.concepts.suppression.figures import MeasuredFigures
from dermaudit.concepts.suppression.recipe import load_recipe
from dermaudit.errors import DermauditError, EvidenceError

from . import figures, measures
from .run_view import RunView, latent_title
from .tables import Exhibit, Table, span, word


def group_words(name: str, concept: str, target: str) -> str:
    """Return a group in words: `y=1 a=0` is "mel, no ruler"."""
    y, a = (part.endswith("1") for part in name.split(" "))
    return f"{target if y else 'not ' + target}, {'with' if a else 'no'} {concept}"


def measured(view: RunView, concept: str) -> MeasuredFigures:
    """Return the figures of a suppression with a measured effect; else EvidenceError with the reason."""
    found = view.suppression(concept)
    if found.get("worst_group_before") is None:
        raise EvidenceError(
            f"latents {found.get('latents')} are suppressed, chosen by name; {found.get('reason')}"
        )
    return cast(MeasuredFigures, found)


def _test_images(view: RunView, concept: str) -> list[measures.TestImage]:
    return cast(list[measures.TestImage], view.suppressed_rows(concept))


def _where(found: MeasuredFigures) -> str:
    if found.get("test_is") == "swapped":
        return "where it predicts the opposite"
    return f"on {found.get('test_is', 'test images')}"


def groups(view: RunView, concept: str) -> Exhibit:
    """Return the accuracy of the four groups of the trap before and after."""
    found = measured(view, concept)
    target = found.get("target", "target")
    rows = measures.group_accuracy(_test_images(view, concept), view.groups, target)
    names = [group_words(r["group"], concept, target) for r in rows]
    notes = [f"{n}: {r['reason']}" for n, r in zip(names, rows, strict=True) if r["reason"]]
    return Exhibit(
        "Accuracy of each group before and after",
        f"The classifier of this test is a head for {target} that is fitted where {concept} predicts "
        f"{target} (strength {found.get('strength')}) and tested {_where(found)}. It is not the "
        "run's head. "
        "Accuracy of each of the four groups on test, before and after suppression; "
        "95 % intervals by bootstrap over "
        f"groups, {measures.DRAWS} draws. Both decision thresholds were set on the rows of "
        "choice; at the unchanged threshold the "
        f"worst group is {word(found.get('worst_group_after_fixed_threshold'))}.",
        Table.of(
            [{**r, "name": n} for n, r in zip(names, rows, strict=True)],
            ("group", "name"),
            ("n", "n"),
            ("before", "before"),
            ("before 95 %", "before_ci"),
            ("after", "after"),
            ("after 95 %", "after_ci"),
            ("change 95 %", "change_ci"),
            ("latents active in", "fired"),
            ("flipped", "flipped"),
        ),
        figures.before_after(
            names,
            [r["before"] for r in rows],
            [r["after"] for r in rows],
            [r["before_ci"] for r in rows],
            [r["after_ci"] for r in rows],
            axis="accuracy on test",
            bounds=(-0.02, 1.02),
        ),
        "; ".join(
            f"{n} {r['before']:.2f} to {r['after']:.2f} (n {r['n']})"
            for n, r in zip(names, rows, strict=True)
        ),
        notes,
    )


def thresholds(view: RunView, concept: str) -> Exhibit:
    """Return what the edit does at the unchanged threshold, and what the moved threshold adds."""
    found = measured(view, concept)
    target = found.get("target", "target")
    before, after = found["threshold_before"], found["threshold_after"]
    groups = measures.threshold_effects(_test_images(view, concept), view.groups, before, after)
    worst = {key: min(g[key] for g in groups) for key in ("before", "after_unchanged", "after")}

    def name(row: Mapping[str, Any]) -> str:
        return f"{group_words(row['group'], concept, target)}: {row['measure']}"

    old, new = measures.probability(before), measures.probability(after)
    return Exhibit(
        "Sensitivity and specificity: the edit and the moved threshold",
        f"The decision threshold is p = {old:.2f} before suppression, and was chosen again after it: "
        f"p = {new:.2f}. At the unchanged threshold the worst group goes from {worst['before']:.2f} "
        f"to {worst['after_unchanged']:.2f}; at the one chosen again it is {worst['after']:.2f}. Only "
        'the first of the two changes is made by the edit. The columns "at the old" and "at the new" '
        "are after suppression, at these two thresholds. Intervals: 95 %, bootstrap over groups, "
        f"{measures.DRAWS} draws.",
        Table.of(
            groups,
            ("group and measure", name),
            ("n", "n"),
            ("before", "before"),
            ("before 95 %", "before_ci"),
            ("at the old", "after_unchanged"),
            ("at the old 95 %", "after_unchanged_ci"),
            ("at the new", "after"),
            ("at the new 95 %", "after_ci"),
            ("by the edit", lambda g: g["after_unchanged"] - g["before"]),
            ("by the threshold", lambda g: g["after"] - g["after_unchanged"]),
        ),
        notes=[f"{name(g)}: n too small" for g in groups if g["n"] < measures.MIN_CELL],
    )


def null(view: RunView, concept: str) -> Exhibit:
    """Return the change of the worst group, with that of random latents that are as often active."""
    found = measured(view, concept)
    lifts = [float(v) for v in found.get("random_lifts") or []]
    if not lifts:
        raise EvidenceError("no random sets were measured")
    lift = float(
        found.get("worst_group_lift", found["worst_group_after"] - found["worst_group_before"])
    )
    interval = span(*found["ci"]) if found.get("ci") else None
    return Exhibit(
        "Compared with random latents",
        f"Change in worst-group accuracy by this recipe ({len(found['latents'])} latents), "
        f"beside {len(lifts)} sets of as many random "
        f"latents that fire as often: {found['random_sets_beaten']} of {found['random_sets']} "
        "are beaten. If the recipe lay within "
        "them, any edit would have done.",
        Table(
            ("set", "change in worst-group accuracy", "95 % interval"),
            [
                ("this recipe", lift, interval),
                *((f"random {i + 1}", v, None) for i, v in enumerate(lifts)),
            ],
        ),
        figures.null_strip(lifts, lift, interval, axis="change in worst-group accuracy on test"),
        f"This recipe {lift:+.2f}; random sets from {min(lifts):+.2f} to {max(lifts):+.2f}; "
        f"{found['random_sets_beaten']} of {found['random_sets']} beaten.",
    )


def cost(view: RunView, concept: str) -> Exhibit:
    """Return the effects: worst group, artifact-free cost, insertion residual, identity."""
    found = measured(view, concept)
    test, clean, drawn = (found.get(key) for key in ("n_test", "clean_n", "insertion_n"))
    figures_of: list[tuple[str, str, str, int | None]] = [  # words, key, key of the interval, n
        ("worst group before", "worst_group_before", "worst_group_before_ci", test),
        (
            "worst group after, at the unchanged threshold",
            "worst_group_after_fixed_threshold",
            "",
            test,
        ),
        (
            "worst group after, at the threshold chosen again",
            "worst_group_after",
            "worst_group_after_ci",
            test,
        ),
        ("change of the worst group", "worst_group_lift", "ci", test),
        ("worst group after fitting the head again", "worst_group_after_refit", "", test),
        ("worst group of a head fitted without the trap", "worst_group_without_trap", "", test),
        ("AUROC on the trap's test rows, before", "auroc_before", "", test),
        ("AUROC on the trap's test rows, after", "auroc_after", "", test),
        (
            f"change of AUROC on {found.get('clean_is', 'artifact-free images')}",
            "clean_auroc_delta",
            "",
            clean,
        ),
        (f"{concept} drawn onto images: mean shift of p before", "insertion_before", "", drawn),
        (f"{concept} drawn onto images: mean shift of p after", "insertion_after", "", drawn),
        (
            "insertion residual (after / before; 0 = the drawn artifact moves nothing)",
            "insertion_residual",
            "",
            drawn,
        ),
        (
            "images left bit for bit unchanged (no suppressed latent fires)",
            "identity_rows",
            "",
            view.n,
        ),
    ]
    rows = [
        (
            words,
            found.get(key),
            span(*(found.get(interval) or (None, None))),
            n,
            found.get(f"{key}_reason"),
        )
        for words, key, interval, n in figures_of
    ]
    return Exhibit(
        "Benefit and cost",
        "All on test. Where a number is missing, the reason is next to it.",
        Table(
            ("figure", "value", "95 % interval", "n", "not measured because"),
            [row for row in rows if row[1] is not None or row[4]],
        ).without_empty_last(),
    )


def latents(view: RunView, concept: str) -> Exhibit:
    """Return which latents the recipe suppresses, and why each was selected."""
    recipe = load_recipe(view.run, concept)  # also refuses a recipe of another model or SAE
    try:
        names = {(r["site"], r["latent"]): latent_title(r) for r in view.concepts}
    except DermauditError:
        names = {}  # the names stage is absent or stale; the recipe stands without it
    rows = [
        (
            e["latent"],
            names.get((recipe.site, e["latent"])) or "unnamed",
            ", ".join(f"{k} {v:.3f}" for k, v in (e.get("why") or {}).items()),
        )
        for e in recipe.body["latents"]
    ]
    limits = recipe.body["limits"]
    level_from = recipe.body["operation"].get("level_from")
    return Exhibit(
        "Suppressed latents",
        f"Operation: {recipe.body['operation']['mode']} at {recipe.site}, error term "
        f"{recipe.body['operation'].get('error_term', 'kept')}"
        f"{f', its level from {level_from}' if level_from else ''}. "
        f"Body hash {recipe.sha256[:16]}. Chosen on val, measured on test.",
        Table(("latent", "name", "why it was selected"), rows),
        notes=[f"Limit: {limit}" for limit in limits],
    )


def cases(view: RunView, concept: str) -> list[measures.FlippedCase]:
    """Return the test images whose decision changes, gravest first."""
    found = measured(view, concept)
    rows = _test_images(view, concept)
    return measures.flipped_cases(rows, found.get("target", "target"), found["threshold_before"])


def case(view: RunView, concept: str, row: int) -> measures.FlippedCase | measures.TestImage | None:
    """Return what the recipe does to one test image; None where it was not tested on it."""
    flipped = next((c for c in cases(view, concept) if c["row"] == row), None)
    return flipped or next((r for r in _test_images(view, concept) if r["row"] == row), None)


def case_lines(
    view: RunView, concept: str, case: measures.FlippedCase | measures.TestImage
) -> tuple[str, ...]:
    """Return what is written under the picture of a test image."""
    causes = {"edit": ", by the edit", "threshold": ", by the moved threshold"}
    cause = str(case.get("cause"))
    change = f"p {case['p_before']:.3f} → {case['p_after']:.3f}{causes.get(cause, '')}"
    target = measured(view, concept)["target"]
    kind = case.get("kind", f"{case['top1_before']}, unchanged")
    return kind, change, group_words(case["group4"], concept, target)


def recipe_latents(view: RunView, concept: str) -> list[tuple[str, int]]:
    """Return the (site, latent) that the recipe of a concept suppresses; [] without a recipe."""
    try:
        recipe = load_recipe(view.run, concept)
    except DermauditError:
        return []
    return [(recipe.site, latent) for latent in recipe.latents]


def flips(view: RunView, concept: str) -> Exhibit:
    """Return the number of flipped images, by what changed and why."""
    target = measured(view, concept).get("target", "target")
    flipped = cases(view, concept)
    counted = [
        (
            kind,
            sum(c["kind"] == kind and c["cause"] == "edit" for c in flipped),
            sum(c["kind"] == kind and c["cause"] == "threshold" for c in flipped),
        )
        for kind in dict.fromkeys(c["kind"] for c in flipped)
    ]
    by_threshold = sum(c["cause"] == "threshold" for c in flipped)
    return Exhibit(
        "Images whose decision changes",
        f"{len(flipped)} of {len(view.suppressed_rows(concept))} test images change their decision, "
        f"{by_threshold} of them only because the threshold moved. First those in which a true "
        f"{target} is no longer called: look at each of them.",
        Table(("what changed", "by the edit", "by the moved threshold"), counted),
    )
