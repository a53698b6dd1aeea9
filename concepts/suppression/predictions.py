"""`dermaudit suppress`: predictions before and after for a folder, a data set, or the run's images."""

from __future__ import annotations

import csv
import io
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from dermaudit.console import say, table, track
from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.failpoints import hit
from dermaudit.files import read_json, write_text
from dermaudit.run.directory import Run
from dermaudit.sae.embed.embed import POOLED, activations
from dermaudit.sae.run_data import RunData

from ..evidence.operating_points import count_flips
from ..vocabulary.vocabulary import Vocabulary
from .options import RecipeOptions, SuppressOptions
from .recipe import SuppressionRecipe, load_recipe
from .stage import recipe_run, refusal, refused_numbers
from .suppressed_model import Prediction, SuppressedModel, build

BATCH = 64


class SkippedImage(TypedDict):
    """An image that cannot be read."""

    image: str
    reason: str


class SuppressSummary(TypedDict):
    """What `suppress --json` returns besides `run` and `dry_run`."""

    concepts: list[str]
    latents: list[str]  # numbers of latents, or concepts
    mode: str
    level: NotRequired[list[float]]  # one a latent; modes mean, clamp and scale
    gate_level: NotRequired[float]  # mode reactive
    target: str
    n_images: int
    n_fired: int  # images whose embedding changes
    n_flipped: int  # images whose most probable class changes, at the unchanged operating point
    flips: dict[str, int]  # of the target at the prevalence-matched operating point, by cause
    intercept: float  # added to the logit of the target at the prevalence-matched operating point
    accepted_limits: dict[str, str]  # concepts whose recipe was written against the evidence: why
    mean_change: float  # of p(target), over the images whose embedding changes
    largest_change: float  # of p(target), absolute, over all images
    n_skipped: int
    skipped: list[SkippedImage]
    out: NotRequired[str]  # the CSV file, unless it is a dry run


def suppress_images(
    run: Run,
    concepts: list[str],
    tower: Any,
    vocabulary: Vocabulary,
    options: SuppressOptions,
    manifest: Any = None,
) -> dict[str, Any]:
    """Write `predictions.csv` (docs/formats.md) for the images of `manifest`, by default the run's.

    A recipe that the run does not have yet is made first. Raises EvidenceError (exit 3) with the
    scores if no latent supports the concept.
    """
    recipes = [_recipe(run, concept, tower, vocabulary, options.seed) for concept in concepts]
    model = build(
        run,
        recipes,
        tower,
        head=options.head,
        target=options.target or _common_target(recipes),
        mode=options.mode,
        level=options.level,
    )
    names, x, skipped = _embeddings(run, tower, manifest)
    prediction = model.predict_rows(x)
    summary = _summary(recipes, prediction, model, skipped)
    if not options.dry_run:
        write_text(options.out, _csv(names, prediction, model))
        summary["out"] = str(options.out)
    _print(summary, prediction, names, options.dry_run)
    return {"run": str(run.path), "dry_run": options.dry_run, **summary}


def _common_target(recipes: list[SuppressionRecipe]) -> str | None:
    """Return the target of the recipes; None where they have several."""
    targets = {recipe.body["target"] for recipe in recipes}
    return targets.pop() if len(targets) == 1 else None


def _recipe(
    run: Run, concept: str, tower: Any, vocabulary: Vocabulary, seed: int | None
) -> SuppressionRecipe:
    """Return the recipe of the run, made first if need be. EvidenceError where it was refused."""
    reason, effects = run.files.suppression_reason(concept), run.files.effects(concept)
    if f"recipe:{concept}" not in run.meta["stages"]:
        recipe_run(run, concept, tower, vocabulary, RecipeOptions(seed=seed))
    elif not run.files.recipe(concept).is_file():
        known = read_json(reason if reason.is_file() else effects)
        why = refusal(known) if "refused" in known else known["reason"]
        raise EvidenceError(
            f"{concept}: {why}",
            "nothing is suppressed without evidence; to write the recipe all the same, run: "
            f'{run.remake_command(f"recipe:{concept}")} --accept-limits "reason"',
            refused_numbers(known),
        )
    return load_recipe(run, concept)


@torch.no_grad()
def _embeddings(
    run: Run, tower: Any, manifest: Any
) -> tuple[list[str], np.ndarray, list[SkippedImage]]:
    """(image names, unit embeddings, skipped): the run's stored ones, or those of other images."""
    if manifest is None:
        run.require("embed")
        data = RunData(run)
        return [str(name) for name in data.images["image"].to_pylist()], data.pooled, []
    from dermaudit.data import BadImage, read_image

    names, rows, waiting = [], [], []
    skipped: list[SkippedImage] = []
    listed = list(zip(manifest.column("image"), manifest.paths(), strict=True))
    for name, path in track(listed, "images", len(listed)):
        hit("suppress")
        try:
            waiting.append(read_image(path))
            names.append(name)
        except BadImage as error:
            skipped.append({"image": name, "reason": str(error)})
        if len(waiting) == BATCH:
            rows.append(activations(tower, waiting, [POOLED])[POOLED])
            waiting = []
    if waiting:
        rows.append(activations(tower, waiting, [POOLED])[POOLED])
    if not rows:
        raise UserInputError(
            f"none of the {len(listed)} images of {manifest.path} can be read", skipped[0]["reason"]
        )
    return names, np.concatenate(rows), skipped


