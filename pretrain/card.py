"""The model card that a training writes beside its weights: what it is, from what, and how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .recipe import Recipe


def card(
    recipe: Recipe, summary: dict[str, Any], licences: list[str], figures: dict[str, Any]
) -> str:
    """Markdown with a YAML head. `summary` is build_and_train's, `figures` probe.measure's."""
    # The strictest licence of the training images goes to the weights.
    non_commercial = any("NC" in licence for licence in licences)
    threads, minutes = summary["threads"], summary["minutes"]
    lines = [
        "---",
        f"license: {'cc-by-nc-4.0' if non_commercial else 'apache-2.0'}",
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
        f"- Weights under {'CC BY-NC 4.0' if non_commercial else 'Apache-2.0'}, float16; load as "
        "float32." + (f" Started from {recipe.model.init}: its licence holds too." * bool(recipe.model.init)),
        f"- Recipe `{recipe.name}`, seed {recipe.seed}, {recipe.masked.epochs:g} epochs masked latent "
        f"modelling, {recipe.contrastive.epochs:g} epochs contrastive ({recipe.contrastive.loss}); "
        f"{minutes:.1f} minutes on {threads} threads."
        + " The text tower was not trained: this is an image tower to start from (model.vision_init)."
        * (not recipe.contrastive.epochs),
        f"- Reproduce: `dermaudit pretrain {recipe.name} --data DATA --out OUT --seed {recipe.seed} "
        f"--threads {threads}" + "".join(f" --set {text}" for text in summary["set"]) + "`.",
        f"- Input {recipe.image_size} × {recipe.image_size} px, squashed (borders are kept).",
        "",
    ]
    if not figures:
        return "\n".join([*lines, "Not measured: no test images were given (`--test`).", ""])
    lines += [
        "Measured on the reloaded float16 file, test split, 95 % intervals by bootstrap over groups. Probe:",
        "logistic regression on the embedding, fitted on train. Prompted: text only, but the captions of",
        "training said these words, so it is caption-supervised.",
        "",
        "| label | n | positive | probe AUROC | prompted AUROC |",
        "|---|---|---|---|---|",
    ]
    lines += [
        "| {} | {} | {} | {:.3f} [{:.3f}, {:.3f}] | {:.3f} [{:.3f}, {:.3f}] |".format(
            name, row["n"], row["n_pos"], row["probe"], *row["probe_ci"], row["prompt"], *row["prompt_ci"]
        )
        for name, row in figures.items()
    ]
    return "\n".join(lines) + "\n"
