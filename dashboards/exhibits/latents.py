"""The exhibits of one latent, and the table of all: its activations, its names, its evidence."""

from __future__ import annotations

import numpy as np

from dermaudit.concepts.annotation.lift_share import LabelEvidence
from dermaudit.concepts.naming.concept_rows import ConceptRow
from dermaudit.concepts.recipes.recipe import load_recipe
from dermaudit.errors import DermauditError, EvidenceError, UserInputError

from . import figures, measures
from .run_view import RunView, latent_title, rivals_of
from .tables import Exhibit, Table, site_title, span

FILTERS = ("all", "named", "unnamed", "artifact", "clinical")


class LatentRow(ConceptRow):
    """One row of the table of latents."""

    best_for: str | None  # the labelled concept for which it is the best latent
    stable: bool | None  # every other seed found it too; None: not measured


def concept_rows(view: RunView, kind: str = "all", text: str = "") -> list[LatentRow]:
    """Return the live latents of a filter, named ones first, then by z.

    `artifact` and `clinical` select a latent by the type of its name, or by the type of the labelled
    concept that it was chosen for.
    """
    chosen = {(r.site, r.latent): r for r in label_choices(view)}
    kept: list[LatentRow] = []
    for row in view.live_latents:
        label = chosen.get((row["site"], row["latent"]))
        types = {row["type"], label.type if label else None}
        if (kind == "named" and not row["name"]) or (kind == "unnamed" and row["name"]):
            continue
        if kind == "artifact" and "artifact" not in types:
            continue
        if kind == "clinical" and not types & {"clinical", "concept", "colour", "anatomy"}:
            continue
        best = label.concept if label else ""
        words = (
            f"{latent_title(row)} {row['label_concept'] or ''} {best} {row['site']} "
            f"{site_title(row['site'])} {row['latent']}"
        )
        if text.strip().lower() not in words.lower():
            continue
        kept.append(
            {
                **row,
                "best_for": label.concept if label else None,
                "stable": view.stable(row["site"], row["latent"]),
            }
        )
    return sorted(
        kept,
        key=lambda r: (
            r["name"] is None,
            -(r["z"] if r["z"] is not None else -9),
            r["site"],
            r["latent"],
        ),
    )


def label_choices(view: RunView) -> list[LabelEvidence]:
    """Return the rows of labels.parquet that have a latent; [] where there are none."""
    try:
        return [LabelEvidence(**r) for r in view.label_rows if r["latent"] is not None]
    except (EvidenceError, UserInputError):
        return []


def concept_table(rows: list[LatentRow]) -> Table:
    """Return the table of latents."""
    return Table.of(
        rows,
        ("name", latent_title),
        ("type", "type"),
        ("reads", lambda r: site_title(r["site"])),
        ("latent", "latent"),
        ("named by", "named_by"),
        ("p", "p_correct"),
        ("z", "z"),
        ("q", "q"),
        ("frequency", "frequency"),
        ("active in", "n_active"),
        ("over seeds", "stable"),
        ("best labelled", "label_concept"),
        ("its AUPRC", "label_auprc"),
        ("chosen for", "best_for"),
        ("unnamed because", "reason"),
        shares=("frequency",),
    )


CONCEPTS_CAPTION = (
    "One row for each latent that is active in an image. reads = the embedding of the whole image, or "
    "of each patch after a block of the model; named by = labels of train and val images, or the words of the "
    "vocabulary alone; p = probability that the name is right, or that the set contains "
    "the right one; z = text score of the name; q = its false-discovery "
    "rate against the permutation null; frequency = share of images in which the latent is active; "
    "over seeds = every other seed that was fitted found it too (– = only one was: dermaudit fit); "
    "best labelled = the labelled concept that it ranks best on test, with its average precision; "
    "chosen for = the labelled concept for which it is the best latent on validation images."
)


def over_seeds(view: RunView, row: ConceptRow) -> str:
    """Return in a sentence whether another fit found this latent too."""
    report = view.other_seeds(row["site"])
    if report is None:
        if row.get("agreement") is not None:
            return f"The fits of the consensus agree on it with a mean cosine of {row['agreement']:.2f}."
        return "Over seeds: not measured (`dermaudit fit` on this run compares three)."
    others = ", ".join(report["against"])
    agreement = report["per_latent"]["agreement"][row["latent"]]
    if agreement is None:
        return "Over seeds: not measured, it is residual, or fires on no test row."
    word = "found again" if view.stable(row["site"], row["latent"]) else "**not found again**"
    return f"Over seeds: {word} by {others} (agreement {agreement:.2f}; .70 with each is wanted)."


