"""From a recipe and a data set to a finished checkpoint folder with its card and figures."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.console import say
from dermaudit.data import Manifest, decode_all
from dermaudit.errors import EvidenceError
from dermaudit.files import sha256_file
from dermaudit.towers import build_word_tokenizer, load_model, save_local_dir

from .facts import Fact, corpus, facts_of
from .probe import measure
from .recipe import Recipe
from .trainer import TrainingData, train

# Words that a caption of these recipes never says but a user may ask for stay words, not pieces.
_KEPT_WORDS = ("skin", "lesion", "dermoscopic", "image", "no")


def build_and_train(
    recipe: Recipe, manifest: Manifest, out: Path, work: Path, *, threads: int, resume: bool
) -> dict[str, Any]:
    """Train on the train split of `manifest`, write `out`, measure the reloaded file on test."""
    torch.set_num_threads(threads)
    rows = [i for i, split in enumerate(manifest.splits) if split == "train"]
    if not rows:
        raise EvidenceError(f"{manifest.path} has no row in the train split")
    subset = manifest.take(rows)
    pixels, kept, skipped = decode_all(subset, recipe.image_size)
    facts = [
        Fact(f.name, f.values[kept], f.said, f.denied)
        for f in facts_of(subset, recipe.contrastive.columns)
        if np.nansum(f.values[kept]) > 0
    ]
    if not facts:
        raise EvidenceError(
            f"{manifest.path} says nothing about its images (no label, artifact: or concept: column)",
            "a contrastive stage needs captions: add label columns",
        )
    data = TrainingData(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), facts)
    say(f"  {len(kept)} train images, {len(skipped)} skipped, {len(facts)} facts")
    text_cfg = recipe.model.text_cfg
    tokens = build_word_tokenizer(
        _KEPT_WORDS,
        corpus(facts),
        context_length=text_cfg["context_length"],
        vocab_size=recipe.model.vocab_size,
    )
    model_cfg = {
        "embed_dim": recipe.model.embed_dim,
        "vision_cfg": recipe.model.vision_cfg,
        "text_cfg": {**text_cfg, **tokens.text_cfg()},
    }
    model, tokenize = _model(recipe, model_cfg, tokens, work)
    started = time.monotonic()
    train(recipe, data, model, tokenize, work, resume=resume)
    minutes = (time.monotonic() - started) / 60
    hashes = [sha256_file(path) for path in subset.take(kept).paths()]
    preprocess = {
        "size": recipe.image_size,
        "mean": list(recipe.model.mean),
        "std": list(recipe.model.std),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    save = {
        "model_cfg": model_cfg,
        "preprocess_cfg": preprocess,
        "tokenizer": tokens,
        "training_hashes": hashes,
    }
    save_local_dir(out, model, card="", overwrite=True, **save)
    figures = measure(load_model(f"local-dir:{out}"), manifest)
    licences = sorted({str(w) for w in manifest.column("licence", "unknown") if w})
    card = _card(recipe, len(kept), licences, minutes, threads, figures)
    save_local_dir(out, model, card=card, overwrite=True, **save)
    shutil.copy(work / "log.jsonl", out / "training_log.jsonl")
    shutil.rmtree(work, ignore_errors=True)
    n_parameters = sum(p.numel() for p in model.parameters())
    return {
        "out": str(out),
        "recipe": recipe.name,
        "seed": recipe.seed,
        "n_train": len(kept),
        "n_skipped": len(skipped),
        "minutes": round(minutes, 2),
        "threads": threads,
        "parameters": n_parameters,
        "test": figures,
    }


def _model(recipe: Recipe, model_cfg: dict[str, Any], tokens: Any, work: Path):
    """A fresh open_clip model from the recipe's seed, and its tokenizer."""
    import open_clip

    from dermaudit.files import write_text

    for name, text in tokens.files.items():
        write_text(work / "tokenizer" / name, text)
    tokenize = open_clip.tokenizer.HFTokenizer(
        str(work / "tokenizer"), context_length=tokens.context_length
    )
    torch.manual_seed(recipe.seed)
    model = open_clip.model.CLIP(**json.loads(json.dumps(model_cfg)))
    if recipe.contrastive.loss == "siglip":
        model.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
    return model, tokenize


def _card(
    recipe: Recipe,
    n: int,
    licences: list[str],
    minutes: float,
    threads: int,
    figures: dict[str, Any],
) -> str:
    # The strictest licence of the training images goes to the weights.
    non_commercial = any("NC" in licence for licence in licences)
    licence = "cc-by-nc-4.0" if non_commercial else "apache-2.0"
    lines = [
        "---",
        f"license: {licence}",
        "library_name: open_clip",
        "tags: [dermatology, dermoscopy]",
        "---",
        f"# {recipe.name}",
        "",
        "A small image–text model of dermoscopy for tests, tutorials and audits of the toolkit itself.",
        "Research use, not a medical device: it must not be used to decide about a person.",
        "",
        f"- Trained on {n} images (train split only; hashes in `training_images.json`); image licences: "
        + (", ".join(licences) or "unknown")
        + ".",
        f"- Weights under {'CC BY-NC 4.0' if non_commercial else 'Apache-2.0'}, float16; load as float32.",
        f"- Recipe `{recipe.name}`, seed {recipe.seed}, {recipe.masked.epochs:g} epochs masked latent "
        f"prediction, {recipe.contrastive.epochs:g} epochs contrastive; {minutes:.1f} minutes on {threads} threads.",
        f"- Reproduce: `dermaudit pretrain {recipe.name} --data DATA --out OUT --seed {recipe.seed} "
        f"--threads {threads}`.",
        f"- Input {recipe.image_size} × {recipe.image_size} px, squashed (borders are kept).",
        "",
        "Measured on the reloaded float16 file, test split, 95 % intervals by bootstrap over groups. Probe:",
        "logistic regression on the embedding, fitted on train. Prompted: text only, but the captions of",
        "training said these words, so it is caption-supervised.",
        "",
        "| label | n | positive | probe AUROC | prompted AUROC |",
        "|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        lines.append(
            "| {} | {} | {} | {:.3f} [{:.3f}, {:.3f}] | {:.3f} [{:.3f}, {:.3f}] |".format(
                name,
                row["n"],
                row["n_pos"],
                row["probe"],
                *row["probe_ci"],
                row["prompt"],
                *row["prompt_ci"],
            )
        )
    return "\n".join(lines) + "\n"
