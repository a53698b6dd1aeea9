"""The exhibits of a whole run: where it comes from, what was found, what could not be measured."""

from __future__ import annotations

from collections import Counter
from typing import Any

from dermaudit.errors import EvidenceError
from dermaudit.stats.intervals import MIN_CELL

from . import figures, measures
from .image import predicted_labels
from .run_view import RunView
from .tables import NOTHING, Exhibit, Table, site_title, span, word

KINDS = {
    "sae": "SAE latents",
    "vocabulary": "predefined vocabulary",
    "random": "random words",
    "probe": "full linear probe",
}


def provenance(view: RunView) -> Exhibit:
    """Return what the run was made from, with hashes."""
    meta = view.run.meta
    model, data = meta.get("model") or {}, meta.get("data") or {}
    facts = view.data_facts
    versions = meta.get("versions") or {}
    rows = [
        ("run", meta.get("name")),
        ("model", model.get("name")),
        ("model fingerprint", (model.get("fingerprint") or "")[:16] or None),
        ("manifest", data.get("manifest")),
        ("manifest sha256", (data.get("manifest_sha256") or "")[:16] or None),
        ("images", view.n),
        ("images skipped", data.get("n_skipped")),
        ("layout", facts.get("layout")),
        ("licence of the images", facts.get("licence")),
        ("seed", meta.get("seed")),
        ("threads", meta.get("threads")),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) or None),
    ]
    return Exhibit(
        "Model, data and versions",
        "Hashes are cut to 16 characters.",
        Table(("what", "value"), [(k, v if v is None else word(v)) for k, v in rows]),
    )


def counts(view: RunView) -> Exhibit:
    """Return the number of images by split and label."""
    splits = [s for s in ("train", "val", "test") if (view.splits == s).any()]
    splits += sorted(set(view.splits) - set(splits))
    labels = sorted(set(view.labels) - {""})
    unlabelled = [""] if (view.labels == "").any() else []
    names = {"": "no label"}
    rows = []
    for label in labels + unlabelled:
        mine = view.labels == label
        each = [int((mine & (view.splits == s)).sum()) for s in splits]
        rows.append((names.get(label, label), *each, int(mine.sum()), len(set(view.groups[mine]))))
    each = [int((view.splits == s).sum()) for s in splits]
    rows.append(("all", *each, view.n, len(set(view.groups))))
    return Exhibit(
        "Images of each label",
        "Images by label and split. Splits never cut through a group (patient or lesion).",
        Table(("label", *(s or "no split" for s in splits), "all", "groups"), rows),
    )


def skin_tones(view: RunView) -> Exhibit:
    """Return how many images there are of each skin tone. EvidenceError where none is recorded."""
    tones = Counter(view.column("skin_tone"))
    if set(tones) <= {""}:
        raise EvidenceError("no skin tones in the manifest: not measured")
    test = view.splits == "test"
    rows = [
        (tone or "not recorded", n, int((test & (view.column("skin_tone") == tone)).sum()))
        for tone, n in sorted(tones.items())
    ]
    return Exhibit(
        "Images of each skin tone",
        "Images by the manifest's skin_tone.",
        Table(("skin tone", "all", "test"), rows),
    )


def artifact_prevalence(view: RunView) -> Exhibit:
    """Return how often each artifact is in the images of each label, and φ with its interval."""
    cells = measures.prevalence(view)
    names = list(dict.fromkeys(c.artifact for c in cells))
    labels = list(dict.fromkeys(c.label for c in cells))
    at = {(c.artifact, c.label): c for c in cells}

    def text(c: measures.Cell) -> str:
        if c.phi is None:
            return "n small"
        sure = c.lo is not None and c.hi is not None and (c.lo > 0 or c.hi < 0)
        return f"{c.phi:+.2f}" + ("*" if sure else "")

    with_artifact = {a: sum(at[a, y].n_pos for y in labels) for a in names}
    figure = figures.phi_grid(
        [f"{a} (n {with_artifact[a]})" for a in names],
        [f"{y}\nn {max(at[a, y].n for a in names)}" for y in labels],
        [[at[a, y].phi for y in labels] for a in names],
        [[text(at[a, y]) for y in labels] for a in names],
    )
    rows = [
        (c.artifact, c.label, c.n_pos, c.n, c.n_pos / c.n if c.n else None, c.phi, span(c.lo, c.hi))
        for c in cells
    ]
    known = [c for c in cells if c.phi is not None]
    most = max(known, key=lambda c: abs(c.phi or 0.0), default=None)
    alt = (
        f"Grid of φ for {len(names)} artifacts and {len(labels)} labels; the largest is "
        f"{most.artifact} with {most.label}, φ {most.phi:+.2f} [{most.lo:.2f}, {most.hi:.2f}]."
        if most
        else "Every cell has too few images."
    )
    return Exhibit(
        "Which artifacts go with which label",
        "φ = correlation of having the artifact with having the label, against all other "
        "labels, over the "
        "images for which both are known (all splits: this describes the data, not the model). "
        "Intervals: "
        f"95 %, bootstrap over groups, {measures.DRAWS} draws; * = the interval leaves out 0. "
        "Cells with fewer than "
        f"{MIN_CELL} images of the label carry no φ. Where φ is not 0, a model can learn the "
        "artifact instead "
        "of the lesion.",
        Table(
            ("artifact", "label", "with artifact", "n", "prevalence", "φ", "95 % interval"),
            rows,
            shares=frozenset({"prevalence"}),
        ),
        figure,
        alt,
    )


