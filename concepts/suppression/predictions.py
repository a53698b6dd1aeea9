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
from dermaudit.sae import LatentSuppressor, load_sae
from dermaudit.sae.embed.embed import POOLED, activations
from dermaudit.sae.run_data import RunData

from ..vocabulary.vocabulary import Vocabulary
from .options import RecipeOptions, SuppressOptions
from .recipe import SuppressionRecipe
from .stage import recipe_run
from .suppressed_model import (
    Prediction,
    SuppressedModel,
    load_recipe,
    make_suppressor,
    pick_head,
    pick_target,
)

BATCH = 64


class SkippedImage(TypedDict):
    """An image that cannot be read."""

    image: str
    reason: str


class SuppressSummary(TypedDict):
    """What `suppress --json` returns besides `run` and `dry_run`."""

    concepts: list[str]
    latents: list[int]
    mode: str
    level: NotRequired[list[float]]  # one a latent; modes mean, clamp and scale
    gate_level: NotRequired[float]  # mode reactive
    target: str
    n_images: int
    n_fired: int  # images whose embedding changes
    n_flipped: int  # images whose decision changes
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
    head = pick_head(run, tower, options.head)
    sae = load_sae(run.files.sae(recipes[0].site))
    suppressor = make_suppressor(run, recipes, sae, options.mode, options.level)
    model = SuppressedModel(tower, head, suppressor, pick_target(head.classes, options.target))
    names, x, skipped = _embeddings(run, tower, manifest)
    prediction = model.predict_rows(x)
    summary = _summary(concepts, prediction, suppressor, model.target, skipped)
    if not options.dry_run:
        write_text(options.out, _csv(names, prediction, suppressor.latents, model.target))
        summary["out"] = str(options.out)
    _print(summary, prediction, names, options.dry_run)
    return {"run": str(run.path), "dry_run": options.dry_run, **summary}


def _recipe(
    run: Run, concept: str, tower: Any, vocabulary: Vocabulary, seed: int | None
) -> SuppressionRecipe:
    reason = run.files.suppression_reason(concept)
    if run.files.recipe(concept).is_file():
        return load_recipe(run, concept)
    if f"recipe:{concept}" in run.meta["stages"] and reason.is_file():
        known = read_json(reason)
        raise EvidenceError(
            f"{concept}: {known['reason']}",
            "nothing is suppressed without evidence; to measure again, run: "
            f"{run.remake_command(f'recipe:{concept}')}",
            known.get("numbers"),
        )
    recipe_run(run, concept, tower, vocabulary, RecipeOptions(seed=seed))
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


def _csv(names: list[str], prediction: Prediction, latents: list[int], target: str) -> str:
    classes = prediction.classes
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "image",
            *(f"p:{c}" for c in classes),
            *(f"p_after:{c}" for c in classes),
            "top1_before",
            "top1_after",
            "flipped",
            "fired",
            *(f"delta_logit:{target}:{j}" for j in latents),
        ]
    )
    before, after = prediction.top1(prediction.p_before), prediction.top1(prediction.p_after)
    for i, name in enumerate(names):
        writer.writerow(
            [
                name,
                *(f"{p:.6f}" for p in prediction.p_before[i]),
                *(f"{p:.6f}" for p in prediction.p_after[i]),
                before[i],
                after[i],
                int(prediction.flipped[i]),
                int(prediction.fired[i]),
                *(f"{d:.6f}" for d in prediction.delta_logit[i]),
            ]
        )
    return buffer.getvalue()


def _summary(
    concepts: list[str],
    prediction: Prediction,
    suppressor: LatentSuppressor,
    target: str,
    skipped: list[SkippedImage],
) -> SuppressSummary:
    column = prediction.classes.index(target)
    change = prediction.p_after[:, column] - prediction.p_before[:, column]
    fired = prediction.fired
    summary: SuppressSummary = {
        "concepts": concepts,
        "latents": suppressor.latents,
        "mode": suppressor.mode,
        "target": target,
        "n_images": len(fired),
        "n_fired": int(fired.sum()),
        "n_flipped": int(prediction.flipped.sum()),
        "mean_change": float(change[fired].mean()) if fired.any() else 0.0,
        "largest_change": float(np.abs(change).max()) if len(change) else 0.0,
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
    gate = f", score over {summary['gate_level']:.3g}" if "gate_level" in summary else ""
    say(
        f"{' + '.join(summary['concepts'])} suppressed ({summary['mode']}{gate}, latents "
        f"{summary['latents']}): {summary['n_fired']} of {summary['n_images']} embeddings "
        f"{'would change' if dry_run else 'change'}; the others stay, bit for bit. "
        f"{summary['n_flipped']} decisions {verb}; p({summary['target']}) moves by "
        f"{summary['mean_change']:+.3f} on average where the embedding does."
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