def summary(view: RunView, row: ConceptRow) -> str:
    """Return what is known of a latent, in a few sentences of Markdown."""
    found = f"{describe(row, _chosen_for(view, row), view.n)} {over_seeds(view, row)}"
    names = row.get("half_names")
    if not names:
        return found
    return f"{found} In the dictionaries of two halves of the groups: {' and '.join(names)}."


def _chosen_for(view: RunView, row: ConceptRow) -> list[str]:
    """Return the labelled concepts for which a latent is the best one."""
    mine = (row["site"], row["latent"])
    return [r.concept for r in label_choices(view) if (r.site, r.latent) == mine]


_SOURCES = {"labels": "labels of train and validation images", "words": "words alone"}


def _probability(row: ConceptRow, what: str) -> str:
    p = row["p_correct"]
    if p is None:
        return "not calibrated"
    shown = "more than 99%" if p > 0.99 else f"{p:.0%}"
    return f"{what} with a probability of {shown}"


def describe(row: ConceptRow, chosen: list[str], n: int) -> str:
    """Return how often a latent of `n` images is active, its name, and whether labels contradict it."""
    parts = [f"Active in {row['n_active']} of {n} images ({row['frequency']:.1%})."]
    if row["name"]:
        parts.append(
            f"Name, by {_SOURCES[row['named_by'] or 'words']}: **{row['name']}** ({row['type']}), "
            f"{_probability(row, 'right')}; score z {row['z']:.2f}, "
            f"false-discovery rate q {row['q']:.3f}."
        )
    elif row["one_of"]:
        parts.append(
            f"One of a set: **{' or '.join(row['one_of'])}**, {_probability(row, 'among them')}."
        )
    else:
        parts.append(f"{row['verdict'].capitalize()}: {row['reason']}.")
    if chosen:
        parts.append(
            f"On validation images, the best latent of the run for: **{', '.join(chosen)}**."
        )
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


def suppressed_by(view: RunView, site: str, latent: int) -> list[str]:
    """Return the concepts whose recipe suppresses this latent."""
    found = []
    for concept in view.suppressions:
        try:
            recipe = load_recipe(view.run, concept)
        except DermauditError:
            continue  # refused, or altered: its own page says why
        if recipe.site == site and latent in recipe.latents:
            found.append(concept)
    return found


def find_concept(view: RunView, site: str, latent: int) -> ConceptRow:
    """Return the row of one latent. UserInputError when it is never active, or does not exist."""
    for row in view.live_latents:
        if row["site"] == site and row["latent"] == latent:
            return row
    raise UserInputError(
        f"latent {latent} of {site} is not in this run, or it never fires",
        "choose one from the table of concepts",
    )


def active_rows(view: RunView, site: str, latent: int) -> list[tuple[int, float]]:
    """Return (row, activation) of every image in which a latent is active, strongest first."""
    column = view.codes(site).column(latent)
    fires = np.flatnonzero(column > 0)
    order = fires[np.argsort(-column[fires], kind="stable")]
    return [(int(row), float(column[row])) for row in order]


def _threshold(view: RunView, site: str, latent: int) -> float | None:
    """Return the activation threshold of a latent, None for a per-sample TopK, which has none."""
    threshold = getattr(view.sae(site), "threshold", None)
    return None if threshold is None else float(threshold[latent])


def firing_condition(view: RunView, site: str, latent: int) -> str:
    """Return when a latent is active, as a clause."""
    threshold = _threshold(view, site, latent)
    if threshold is None:
        k = getattr(view.sae(site), "k", None)
        return f"among the {k} largest of its row (a TopK has no threshold)"
    return f"above its threshold of {threshold:.2f}"