def _csv(names: list[str], prediction: Prediction, model: SuppressedModel) -> str:
    classes, target = prediction.classes, model.target
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "image",
            *(f"p:{c}" for c in classes),
            *(f"p_after:{c}" for c in classes),
            f"p_matched:{target}",
            "top1_before",
            "top1_after",
            "top1_matched",
            "flipped",
            "cause",
            "fired",
            *(f"delta_logit:{target}:{name}" for name in model.latent_names),
        ]
    )
    column, causes = classes.index(target), prediction.causes(target)
    tops = [
        prediction.top1(p) for p in (prediction.p_before, prediction.p_after, prediction.p_matched)
    ]
    for i, name in enumerate(names):
        writer.writerow(
            [
                name,
                *(f"{p:.6f}" for p in prediction.p_before[i]),
                *(f"{p:.6f}" for p in prediction.p_after[i]),
                f"{prediction.p_matched[i, column]:.6f}",
                *(top[i] for top in tops),
                int(prediction.flipped[i]),
                causes[i],
                int(prediction.fired[i]),
                *(f"{d:.6f}" for d in prediction.delta_logit[i]),
            ]
        )
    return buffer.getvalue()


def _summary(
    recipes: list[SuppressionRecipe],
    prediction: Prediction,
    model: SuppressedModel,
    skipped: list[SkippedImage],
) -> SuppressSummary:
    column, suppressor = prediction.classes.index(model.target), model.suppressor
    change = prediction.p_after[:, column] - prediction.p_before[:, column]
    fired = prediction.fired
    summary: SuppressSummary = {
        "concepts": [recipe.body["concept"] for recipe in recipes],
        "latents": model.latent_names,
        "mode": suppressor.mode,
        "target": model.target,
        "n_images": len(fired),
        "n_fired": int(fired.sum()),
        "n_flipped": int(prediction.flipped.sum()),
        "flips": vars(count_flips(prediction.causes(model.target))),
        "intercept": round(model.intercept, 6),
        "mean_change": float(change[fired].mean()) if fired.any() else 0.0,
        "largest_change": float(np.abs(change).max()) if len(change) else 0.0,
        "accepted_limits": {
            recipe.body["concept"]: reason
            for recipe in recipes
            if (reason := recipe.body["accepted_limits"])
        },
        "n_skipped": len(skipped),
        "skipped": skipped,
    }
    if suppressor.mode in ("mean", "clamp", "scale"):
        summary["level"] = [round(level, 6) for level in suppressor.level.tolist()]
    if suppressor.mode == "reactive":
        summary["gate_level"] = round(float(suppressor.gate_level), 6)
    return summary


def _print(
    summary: SuppressSummary, prediction: Prediction, names: list[str], dry_run: bool
) -> None:
    verb = "would change" if dry_run else "changed"
    for concept, reason in summary["accepted_limits"].items():
        say(
            f"WARNING: the recipe for {concept} was written against the evidence, because: {reason}"
        )
    gate = f", score over {summary['gate_level']:.3g}" if "gate_level" in summary else ""
    say(
        f"{' + '.join(summary['concepts'])} suppressed ({summary['mode']}{gate}, latents "
        f"{', '.join(summary['latents'])}): {summary['n_fired']} of {summary['n_images']} embeddings "
        f"{'would change' if dry_run else 'change'}; the others stay, bit for bit. "
        f"{summary['n_flipped']} decisions {verb}; p({summary['target']}) moves by "
        f"{summary['mean_change']:+.3f} on average where the embedding does."
    )
    flips = summary["flips"]
    say(
        f"At the prevalence-matched threshold ({summary['intercept']:+.3f} on the logit of "
        f"{summary['target']}) {sum(flips.values())} decisions for or against {summary['target']} "
        f"{verb}: {flips['edit']} by the edit alone, {flips['threshold']} by the moved threshold alone, "
        f"{flips['both']} by both together."
    )
    if summary["n_skipped"]:
        say(
            f"  {summary['n_skipped']} images cannot be read: "
            f"{summary['skipped'][0]['image']}: {summary['skipped'][0]['reason']}"
        )
    flipped = np.flatnonzero(prediction.flipped)[:10]
    if len(flipped):
        before, after = prediction.top1(prediction.p_before), prediction.top1(prediction.p_after)
        table(
            "decisions that flip (first 10)",
            ("image", "before", "after"),
            [(names[i], before[i], after[i]) for i in flipped],
        )
    if "out" in summary:
        say(f"written: {summary['out']}")
