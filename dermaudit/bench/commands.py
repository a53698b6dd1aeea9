"""The verbs `bench zeroshot | retrieval | probe | annotate`. Input is validated before anything heavy
is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import EvidenceError, UserInputError

Models = Annotated[list[str], typer.Option("--model", help="model name; again for several")]
Data = Annotated[Path, typer.Option(help="data set: a manifest, its folder, or a folder of images")]
Split = Annotated[str, typer.Option(help="which images are scored: test, val, train or all")]
Where = Annotated[str | None, typer.Option(help="only rows for which this SQL condition holds")]
Reference = Annotated[
    str | None, typer.Option(help="compare every model with this one, not all pairs")
]
Draws = Annotated[int, typer.Option(help="bootstrap resamples, 100 or more")]
Seed = Annotated[int, typer.Option(help="of resamples and inner folds", min=0)]
Threads = Annotated[int, typer.Option(help="torch threads", min=1)]
Device = Annotated[str, typer.Option(help="cpu, cuda, …")]
Form = Annotated[str, typer.Option("--format", help="text, markdown, latex or parquet")]
Out = Annotated[Path | None, typer.Option(help="folder for the table and the predictions")]
Force = Annotated[bool, typer.Option(help="replace files in --out")]


def bench_zeroshot(
    model: Models,
    data: Data,
    classes: Annotated[
        str | None,
        typer.Option(help="ham, pad, isic, malignancy, or a TOML/JSON file: code -> names"),
    ] = None,
    templates: Annotated[
        str, typer.Option(help="dermfm, dermaudit, or a file with one template a line")
    ] = "dermfm",
    ontology: Annotated[
        Path | None, typer.Option(help="nested JSON of diseases: hierarchical accuracy")
    ] = None,
    split: Split = "test",
    where: Where = None,
    reference: Reference = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="recall of every class too")] = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    threads: Threads = 1,
    device: Device = "cpu",
    form: Form = "text",
    out: Out = None,
    force: Force = False,
) -> dict[str, Any]:
    """Classify the labels of a data set by prompts alone; --out keeps the predictions."""
    from .inputs.prompts import load_classes, load_templates, named_classes, truth_numbers
    from .output.paths import planned_files
    from .session import check_enough, dataset_name, finish, split_rows, towers

    names, reference = _checked(model, reference, draws)
    prompts = load_templates(templates)
    if classes is not None:
        named_classes(classes)
    tree = _ontology(ontology)
    dataset = dataset_name(data)
    table = planned_files(out, "zeroshot", form, dataset, list(names), force)
    manifest = _manifest(data, where)
    rows = split_rows(manifest, split)
    chosen = load_classes(classes, [manifest.labels[i] for i in rows], data)
    labels: list[str | None] = [None] * manifest.n  # other splits may hold other labels
    for i in rows:
        labels[i] = manifest.labels[i]
    truth = truth_numbers(labels, chosen, data)
    labelled = rows[truth[rows] >= 0]
    check_enough(len(labelled), f"{data}, split {split}, with a label")

    from dermaudit.towers.embedding import embed_rows

    from .inputs.saved_predictions import write_predictions
    from .zeroshot import predict, zeroshot_sheets

    found, skipped = {}, {}
    for name, tower in towers(names, device, threads):
        embedded = embed_rows(tower, manifest, labelled)
        skipped[name] = len(embedded.skipped)
        found[name] = predict(tower, embedded, manifest, truth, chosen, prompts)
    sheets, more = zeroshot_sheets(
        dataset,
        found,
        chosen,
        ontology=tree,
        n_draws=draws,
        seed=seed,
        reference=reference,
        by_class=by_class,
    )
    if out is not None:
        more["predictions"] = [str(p) for p in write_predictions(out, dataset, found)]
    return {
        **_what(names, data, split, where, skipped),
        "n_unlabelled": len(rows) - len(labelled),
        "templates": prompts,
        **more,
        **finish(sheets, form, table),
    }


def bench_retrieval(
    model: Models,
    data: Data,
    k: Annotated[list[int] | None, typer.Option(help="recall at k; again for several")] = None,
    column: Annotated[str, typer.Option(help="column of the captions")] = "caption",
    split: Split = "test",
    where: Where = None,
    reference: Reference = None,
    draws: Draws = 1000,
    seed: Seed = 0,
    threads: Threads = 1,
    device: Device = "cpu",
    form: Form = "text",
    out: Out = None,
    force: Force = False,
) -> dict[str, Any]:
    """Find the caption of an image and the image of a caption, among all of the split."""
    from .inputs.captions import captions_of
    from .output.paths import planned_files
    from .session import check_enough, dataset_name, finish, split_rows, towers

    names, reference = _checked(model, reference, draws)
    ks = sorted(set(k or [1, 5, 10, 50]))
    if ks[0] < 1:
        raise UserInputError(
            f"--k {ks[0]} must be at least 1", "--k 1 asks how often the first answer is right"
        )
    dataset = dataset_name(data)
    table = planned_files(out, "retrieval", form, dataset, [], force)
    manifest = _manifest(data, where)
    captions = captions_of(manifest, column)
    rows = split_rows(manifest, split)
    spoken = rows[[bool(captions[i]) for i in rows]]
    check_enough(len(spoken), f"{data}, split {split}, with a {column}")

    from dermaudit.towers.embedding import embed_rows

    from .retrieval import encode_captions, ranks, retrieval_sheets

    found, skipped = {}, {}
    for name, tower in towers(names, device, threads):
        embedded = embed_rows(tower, manifest, spoken)
        skipped[name] = len(embedded.skipped)
        vectors, which = encode_captions(tower, [captions[i] for i in embedded.rows])
        found[name] = ranks(embedded.x, vectors, which)
        groups = [manifest.groups[i] for i in embedded.rows]
    sheets = retrieval_sheets(
        dataset, found, which, groups, ks, n_draws=draws, seed=seed, reference=reference
    )
    return {
        **_what(names, data, split, where, skipped),
        "n_without_caption": len(rows) - len(spoken),
        **finish(sheets, form, table),
    }


def bench_probe(
    model: Models,
    data: Data,
    parts: Annotated[int, typer.Option(help="draws of each part of train below 100 %")] = 3,
    where: Where = None,
    reference: Reference = None,
    draws: Draws = 1000,
    seed: Seed = 0,
    threads: Threads = 1,
    device: Device = "cpu",
    form: Form = "text",
    out: Out = None,
    force: Force = False,
) -> dict[str, Any]:
    """Linear probe and prompted AUROC of every label, and the probe of `label` on 1 to 100 % of train."""
    from .output.paths import planned_files
    from .session import dataset_name, finish, towers

    names, reference = _checked(model, reference, draws)
    if parts < 1:
        raise UserInputError(
            f"--parts {parts} must be at least 1", "--parts 1 draws each part of train once"
        )
    dataset = dataset_name(data)
    table = planned_files(out, "probe", form, dataset, list(names), force)
    manifest = _manifest(data, where)

    from dermaudit.pretrain.training.probe import embed_splits, measure

    from .probe import curve_of, label_sheet

    sheets, found, embedded = [], {}, {}
    for name, tower in towers(names, device, threads):
        embedded[name] = embed_splits(tower, manifest)
        found[name] = measure(tower, manifest, seed=seed, x=embedded[name])
        if not found[name]:
            raise EvidenceError(f"{data} has no label with enough test images to measure {name} on")
        sheets.append(label_sheet(name, dataset, found[name]))
    curve, predictions = curve_of(
        manifest, embedded, dataset, n_parts=parts, n_draws=draws, seed=seed, reference=reference
    )
    written: dict[str, Any] = {}
    if out is not None and predictions:
        from .inputs.saved_predictions import write_predictions

        written["predictions"] = [str(p) for p in write_predictions(out, dataset, predictions)]
    return {
        "data": str(data),
        "names": names,
        "where": where,
        "models": found,
        **written,
        **finish([*sheets, *curve], form, table),
    }


def bench_annotate(
    model: Models,
    data: Data,
    terms: Annotated[
        Path | None, typer.Option(help="ConceptTerms.json: concept -> terms, met by name")
    ] = None,
    templates: Annotated[
        str, typer.Option(help="skin (MAKE's six) or dermoscopy (MONET's two)")
    ] = "skin",
    split: Split = "test",
    where: Where = None,
    reference: Reference = None,
    draws: Draws = 1000,
    seed: Seed = 0,
    threads: Threads = 1,
    device: Device = "cpu",
    form: Form = "text",
    out: Out = None,
    force: Force = False,
) -> dict[str, Any]:
    """AUROC of every concept and artifact by its words alone, beside random words."""
    from dermaudit.errors import unknown
    from dermaudit.pretrain.data.facts import facts_of

    from .inputs.concepts import TEMPLATES, concepts_of, diagnosis_terms, enough, read_terms
    from .output.paths import planned_files
    from .session import dataset_name, finish, split_rows, towers

    names, reference = _checked(model, reference, draws)
    if templates not in TEMPLATES:
        raise unknown("set of templates", templates, TEMPLATES)
    words = None if terms is None else read_terms(terms)
    dataset = dataset_name(data)
    table = planned_files(out, "annotate", form, dataset, [], force)
    manifest = _manifest(data, where)
    if words is None:
        words = {fact.name: fact.said for fact in facts_of(manifest)}
    rows = split_rows(manifest, split)
    asked = concepts_of(manifest, words, rows)[0]
    if not any(enough(c.truth) for c in asked):
        raise EvidenceError(
            f"{data}: no concept has 30 images of known truth, 5 with it and 5 without, in {split}",
            "annotate more images, or score another --split",
        )
    diagnoses = diagnosis_terms(asked, manifest.labels)

    from dermaudit.towers.embedding import embed_rows

    from .annotation import RANDOM_WORDS, annotation_sheets, presence

    scores, controls, skipped = {}, {}, {}
    for name, tower in towers(names, device, threads):
        embedded = embed_rows(tower, manifest, rows)
        skipped[name] = len(embedded.skipped)
        concepts, unmatched = concepts_of(manifest, words, embedded.rows)
        pairs = TEMPLATES[templates]
        scores[name] = presence(tower, embedded.x, [c.terms for c in concepts], pairs)
        controls[name] = presence(tower, embedded.x, [(w,) for w in RANDOM_WORDS], pairs)
        groups = [manifest.groups[i] for i in embedded.rows]
    sheets = annotation_sheets(
        dataset,
        scores,
        controls,
        concepts,
        groups,
        unmatched if terms is not None else [],
        diagnoses=diagnoses,
        n_draws=draws,
        seed=seed,
        reference=reference,
    )
    return {
        **_what(names, data, split, where, skipped),
        "templates": templates,
        "terms_without_column": unmatched if terms is not None else [],
        "terms_of_diagnoses": diagnoses,
        **finish(sheets, form, table),
    }


def _checked(
    model: list[str], reference: str | None, draws: int
) -> tuple[dict[str, str], str | None]:
    """(models by short name, the reference's short name), once these flags are known to be usable."""
    from .session import check_models, reference_name
    from .table import check_draws

    names = check_models(model)
    check_draws(draws)
    return names, reference_name(reference, names)


def _manifest(data: Path, where: str | None) -> Any:
    from dermaudit.data import Manifest

    manifest = Manifest.load(data)
    return manifest if where is None else manifest.where(where)


def _ontology(path: Path | None) -> Any:
    if path is None:
        return None
    if not path.exists():
        raise UserInputError(
            f"ontology {path} does not exist",
            'give nested JSON, {"nail diseases": {"onycholysis": {}}}, or leave --ontology out',
        )
    from dermaudit.data.captions.ontology import Ontology

    return Ontology.load(path)


def _what(
    names: dict[str, str], data: Path, split: str, where: str | None, skipped: dict[str, int]
) -> dict[str, Any]:
    return {
        "data": str(data),
        "models": names,
        "split": split,
        "where": where,
        "n_skipped": skipped,
    }
