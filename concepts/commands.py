"""The verbs of concepts. Input is validated before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import UserInputError
from dermaudit.sae.inference.modes import DOES, check_mode

_MODES = "; ".join(f"{mode} {does}" for mode, does in DOES.items())
RunOption = Annotated[Path, typer.Option("--run", help="folder of the run")]
ReadRun = Annotated[
    Path | None, typer.Option("--run", help="folder of the run (default: the newest)")
]
Seed = Annotated[int, typer.Option()]
Threads = Annotated[int, typer.Option(help="torch threads")]
Force = Annotated[bool, typer.Option(help="do it again")]
Level = Annotated[
    float | None, typer.Option(help="of --mode scale: the factor of the codes, e.g. 0.5", min=0)
]


def annotate(run: RunOption, seed: Seed = 0, force: Force = False) -> dict[str, Any]:
    """Latents against labels: the best latent of every known concept, and its lift share (test)."""
    from dermaudit.run.directory import open_run

    target = open_run(run)
    from .stages import annotate_run

    return annotate_run(target, seed=seed, force=force)


def name(
    run: RunOption,
    vocabulary: Annotated[
        str, typer.Option(help="a bundled vocabulary, or a TOML / JSON file")
    ] = "dermoscopy",
    seed: Seed = 0,
    threads: Threads = 1,
    force: Force = False,
) -> dict[str, Any]:
    """Name the latents whose activations a word explains better than chance; the rest stay unnamed."""
    from dermaudit.run.directory import open_run

    from .vocabulary.vocabulary import Vocabulary

    target = open_run(run)
    words = Vocabulary.load(vocabulary)
    from .naming.stage import name_run

    return name_run(target, words, _tower(target, threads), seed=seed, force=force)


def compare(
    run: RunOption,
    task: Annotated[str, typer.Option(help="the label that is predicted against the rest")] = "mel",
    nec: Annotated[int, typer.Option(help="effective concepts of every bottleneck", min=1)] = 5,
    vocabulary: Annotated[str, typer.Option()] = "dermoscopy",
    seed: Seed = 0,
    threads: Threads = 1,
    force: Force = False,
) -> dict[str, Any]:
    """Bottlenecks at equal NEC: SAE codes, the predefined vocabulary, random words; and the probe."""
    from dermaudit.run.directory import open_run

    from .vocabulary.vocabulary import Vocabulary

    target = open_run(run)
    words = Vocabulary.load(vocabulary)
    from .stages import compare_run

    return compare_run(
        target, words, _tower(target, threads), task=task, nec=nec, seed=seed, force=force
    )


def heads(run: RunOption, seed: Seed = 0, force: Force = False) -> dict[str, Any]:
    """Fit the run's linear head on its train split, measured on test."""
    from dermaudit.run.directory import open_run

    target = open_run(run)
    from .stages import fit_heads

    return fit_heads(target, seed=seed, force=force)


def recipe_make(
    run: RunOption,
    concept: Annotated[
        list[str], typer.Option("--concept", help="e.g. ruler; give it again for several")
    ],
    target: Annotated[
        str, typer.Option(help="the label whose prediction must not lean on it")
    ] = "mel",
    strength: Annotated[
        float, typer.Option(help="P(concept | target) in the trap", min=0.5, max=1.0)
    ] = 0.9,
    mode: Annotated[str, typer.Option(help=f"what becomes of a latent: {_MODES}")] = "subtract",
    level: Level = None,
    vocabulary: Annotated[str, typer.Option()] = "dermoscopy",
    seed: Seed = 0,
    threads: Threads = 1,
    force: Force = False,
    refuse: Annotated[
        bool, typer.Option("--refuse/--keep-going", help="exit 3 at a concept without evidence")
    ] = True,
) -> dict[str, Any]:
    """Choose the latents to suppress on val, measure what that does on test, write the recipe."""
    check_mode(mode, level)
    from dermaudit.run.directory import open_run

    from .vocabulary.vocabulary import Vocabulary

    opened = open_run(run)
    words = Vocabulary.load(vocabulary)
    from .stages import known_concept, recipe_run

    for word in concept:
        known_concept(opened, words, word)
    tower = _tower(opened, threads)
    found = {}
    for word in concept:
        found[word] = recipe_run(
            opened,
            known_concept(opened, words, word),
            tower,
            target=target,
            strength=strength,
            seed=seed,
            vocabulary=words,
            mode=mode,
            level=level,
            force=force,
            refuse=refuse,
        )
    return {"run": str(run), "suppression": found}


