"""`dermaudit recipe show | verify | sign | diff | merge | export`."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.console import say, table
from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.run.directory import newest_run, open_run

ReadRun = Annotated[
    Path | None, typer.Option("--run", help="folder of the run (default: the newest)")
]
RecipeFile = Annotated[Path, typer.Argument(help="a recipe file")]


def show(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or a concept of the run")],
    run: ReadRun = None,
) -> dict[str, Any]:
    """Show what a recipe suppresses, how, and with what measured effect."""
    from ..recipes.recipe import SuppressionRecipe, load_recipe

    path = Path(recipe)
    if path.suffix == ".json":
        shown = SuppressionRecipe.load(path)
    else:
        opened = open_run(run or newest_run())
        path, shown = opened.files.recipe(recipe), load_recipe(opened, recipe)
    shown.show()
    return {"path": str(path), "sha256": shown.sha256, "body": shown.body}


def verify(
    recipe: RecipeFile,
    key: Annotated[
        Path | None, typer.Option(help="the public key (PEM) that must have signed it")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="also: that it is of the model and SAE of this run")
    ] = None,
) -> dict[str, Any]:
    """Check that a recipe is whole, who signed it, and that it belongs to a run."""
    from ..recipes.recipe import SuppressionRecipe
    from ..recipes.signature import UNSIGNED, public_key, public_text

    found = SuppressionRecipe.load(recipe)
    found.sae()  # weights that do not fit together are refused
    envelope = found.envelope
    if key is not None:
        wanted = public_text(public_key(key))
        if envelope == UNSIGNED:
            raise ForeignArtifactError(
                f"{recipe} is not signed", "ask its author for the signed file"
            )
        if envelope["public_key"] != wanted:
            raise ForeignArtifactError(
                f"{recipe} is signed by {envelope['author']} with another key than {key}",
                "ask the author for the public key, and compare",
            )
    if run is not None:
        found.check(open_run(run), recipe)
    body = found.body
    say(f"{recipe}: whole, {found.sha256}")
    say(f"  {body['concept']}, for the model {body['model']['name']}")
    if envelope == UNSIGNED:
        say("  not signed")
    else:
        trusted = "" if key is not None else "; compare the key with the one that the author gives"
        say(
            f"  signed by {envelope['author']}, {envelope['date']}, key {envelope['public_key']}{trusted}"
        )
    return {"path": str(recipe), "sha256": found.sha256, "envelope": envelope}


def sign(
    recipe: RecipeFile,
    key: Annotated[Path, typer.Option(help="file of the private key (PEM)")],
    author: Annotated[str, typer.Option(help="who signs")],
    out: Annotated[
        Path | None, typer.Option(help="default: NAME.signed.recipe.json beside the recipe")
    ] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="make the key first")] = False,
    force: Annotated[bool, typer.Option(help="overwrite --out")] = False,
) -> dict[str, Any]:
    """Sign a recipe (Ed25519), in a copy: the recipe of a run stays the file that the run recorded."""
    from ..recipes import signature
    from ..recipes.recipe import SuppressionRecipe

    found = SuppressionRecipe.load(recipe)
    target = out or recipe.with_name(
        recipe.name.removesuffix(".json").removesuffix(".recipe") + ".signed.recipe.json"
    )
    if target.exists() and not force:
        raise UserInputError(f"{target} exists", "use --force to overwrite it, or another --out")
    if not author.strip():
        raise UserInputError("--author is empty", "say who signs")
    if new_key:
        say(f"  public key: {signature.new_key(key)}")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    envelope = signature.signed(found.sha256, author, now, signature.private_key(key))
    SuppressionRecipe(found.body, envelope).save(target)
    say(f"{target}: signed by {author}, {now}")
    return {"path": str(target), "sha256": found.sha256, "envelope": envelope}


def diff(
    first: RecipeFile,
    second: Annotated[Path, typer.Argument(help="the recipe file to compare it with")],
) -> dict[str, Any]:
    """Say what differs between two recipes."""
    from ..recipes.compare_recipes import differences
    from ..recipes.recipe import SuppressionRecipe

    found = differences(SuppressionRecipe.load(first), SuppressionRecipe.load(second))
    if found:
        rows = [(d["key"], _short(d["first"]), _short(d["second"])) for d in found]
        table(f"{first} and {second}", ("what", "first", "second"), rows)
    else:
        say(f"{first} and {second} are the same recipe")
    return {"equal": not found, "differences": found}


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 100 else text[:99] + "…"


def merge(
    recipes: Annotated[list[Path], typer.Argument(help="two or more recipe files")],
    out: Annotated[Path, typer.Option(help="the recipe file that is written")],
    force: Annotated[bool, typer.Option(help="overwrite --out")] = False,
) -> dict[str, Any]:
    """Make one recipe that suppresses what several suppress."""
    from ..recipes.recipe import SuppressionRecipe
    from .merge import merged

    if out.exists() and not force:
        raise UserInputError(f"{out} exists", "use --force to overwrite it, or another --out")
    made = merged([SuppressionRecipe.load(path) for path in recipes], recipes)
    made.save(out)
    made.show()
    return {"path": str(out), "sha256": made.sha256, "body": made.body}


def export(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option(help="folder that is written")],
    force: Annotated[bool, typer.Option(help="overwrite the files in --out")] = False,
) -> dict[str, Any]:
    """Write a recipe for programs without dermaudit: ONNX, and a reference in numpy."""
    from ..recipes import suppress_numpy
    from ..recipes.recipe import SuppressionRecipe
    from .combined import make_suppressor

    found = SuppressionRecipe.load(recipe)
    concept = found.body["concept"]
    names = (f"{concept}.onnx", f"{concept}.recipe.json", "suppress_numpy.py")
    paths = [out / name for name in names]
    if not force and (there := [path for path in paths if path.exists()]):
        raise UserInputError(f"{there[0]} exists", "use --force to overwrite it, or another --out")
    make_suppressor([found]).module.export_onnx(paths[0])
    found.save(paths[1])
    shutil.copyfile(suppress_numpy.__file__, paths[2])
    for path in paths:
        say(f"written: {path}")
    return {"files": [str(path) for path in paths], "sha256": found.sha256}
