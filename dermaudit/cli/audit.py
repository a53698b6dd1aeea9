"""`audit` and `demo`: lists of verbs over the table, so that the ground floor imports no stage."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.console import say, table
from dermaudit.run.directory import open_run

from .commands import load, load_function

DEMO_IMAGES = 2000
DEMO_SEED = 1000


def audit(
    data: Annotated[Path, typer.Argument(help="a data set, a manifest, or a folder of images")],
    model: Annotated[str, typer.Option(help="model name (dermaudit models)")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="folder of the run (default: runs/<name of the data>)"),
    ] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(
            "--concept", help="suppress these (default: every artifact that is labelled or named)"
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="the label whose prediction is audited")] = "mel",
    where: Annotated[
        str | None, typer.Option(help="SQL condition on the manifest's columns")
    ] = None,
    vocabulary: Annotated[str, typer.Option()] = "dermoscopy",
    strict: Annotated[bool, typer.Option(help="a bad image is fatal")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="of the SAEs, e.g. 0,1,2: also how stable each latent is (default: --seed alone)"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
    force: Annotated[bool, typer.Option(help="make every stage again")] = False,
    dry_run: Annotated[bool, typer.Option(help="say what would be done")] = False,
) -> dict[str, Any]:
    """The whole chain: embed, fit, annotate, name, heads, compare, suppress each artifact, report."""
    run = run or Path("runs") / (data.stem if data.suffix else data.resolve().name)
    if dry_run:
        return {
            "run": str(run),
            "model": model,
            "stages": [
                "embed",
                "fit",
                "annotate",
                "name",
                "heads",
                "compare",
                "recipe make",
                "report",
            ],
        }
    result = _audit(
        data,
        model,
        run,
        concept,
        target,
        where,
        vocabulary,
        strict,
        seed,
        seeds,
        threads,
        force,
        time.monotonic(),
        {},
    )
    _print(result)
    return result


def demo(
    run: Annotated[Path, typer.Option("--run", help="folder of the run")] = Path("runs/demo"),
    n: Annotated[int, typer.Option(help="phantoms to render", min=400)] = DEMO_IMAGES,
    model: Annotated[str, typer.Option(help="model name")] = "phantom-vit",
    seed: Annotated[
        int, typer.Option(help="of the phantoms (1000 and up) and of every choice", min=1000)
    ] = DEMO_SEED,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="of the SAEs, e.g. 0,1,2: also how stable each latent is (default: --seed alone)"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
    force: Annotated[bool, typer.Option(help="make every stage again")] = False,
) -> dict[str, Any]:
    """Render phantoms, audit the shipped model on them, suppress each artifact, write the report."""
    started = time.monotonic()
    data = run.parent / f"{run.name}-data"
    table_file = Path(__file__).parent / "demo_bias.toml"
    seconds = {}
    if not _is_rendered(data, n, seed):
        load("data phantom")(out=data, n=n, seed=seed, bias_table=table_file, force=True)
        seconds["phantoms"] = round(time.monotonic() - started, 2)
    result = _audit(
        data,
        model,
        run,
        None,
        "mel",
        None,
        "dermoscopy",
        False,
        seed,
        seeds,
        threads,
        force,
        started,
        seconds,
    )
    _print(result)
    say(f"\nopen the explorer: dermaudit explore --run {run}")
    return result


def _is_rendered(data: Path, n: int, seed: int) -> bool:
    from dermaudit.files import read_json

    if not (data / "manifest.parquet").is_file() or not (data / "data.json").is_file():
        return False
    known = read_json(data / "data.json")
    return known.get("n_images") == n and known.get("phantom_seed") == seed


def _audit(
    data: Path,
    model: str,
    run: Path,
    concept: list[str] | None,
    target: str,
    where: str | None,
    vocabulary: str,
    strict: bool,
    seed: int,
    seeds: str | None,
    threads: int,
    force: bool,
    started: float,
    seconds: dict[str, float],
) -> dict[str, Any]:
    common: dict[str, Any] = {"run": run, "seed": seed, "force": force}

    def timed(stage: str, verb: str, **options: Any) -> dict[str, Any]:
        say(f"{stage} …")
        at = time.monotonic()
        found = load(verb)(**options)
        seconds[stage] = round(time.monotonic() - at, 2)
        return found

    _require_enough_images(data, where, model)
    embedded = timed(
        "embed",
        "embed",
        data=data,
        model=model,
        where=where,
        strict=strict,
        threads=threads,
        **common,
    )
    # One SAE a site unless more are asked for; every figure of it: `dermaudit sae measure`.
    saes = timed("fit", "fit", threads=threads, seeds=seeds or str(seed), metrics=False, **common)[
        "sae"
    ]
    labels = timed("annotate", "annotate", **common)["labels"]
    naming = timed("name", "name", vocabulary=vocabulary, threads=threads, **common)
    timed("heads", "heads", **common)
    bottleneck = _bottleneck(timed, target, vocabulary, threads, common)
    suppression = _suppression(timed, run, concept, target, vocabulary, threads, common)
    report = timed("report", "report", run=run, force=True)
    seconds["total"] = round(time.monotonic() - started, 2)
    result = {
        "run": str(run),
        "n_images": embedded["n_images"],
        "n_skipped": embedded["n_skipped"],
        "peak_rss_gb": _peak_rss_gb(),
        "seconds": seconds,
        "sae": {
            site: {k: m[k] for k in ("d_in", "d_sae", "l0", "fvu", "dead")}
            for site, m in saes.items()
        },
        "concepts": _concepts(labels),
        "naming": _naming(naming),
        "bottleneck": bottleneck,
        "suppression": suppression,
        "report": str(report.get("report", "")),
    }
    if not labels:
        result["concepts_reason"] = "no labels: not measured"
    return result


def _require_enough_images(data: Path, where: str | None, model: str) -> None:
    """Refuse a data set that is too small for an SAE before its images are embedded; a model that is
    not known is refused first."""
    from dermaudit.data import Manifest
    from dermaudit.towers import resolve

    resolve(model)

    manifest = Manifest.load(data)
    if where:
        manifest = manifest.where(where)
    counts = {name: manifest.splits.count(name) for name in ("train", "val", "test")}
    check = load_function("dermaudit.sae.training.fit:require_enough_images")
    if manifest.n:  # `embed` says which condition left no image
        check(counts, manifest.n)


def _bottleneck(
    timed, target: str, vocabulary: str, threads: int, common: dict[str, Any]
) -> dict[str, Any]:
    found = timed(
        "compare", "compare", task=target, vocabulary=vocabulary, threads=threads, **common
    )
    kinds = ("sae", "vocabulary", "random", "probe")
    out = {"nec": found.get("nec"), "task": target, **{kind: found.get(kind) for kind in kinds}}
    if "reason" in found:
        out["reason"] = found["reason"]
    return out


def _suppression(timed, run: Path, concept, target, vocabulary, threads, common) -> dict[str, Any]:
    wanted = list(concept or _artifacts_of(run, vocabulary))
    if not wanted:
        return {}
    found = timed(
        "suppress",
        "recipe make",
        concept=wanted,
        refuse=False,
        target=target,
        vocabulary=vocabulary,
        threads=threads,
        **common,
    )["suppression"]
    keys = (
        "site",
        "latents",
        "worst_group_before",
        "worst_group_after",
        "ci",
        "clean_auroc_delta",
        "insertion_residual",
        "random_sets",
        "random_sets_beaten",
        "n",
    )
    out = {}
    for name, figures in found.items():
        row = {key: figures.get(key) for key in keys}
        for key in ("reason", "clean_auroc_delta_reason", "insertion_residual_reason"):
            if figures.get(key):
                row[key] = figures[key]
        out[name] = row
    return out


def _artifacts_of(run: Path, vocabulary: str) -> list[str]:
    """Return the artifacts to suppress. The function lies in a higher layer, so it is loaded by name."""
    opened = open_run(run)
    words = load_function("dermaudit.concepts.inputs:vocabulary_of")(opened, vocabulary)
    return load_function("dermaudit.concepts.inputs:artifacts_of")(opened, words)


def _concepts(labels: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for name, row in labels.items():
        out[name] = {
            key: row[key]
            for key in (
                "type",
                "site",
                "latent",
                "auprc",
                "probe_auprc",
                "prevalence",
                "n_pos",
                "lift_share",
            )
        }
        out[name]["auprc_ci"] = _pair(row, "auprc")
        out[name]["lift_share_ci"] = _pair(row, "lift_share")
        if row["reason"]:
            out[name]["reason"] = row["reason"]
    return out


def _pair(row: dict[str, Any], key: str) -> list[float] | None:
    return None if row[f"{key}_lo"] is None else [row[f"{key}_lo"], row[f"{key}_hi"]]


def _naming(naming: dict[str, Any]) -> dict[str, Any]:
    keys = (
        "named",
        "unnamed",
        "coverage",
        "n_judged",
        "wrong_among_named",
        "named_under_permutation",
    )
    out = {key: naming.get(key) for key in keys}
    if out["wrong_among_named"] is None:
        out["reason"] = "no name has a label to be judged by"
    return out


def _peak_rss_gb() -> float:
    """Peak resident memory of this process in GB (`make bench` measures the whole process tree)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def _print(result: dict[str, Any]) -> None:
    """The short table of what was found."""
    rows = []
    for name, figures in result["suppression"].items():
        found = result["concepts"].get(name, {})
        share = found.get("lift_share")
        before, after = figures["worst_group_before"], figures["worst_group_after"]
        rows.append(
            (
                name,
                f"{found['auprc']:.2f}" if found.get("auprc") is not None else "–",
                f"{share:.2f}" if share is not None else "–",
                f"{before:.2f} → {after:.2f}" if before is not None else "not measured",
                f"{figures['random_sets_beaten']}/{figures['random_sets']}"
                if before is not None
                else "",
                f"{figures['insertion_residual']:.2f}"
                if figures["insertion_residual"] is not None
                else "–",
                (figures.get("reason") or "")[:70],
            )
        )
    if rows:
        table(
            "what was found",
            (
                "artifact",
                "AUPRC",
                "lift share",
                "worst group",
                "random sets beaten",
                "insertion left",
                "",
            ),
            rows,
        )
    naming, n = result["naming"], result["n_images"]
    say(
        f"\n{n} images, {naming['named']} latents named and {naming['unnamed']} left unnamed; "
        f"{result['seconds']['total']:.0f} s, {result['peak_rss_gb']:.1f} GB; report: {result['report']}"
    )
    if not result["concepts"]:
        say("no labels: names and maps only, nothing else was measured")
