"""Trainings small enough to be run by one or two processes and compared: `equal_world.py FOLDER`, alone or
under torchrun, runs each FOLDER/<kind>.json and writes weights and losses into FOLDER/<kind>/."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from dermaudit.distributed import join_world
from dermaudit.pretrain.data.facts import Fact
from dermaudit.pretrain.data.source import ImagesInMemory
from dermaudit.pretrain.data.text_views import FactTexts
from dermaudit.pretrain.losses.masked import MaskedLatent
from dermaudit.pretrain.recipe import TrainingRecipe
from dermaudit.pretrain.training.loop import TrainingPlan, train
from dermaudit.pretrain.training.stages import ContrastiveStage, MaskedStage

N, SIDE, CONTEXT, VOCABULARY = 61, 32, 12, 64  # 61 images: not a multiple of anything
WORDS = {
    "ruler": ("a ruler", "ruler marks"),
    "ink": ("ink", "pen marks"),
    "network": ("pigment network",),
    "streaks": ("streaks", "radial streaks"),
}


def tokenize(texts: list[str]) -> torch.Tensor:
    """Words to ids by their letters: 1 … [text] … 2, 0 behind."""
    rows = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        ids = [3 + sum(map(ord, word)) % (VOCABULARY - 3) for word in text.split()][: CONTEXT - 2]
        row[: len(ids) + 2] = torch.tensor([1, *ids, 2])
    return rows


def make_plan(recipe: TrainingRecipe, folder: Path, world, dtype=torch.float64):
    """(plan, stages) of the tiny training; everything follows from the recipe's seed."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8))
    facts = []
    for i, (name, said) in enumerate(WORDS.items()):
        values = rng.integers(0, 2, N).astype(np.float32)
        values[rng.random(N) < 0.2] = np.nan
        facts.append(Fact(name, values, said, (f"no {name}",), "artifact" if i < 2 else "concept"))
    label = rng.integers(0, 2, N)
    for value, said, of in ((0, "nevus", "benign"), (1, "melanoma", "malignant")):
        facts.append(
            Fact(f"label={said}", (label == value).astype(np.float32), (said,), (), "label", of)
        )
    torch.manual_seed(recipe.seed)
    model = CLIP(
        16,
        {
            "image_size": SIDE,
            "patch_size": 8,
            "width": 32,
            "layers": 2,
            "head_width": 16,
            "pool_type": "avg",
        },
        {
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "width": 16,
            "heads": 2,
            "layers": 1,
            "pool_type": "eos",
            "eos_id": 2,
            "pad_id": 0,
        },
    ).to(dtype)
    model.set_grad_checkpointing(recipe.grad_checkpointing)
    if recipe.contrastive.loss == "siglip":
        model.logit_bias = torch.nn.Parameter(torch.tensor(-10.0, dtype=dtype))
    source, stages = ImagesInMemory(images), []
    if recipe.masked.epochs:
        objective = MaskedLatent(model.visual, SIDE, depth=2).to(dtype)
        stages.append(MaskedStage(recipe, model, objective, source))
    part = recipe.contrastive
    texts = FactTexts(facts, part.keep, part.deny)
    stages.append(ContrastiveStage(recipe, model, tokenize, texts, facts, source))
    identity = {"key": "equal", "processes": world.size}
    return TrainingPlan(recipe, folder, identity, world), stages


def main(folder: Path, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    with join_world() as world:
        for settings in sorted(folder.glob("*.json")):
            recipe = TrainingRecipe.model_validate(json.loads(settings.read_text()))
            out = settings.with_suffix("")
            plan, stages = make_plan(recipe, out, world, dtype)
            weights, _ = train(plan, stages)
            if world.leads:
                save_file({k: v.clone() for k, v in weights.items()}, out / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]))