def sae(view: RunView) -> Exhibit:
    """Return the metrics of the SAEs on held-out embeddings."""
    rows = [{"site": site, **view.sae_metrics(site)} for site in view.sites]
    if not rows:
        raise EvidenceError("the run has no sparse autoencoder yet")

    def over_seeds(row: dict[str, Any]) -> float | None:
        report = view.other_seeds(row["site"])
        return report["stable"]["value"] if report else None

    borrowed = "".join(_of_reference(row) for row in rows if "reference" in row)
    return Exhibit(
        "Sparse autoencoders",
        f"{borrowed}On test images (a reference dictionary: on all images). "
        "L0 = active latents of an embedding; FVU = fraction of variance "
        "unexplained; dead = latents that are active in no test image; over seeds = live latents that "
        "every other seed found too (decoder and encoder cosine .7 and more), – = one seed was "
        "fitted; n = embeddings it was fitted on (train).",
        Table.of(
            rows,
            ("site", "site"),
            *((name, name) for name in ("d_in", "d_sae", "k")),
            ("L0", "l0"),
            ("FVU", "fvu"),
            ("dead", "dead"),
            ("over seeds", over_seeds),
            ("n", "n_train"),
            shares=("dead", "over seeds"),
        ),
    )


def _of_reference(row: dict[str, Any]) -> str:
    """Return in words why the reference dictionary is the SAE of a site, and how far the images lie from its own."""
    known, far = row["reference"], row["reference"]["distance"]
    return (
        f"At {row['site']} it is the reference dictionary of {known['model']}, fitted and named on "
        f"{known['made_from']['images']} other images: {known['why']}. The images of this run are reconstructed with "
        f"{far['squared_error_ratio']:.2f} times the squared error of those, and {far['silent']:.0%} of its latents "
        "are never active. "
    )


def found(view: RunView) -> Exhibit:
    """Return the best single latent of each labelled concept, with the probe and the prevalence."""
    everything = view.label_rows
    rows = [row for row in everything if row["auprc"] is not None]
    if not rows:
        reasons = sorted({row["reason"] for row in everything if row["reason"]})
        raise EvidenceError("; ".join(reasons) or "no labels: not measured")
    figure = figures.ranked(
        [f"{r['concept']} ({r['n_pos']} of {r['n']})" for r in rows],
        [r["auprc"] for r in rows],
        [span(r["auprc_lo"], r["auprc_hi"]) for r in rows],
        axis="average precision on test",
        label="best single latent",
        bounds=(0, 1.02),
        marks={
            "linear probe (ceiling)": [r["probe_auprc"] for r in rows],
            "prevalence (chance)": [r["prevalence"] for r in rows],
        },
    )
    best = max(rows, key=lambda r: r["auprc"] - r["prevalence"])
    return Exhibit(
        "How well one latent detects each labelled concept",
        "Average precision (AUPRC) on test of the one latent that ranks the concept's images "
        "best; in brackets the images with the concept, of all labelled ones. The latent is "
        "chosen on train and val; with a reference dictionary it was chosen on the images of the "
        "reference, and is scored on all images. Diamond: a supervised linear probe on the "
        "embedding. Bar: "
        "prevalence, what chance gives. Lift share = (latent − prevalence) / (probe − "
        "prevalence). Intervals: 95 %, "
        "bootstrap over groups.",
        Table.of(
            everything,
            ("concept", "concept"),
            ("type", "type"),
            ("reads", lambda r: site_title(r["site"]) if r["site"] else None),
            ("latent", "latent"),
            ("n+", "n_pos"),
            ("n", "n"),
            ("AUPRC", "auprc"),
            ("AUPRC 95 %", ("auprc_lo", "auprc_hi")),
            ("AUROC", "auroc"),
            ("AUROC 95 %", ("auroc_lo", "auroc_hi")),
            ("probe AUPRC", "probe_auprc"),
            ("prevalence", "prevalence"),
            ("lift share", "lift_share"),
            ("lift share 95 %", ("lift_share_lo", "lift_share_hi")),
            ("not measured because", "reason"),
        ),
        figure,
        f"{len(rows)} concepts; the clearest is {best['concept']}: AUPRC {best['auprc']:.2f} at "
        f"a prevalence of {best['prevalence']:.2f}.",
    )


