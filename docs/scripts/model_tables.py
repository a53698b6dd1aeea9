"""The page of the reference model: its probes and prompts beside the model before it and its frozen trunk."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from command import dermaudit
from result_text import interval, number, table

from dermaudit.bench.compare_models import KINDS

Figures = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
MODEL, FROZEN, BEFORE = "dermoscopy-small", "frozen-trunk", "before"
#: The commit that has the checkpoint that was replaced.
BEFORE_AT = "f42f443"
#: What makes the recipe keep the trunk as it is, with the pooled features of the trunk as the embedding.
KEPT_FROZEN = (
    "model.embed_dim=1280",
    'model.vision_cfg={image_size=192,timm_proj="none"}',
    "contrastive.epochs=0.02",
    "finetune.frozen=1",
    'contrastive.knowledge.encoder=""',
    "finetune.sizes=[]",
)
EIGHT = "dark_corner", "hair", "gel_border", "gel_bubble", "ruler", "ink", "patch", "label=mel"
TITLES = {
    "probes": "Probe: a logistic regression on the embedding, fitted on train images",
    "prompts": "Prompts: the words alone, which the captions of training contain",
    "synonyms": "Synonyms: other words for the same, which no training uses",
}


def model_figures(images: Path) -> Figures:
    """Compare the shipped model with the one before it and with the frozen trunk on the test images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [part for text in KEPT_FROZEN for part in ("--set", text)]
        dermaudit("pretrain", MODEL, "--data", images, "--out", folder / FROZEN, *settings)
        _before(folder)
        models = [MODEL, str(folder / FROZEN), str(folder / BEFORE)]
        command = ["models", "compare", *models, "--reference", MODEL, "--data", images, "--json"]
        found = json.loads(dermaudit(*command))
        milliseconds = milliseconds_per_image(images, [MODEL, models[2]])
    return {
        "n_test": found["n_test"],
        **{key: found[key] for key in TITLES},
        "differences": [f for f in found["figures"] if f["table"] == "difference"],
        "milliseconds": {MODEL: milliseconds[MODEL], BEFORE: milliseconds[models[2]]},
    }


def _before(folder: Path) -> None:
    """Write the checkpoint that was replaced below `folder`, out of the history of the repository."""
    inside = f"checkpoints/{MODEL}"
    command = ["git", "-C", str(ROOT), "archive", "-o", str(folder / "before.tar"), BEFORE_AT]
    subprocess.run([*command, inside], check=True)
    with tarfile.open(folder / "before.tar") as packed:
        packed.extractall(folder, filter="data")
    (folder / inside).rename(folder / BEFORE)


def milliseconds_per_image(
    images: Path, models: list[str], n: int = 256, rounds: int = 3
) -> dict[str, float]:
    """Return the milliseconds for one image, with decoding, on one thread; the models take turns, the fastest of
    `rounds` counts.
    """
    import torch

    from dermaudit.data import Manifest
    from dermaudit.towers import load_model
    from dermaudit.towers.embedding import embed_images

    torch.set_num_threads(1)
    paths = Manifest.load(images).paths()[:n]
    towers = {name: load_model(name) for name in models}
    best = dict.fromkeys(models, float("inf"))
    for _ in range(rounds):
        for name, tower in towers.items():
            started = time.monotonic()
            embed_images(tower, paths)
            best[name] = min(best[name], time.monotonic() - started)
    return {name: 1000 * seconds / n for name, seconds in best.items()}


# ---- the page


def models_page(figures: Figures) -> str:
    """Return docs/results/models.md."""
    own, before = (figures["milliseconds"][name] for name in (MODEL, BEFORE))
    parts = [
        "# The reference model",
        f"`{MODEL}` on the {figures['n_test']} test images, beside the frozen ImageNet trunk from which its training "
        f"started, and beside the checkpoint of this name that it replaced (of commit {BEFORE_AT}). The hashes of the "
        "training images, all of the train split, lie in the checkpoint. AUROC with 95 % intervals over groups; "
        "differences are paired.",
        "Written by `make results`. `dermaudit models compare dermoscopy-small OTHER --data data/dermoscopy`",
    ]
    for kind, title in TITLES.items():
        parts += [f"## {title}", _table(figures, kind), *_means(figures, kind)]
    parts += [
        "## Speed",
        f"{own:.1f} ms for an image on one thread with decoding, {own / before:.1f} times the {before:.1f} ms of the "
        "checkpoint before.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(figures: Figures, kind: str) -> str:
    # They are those of the others to the model.
    changes = {
        (f["metric"], f["model"]): {
            "value": -f["value"],
            "low": -f["high"],
            "high": -f["low"],
        }
        for f in figures["differences"]
        if f["kind"] == KINDS[kind]
    }
    lines = []
    rows = sorted(figures[kind].items(), key=lambda item: item[0] == "mean")
    for label, row in rows:
        metric = "mean AUROC" if label == "mean" else label
        cells = [_cell(row[name]["auroc"], row[name]) for name in (MODEL, FROZEN, BEFORE)]
        cells += [
            _cell(one["value"], one, sign=True)
            for one in (changes[metric, name] for name in (BEFORE, FROZEN))
        ]
        lines.append(f"| {label.replace('label=', '')} | {' | '.join(cells)} |")
    return table(
        f"| label | {MODEL} | frozen trunk | before | change from before | from the frozen trunk |",
        lines,
    )


def _cell(value: float, around: Figures, *, sign: bool = False) -> str:
    return number(value, 3, sign) + interval([around["low"], around["high"]], 3, sign)


def _means(figures: Figures, kind: str) -> list[str]:
    """Return a sentence on the mean of the seven artifacts and melanoma."""
    row = figures[kind]
    if not set(EIGHT) <= row.keys():
        return []
    means = {
        name: sum(row[label][name]["auroc"] for label in EIGHT) / len(EIGHT)
        for name in (MODEL, FROZEN, BEFORE)
    }
    return [
        f"Mean of the seven artifacts and melanoma: {means[MODEL]:.3f}; frozen trunk {means[FROZEN]:.3f}, before "
        f"{means[BEFORE]:.3f}."
    ]
