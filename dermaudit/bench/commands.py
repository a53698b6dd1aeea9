"""The commands `bench zeroshot`, `bench retrieval`, `bench probe` and `bench annotate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import BenchOptions

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
    from .zeroshot import ZeroShotOptions, run_zeroshot

    shared = BenchOptions(
        tuple(model), data, split, where, reference, draws, seed, threads, device, form, out, force
    )
    return run_zeroshot(shared, ZeroShotOptions(classes, templates, ontology, by_class))


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
    from .retrieval import run_retrieval

    shared = BenchOptions(
        tuple(model), data, split, where, reference, draws, seed, threads, device, form, out, force
    )
    return run_retrieval(shared, ks=k or [1, 5, 10, 50], column=column)


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
    from .probe import run_probe

    shared = BenchOptions(
        tuple(model), data, "test", where, reference, draws, seed, threads, device, form, out, force
    )
    return run_probe(shared, n_subsets=parts)


def bench_annotate(
    model: Models,
    data: Data,
    terms: Annotated[
        Path | None, typer.Option(help="ConceptTerms.json: concept -> terms, matched by name")
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
    """AUROC of every concept and artifact by its words alone, with random words as a control."""
    from .annotation import run_annotation

    shared = BenchOptions(
        tuple(model), data, split, where, reference, draws, seed, threads, device, form, out, force
    )
    return run_annotation(shared, terms=terms, templates=templates)