def naming(view: RunView) -> Exhibit:
    """Return how many latents got a name, how many of the names are wrong, and the null."""
    m = view.naming
    judged = m.get("n_judged")
    rows = [
        *((f"latents: {verdict}", count) for verdict, count in m.get("verdicts", {}).items()),
        ("coverage (named / alive)", m.get("coverage")),
        ("names that labels can judge", judged),
        ("wrong among those", m.get("wrong_among_named")),
        ("wrong, confusions that the vocabulary declares aside", m.get("wrong_tolerant")),
        ("latents that would be named with activations permuted", m.get("named_under_permutation")),
        *(
            (f"{site}: named alike by two halves, of {halves['n_named_in_both']}", halves["same"])
            for site, halves in m.get("two_halves", {}).items()
        ),
        ("vocabulary", m.get("vocabulary")),
    ]
    return Exhibit(
        "How many latents have a name",
        "A latent is named when its text score beats a permutation null (Benjamini–Hochberg over latents, "
        "q ≤ .05), and its best word is right with a probability that keeps wrong names below the accepted share "
        "(calibrated on rendered images). Otherwise the answer is a small set of words, or none. Diagnoses do not "
        "name latents. A name is wrong when, on test, its latent ranks another labelled concept clearly better.",
        Table(("figure", "value"), rows),
    )


def bottleneck(view: RunView) -> Exhibit:
    """Return bottlenecks of equally many latents, vocabulary words and random words, and the probe."""
    rows = view.bottlenecks
    if not rows:
        raise EvidenceError("no bottleneck was fitted")
    names = [str(KINDS.get(r["kind"], r["kind"])) for r in rows]
    task, nec = rows[0]["task"], next((r["nec"] for r in rows if r["nec"]), None)
    figure = figures.ranked(
        names,
        [r["auroc"] for r in rows],
        [span(r["lo"], r["hi"]) for r in rows],
        axis="AUROC on test",
        label="AUROC",
        reference=(0.5, "chance"),
    )
    table = [
        (
            n,
            r["nec"],
            r["auroc"],
            span(r["lo"], r["hi"]),
            r["n_pos"],
            r["n"],
            _weights(r["concepts"]),
        )
        for n, r in zip(names, rows, strict=True)
    ]
    return Exhibit(
        f"Predicting {task} from a few concepts",
        f"A concept bottleneck: a linear head for {task} against the rest on {nec} concepts of each "
        "kind, fitted on train, AUROC on test; for "
        "random words the mean of "
        "ten draws (the words shown are the first draw's). The probe uses the whole embedding. "
        "Intervals: 95 %, "
        "bootstrap over groups.",
        Table(("kind", "concepts", "AUROC", "95 % interval", "n+", "n", "weights"), table),
        figure,
        "; ".join(f"{n} {r['auroc']:.2f}" for n, r in zip(names, rows, strict=True)),
    )


def _weights(raw: str) -> str:
    import json

    found = json.loads(raw or "{}")
    return (
        ", ".join(f"{k} {v:+.2f}" for k, v in sorted(found.items(), key=lambda kv: -abs(kv[1])))
        or NOTHING
    )


def head(view: RunView) -> Exhibit:
    """Return how well the run's head predicts each class on test images."""
    fitted = view.head()
    test = dict((view.stages.get("heads") or {}).get("summary", {}).get("test") or {})
    areas = {k.removeprefix("auroc:"): v for k, v in test.items() if k.startswith("auroc:")}
    if not areas:
        raise EvidenceError(f"the head on test: {test.get('reason', 'n too small')}")
    shares = {s["label"]: s for s in measures.decision_shares(view, predicted_labels(view))}
    rows = [
        {"class": name, "auroc": area, "auroc_ci": span(low, high), **shares.get(name, {})}
        for name, (area, low, high) in areas.items()
    ]
    extra = (
        f" Accuracy {word(test['accuracy'])}, balanced accuracy {word(test['balanced_accuracy'])}."
        if "accuracy" in test
        else ""
    )
    return Exhibit(
        "The classifier of this run",
        "The run's head (label), a logistic regression on the pooled embedding, fitted on "
        f"{fitted.n_train} train images (C = {fitted.C:g}). AUROC of each class against the rest on "
        f"{test.get('n')} test images. Sensitivity and specificity are those of the class with the "
        "highest probability; n = test images with and without the class. Intervals: 95 %, "
        f"bootstrap over groups.{extra}",
        Table.of(
            rows,
            ("class", "class"),
            ("AUROC", "auroc"),
            ("AUROC 95 %", "auroc_ci"),
            ("sensitivity", "sensitivity"),
            ("sensitivity 95 %", "sensitivity_ci"),
            ("n with", "sensitivity_n"),
            ("specificity", "specificity"),
            ("specificity 95 %", "specificity_ci"),
            ("n without", "specificity_n"),
        ),
    )