def recipe_show(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or a concept of the run")],
    run: ReadRun = None,
) -> dict[str, Any]:
    """Say what a recipe suppresses, how, and with what measured effect."""
    from dermaudit.console import say

    from .suppression.recipe import Recipe

    path = Path(recipe)
    if path.suffix != ".json":
        from dermaudit.run.directory import newest_run

        path = (run or newest_run()) / "recipes" / f"{recipe}.recipe.json"
    found = Recipe.load(path)
    body = found.body
    operation = body["operation"]
    say(f"{body['concept']}: {operation['mode']} latents {found.latents} at {found.site}")
    say(
        f"  model {body['model']['name']} ({body['model']['fingerprint'][:12]}…), recipe {found.sha256[:12]}…"
    )
    for name in ("level", "gate_level", "level_from"):
        if name in operation:
            say(f"  {name}: {operation[name]}")
    for key in (
        "worst_group_before",
        "worst_group_after",
        "ci",
        "clean_auroc_delta",
        "insertion_residual",
    ):
        say(f"  {key}: {body['effects'].get(key)}")
    for limit in body["limits"]:
        say(f"  limit: {limit}")
    return {"path": str(path), "sha256": found.sha256, "body": body}


def concepts(
    run: ReadRun = None,
    unnamed: Annotated[bool, typer.Option(help="list the unnamed latents too")] = False,
) -> dict[str, Any]:
    """List the named latents and the best latent of every labelled concept."""
    from dermaudit.console import table
    from dermaudit.run.directory import newest_run, open_run

    target = open_run(run or newest_run())
    target.require("name", "name")
    import pyarrow.parquet as pq

    rows = pq.read_table(target.file("concepts.parquet")).to_pylist()
    shown = [r for r in rows if unnamed or r["name"]]
    table(
        f"{target.path}: {sum(bool(r['name']) for r in rows)} of {len(rows)} live latents are named",
        ("site", "latent", "name", "type", "z", "q", "fires on", "label AUPRC"),
        [
            (
                r["site"],
                r["latent"],
                r["name"] or f"unnamed ({r['reason']})",
                r["type"] or "",
                f"{r['z']:.2f}" if r["z"] is not None else "",
                f"{r['q']:.3f}" if r["q"] is not None else "",
                r["n_active"],
                f"{r['label_auprc']:.2f}" if r["label_auprc"] is not None else "",
            )
            for r in shown
        ],
    )
    return {
        "run": str(target.path),
        "concepts": [{k: r[k] for k in r if k != "top_rows"} for r in shown],
    }


def suppress(
    run: ReadRun = None,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", help="e.g. ruler; give it again for several")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="a folder or data set (default: the run's own images)")
    ] = None,
    out: Annotated[Path, typer.Option(help="CSV of the predictions")] = Path("predictions.csv"),
    head: Annotated[str | None, typer.Option(help="a head of the run, or zeroshot")] = None,
    target: Annotated[
        str | None, typer.Option(help="the class whose logit changes are listed")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help=f"what becomes of a latent (default: the recipe's): {_MODES}")
    ] = None,
    level: Level = None,
    seed: Seed = 0,
    threads: Threads = 1,
    force: Annotated[bool, typer.Option(help="overwrite --out")] = False,
    dry_run: Annotated[bool, typer.Option(help="say what would change, write nothing")] = False,
) -> dict[str, Any]:
    """Predict with a concept suppressed, and say what changed."""
    from dermaudit.run.directory import newest_run, open_run

    if not concept:
        raise UserInputError(
            "--concept is missing", "for example: dermaudit suppress --concept ruler"
        )
    if mode is not None:
        check_mode(mode, level)
    elif level is not None:
        raise UserInputError(
            f"--level {level:g} needs --mode scale", "add it, or leave --level out"
        )
    if out.exists() and not (force or dry_run):
        raise UserInputError(f"{out} exists", "use --force to overwrite it, or another --out")
    opened = open_run(run or newest_run())
    from .vocabulary.vocabulary import Vocabulary

    words = Vocabulary.load()
    from .stages import known_concept

    wanted = [known_concept(opened, words, word) for word in concept]
    manifest = None
    if images is not None:
        from dermaudit.data import Manifest

        manifest = Manifest.load(images)
    from .suppression.predictions import suppress_images

    return suppress_images(
        opened,
        wanted,
        _tower(opened, threads),
        manifest,
        out,
        head=head,
        target=target,
        mode=mode,
        level=level,
        vocabulary=words,
        seed=seed,
        dry_run=dry_run,
    )


def _tower(run: Any, threads: int) -> Any:
    """The run's own model; another one under the same name is refused."""
    if not run.meta.get("model"):
        raise UserInputError(
            f"the run {run.path} has no embeddings yet", f"run: dermaudit embed … --run {run.path}"
        )
    import torch

    from dermaudit.towers import load_model

    torch.set_num_threads(threads)
    tower = load_model(run.meta["model"]["name"])
    run.check_model(tower.fingerprint)
    return tower