def activations(view: RunView, row: ConceptRow) -> Exhibit:
    """Return the histogram of a latent's activations, split by the label that it ranks best."""
    site, latent = row["site"], row["latent"]
    column = view.codes(site).column(latent)
    threshold = _threshold(view, site, latent)
    condition = firing_condition(view, site, latent)
    fires = column > 0
    if not fires.any():
        raise EvidenceError(f"latent {latent} of {site} fires in no image")
    concept = next(iter(_chosen_for(view, row)), row["label_concept"])
    truth = view.truth.get(concept) if concept else None
    series = {"fires": column[fires]}
    if truth is not None:
        parts = {
            f"{concept}: yes": truth.values == 1,
            f"{concept}: no": truth.values == 0,
            "not labelled": np.isnan(truth.values),
        }
        series = {name: column[fires & at] for name, at in parts.items() if (fires & at).any()}
    quantiles = np.quantile(column[fires], [0, 0.25, 0.5, 0.75, 1])
    lines = [
        (name, len(values), float(np.median(values)), float(values.max()))
        for name, values in series.items()
    ]
    lines.append(("does not fire", int((~fires).sum()), 0.0, 0.0))
    patch = " (patch site: the maximum over the patches)" if site != "visual.pooled" else ""
    return Exhibit(
        "Activations",
        f"Activation of the latent in the images in which it fires{patch}, all splits; it fires "
        f"only {condition}. "
        f"Quartiles of the firing images: {', '.join(f'{q:.3f}' for q in quantiles)}.",
        Table(("images", "n", "median", "largest"), lines),
        figures.histogram(
            {k: v.tolist() for k, v in series.items()}, threshold or 0.0, axis="activation"
        ),
        f"Histogram of {int(fires.sum())} firing images of {len(column)}, median "
        f"{quantiles[2]:.2f}, largest {quantiles[4]:.2f}; fires {condition}.",
    )


def rival_names(row: ConceptRow) -> Exhibit:
    """Return the words that scored best; distractors (words that name nothing here) are hatched."""
    rivals = rivals_of(row)
    if not rivals:
        raise EvidenceError(row["reason"] or "no word was scored for this latent")
    words = [w for w, _ in rivals]
    verdict = (
        f"named {row['name']}: z {row['z']:.2f}, p {row['p_null']:.3f}, q {row['q']:.3f}"
        if row["name"]
        else f"unnamed: {row['reason']}"
    )
    return Exhibit(
        "Words that fit best",
        f"Text scores of the five best words ({verdict}). A score is how much more the word fits "
        "the images in which the "
        "latent fires than all images, in standard deviations; hatched, in brackets: words that "
        "name nothing in these images. "
        "Close rivals mean that the word is uncertain.",
        Table(("word", "score"), [tuple(r) for r in rivals]),
        figures.scores(
            words,
            [s for _, s in rivals],
            axis="text score",
            hatched=[w.startswith("(") for w in words],
        ),
        "; ".join(f"{w} {s:.2f}" for w, s in rivals),
    )


def against_labels(view: RunView, row: ConceptRow) -> Exhibit:
    """Return how the latent ranks labelled concepts on test images, with intervals."""
    rows = measures.latent_evidence(view, row["site"], row["latent"])
    shown = [r for r in rows if r["auroc"] is not None]
    if not shown:
        raise EvidenceError("; ".join(f"{r['concept']}: {r['reason']}" for r in rows))
    best = _chosen_for(view, row)
    chosen = (
        f"Of all latents it was chosen on val for {', '.join(best)}."
        if best
        else "It is the chosen latent of no label; Overview holds those that are."
    )
    return Exhibit(
        "How well it ranks labelled images",
        f"The {len(rows)} labels that this latent ranks best on val, scored on test: AUROC with "
        "a 95 % interval (bootstrap over groups, "
        f"{measures.DRAWS} draws), and average precision beside the prevalence. " + chosen,
        Table.of(
            rows,
            ("label", "concept"),
            ("type", "type"),
            ("AUROC", "auroc"),
            ("95 % interval", ("lo", "hi")),
            ("AUPRC", "auprc"),
            ("prevalence", "prevalence"),
            ("n+", "n_pos"),
            ("n", "n"),
            ("not measured because", "reason"),
        ).without_empty_last(),
        figures.ranked(
            [r["concept"] for r in shown],
            [r["auroc"] for r in shown],
            [span(r["lo"], r["hi"]) for r in shown],
            axis="AUROC on test",
            label="AUROC",
            bounds=(0, 1.02),
            reference=(0.5, "chance"),
        ),
        "; ".join(f"{r['concept']} {r['auroc']:.2f}" for r in shown),
    )
