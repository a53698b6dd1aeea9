"""The model card that a training writes next to the weights: what it is, its data, and its quality."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..recipe import TrainingRecipe

# From the freest to the strictest, as the hub spells them; what is derived takes the strictest.
_LICENCES = (
    "cc0-1.0",
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
)


def licence_of(images: Sequence[str]) -> str:
    """Return the licence of weights trained on images of these licences: Apache-2.0 where all are free of
    conditions, else the strictest of them; "other" where one is unknown or not in the list.
    """
    found = {licence.strip().lower().replace(" ", "-").replace("_", "-") for licence in images}
    found = {
        name if name.count("-") == 0 or name[-1].isdigit() else f"{name}-4.0" for name in found
    }
    if not found or not found <= set(_LICENCES):
        return "other"
    strictest = max(found, key=_LICENCES.index)
    return "apache-2.0" if strictest in _LICENCES[:3] else strictest


def card(
    recipe: TrainingRecipe,
    summary: dict[str, Any],
    licences: Sequence[str],
    figures: dict[str, Any] | None,
    start_licence: str | None = None,
) -> str:
    """Return the card: Markdown with a YAML header.

    `start_licence` is that of the weights that it started from: "" if not known, None if there were none.

    `summary` is that of build_and_train, `figures` those of probe.measure: None if nothing was measured,
    empty if no label has enough test images.
    """
    licence = licence_of([*licences, *([] if start_licence is None else [start_licence or "?"])])
    start = recipe.model.init or recipe.model.start
    teacher = recipe.contrastive.knowledge.encoder
    teacher = Path(teacher).name if Path(teacher).is_dir() else teacher  # no path of this machine
    command = ["dermaudit", "pretrain", *(summary["given"] or [recipe.name])]
    lines = [
        "---",
        f"license: {licence}",
        "library_name: open_clip",
        "tags: [dermatology, dermoscopy]",
        "---",
        f"# {Path(summary['out']).name}",
        "",
        "An image–text model of skin images, for research and for audits of the toolkit itself.",
        "Research use, not a medical device: it must not be used to decide about a person.",
        "",
        f"- Trained on {summary['n_train']} images (train split only; hashes in "
        f"`training_images.json`); image licences: {', '.join(licences) or 'unknown'}.",
        f"- Weights under {licence}, float16; load as float32."
        if licence != "other"
        else "- Weights in float16; load as float32. Their licence follows from those of the images and of "
        "what they started from, which are not all known here.",
        *([f"- Started from {start} ({start_licence or 'licence not known'})."] if start else []),
        *([f"- Its text tower was taught by {teacher}."] if teacher else []),
        f"- Recipe `{recipe.name}`, seed {recipe.seed}, {recipe.masked.epochs:g} epochs masked latent "
        f"modelling, {recipe.contrastive.epochs:g} epochs contrastive ({recipe.contrastive.loss}); "
        f"{summary['minutes']:.1f} minutes, {summary['processes']} process, {summary['threads']} threads."
        + " The text tower was not trained: this is an image tower to start from (model.vision_init)."
        * (not recipe.contrastive.epochs),
        f"- Reproduce: `{shlex.join(command)} --data DATA --out OUT`.",
        f"- Input {recipe.image_size} × {recipe.image_size} px, squashed (borders are kept).",
        "",
    ]
    return "\n".join([*lines, *_figures(figures), ""])


def _figures(figures: dict[str, Any] | None) -> list[str]:
    if figures is None:
        return ["Not measured."]
    if not figures:
        return ["No label has enough test images to measure it on."]
    return [
        "Measured on the reloaded float16 file, test split, 95 % intervals by bootstrap over groups. Probe:",
        "logistic regression on the embedding, fitted on train. Prompted: text only, but the captions of",
        "training contain these words, so it is caption-supervised.",
        "",
        "| label | n | positive | probe AUROC | prompted AUROC |",
        "|---|---|---|---|---|",
        *(
            "| {} | {} | {} | {:.3f} [{:.3f}, {:.3f}] | {:.3f} [{:.3f}, {:.3f}] |".format(
                name,
                row["n"],
                row["n_pos"],
                row["probe"],
                *row["probe_ci"],
                row["prompt"],
                *row["prompt_ci"],
            )
            for name, row in figures.items()
        ),
    ]
