"""The training loop: stage 1 (masked latent), stage 2 (contrastive), seeded and resumable.

Everything random is drawn from generators seeded by (seed, stage, epoch), so an epoch needs nothing
but the weights and the optimizer's state before it: a checkpoint is written at each epoch's end, and
a killed run that is resumed gives the same weights, bit for bit (fixed threads, one process).
"""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dermaudit.console import say
from dermaudit.errors import EvidenceError, ForeignArtifactError
from dermaudit.failpoints import hit
from dermaudit.files import sha256_json, write_safetensors

from .augment import augment
from .contrastive import AspectLoss, aspect_sentences, caption_loss
from .facts import Fact, caption
from .masked import MaskedLatent, random_cells
from .optimizer import make_optimizer
from .recipe import Recipe
from .tokens import embed_with_tokens, encode_short, patch_tokens


@dataclass
class TrainingData:
    """Train images uint8 (n, 3, s, s), their facts (values over the same n rows)."""

    images: torch.Tensor
    facts: list[Fact]


@dataclass
class State:
    """What a checkpoint holds: where training is, and every tensor it needs to go on."""

    stage: str
    epoch: int
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    average: dict[str, torch.Tensor] = field(default_factory=dict)


def train(
    recipe: Recipe,
    data: TrainingData,
    model: nn.Module,
    tokenize: Any,
    folder: Path,
    *,
    resume: bool = False,
) -> nn.Module:
    """Train `model` (an open_clip model, changed in place) by the recipe; returns it, averaged.

    `tokenize`: list of str → ids. `folder` takes `state.safetensors`, `state.json`, `log.jsonl`.
    Errors: EvidenceError with fewer images than one batch; ForeignArtifactError when the state in
    `folder` belongs to another recipe or other images.
    """
    n = len(data.images)
    if n < recipe.batch:
        raise EvidenceError(
            f"{n} training images are fewer than one batch of {recipe.batch}",
            "give more images, or --set batch=…",
            {"n": n, "batch": recipe.batch},
        )
    key = sha256_json(
        {
            "recipe": recipe.model_dump(mode="json"),
            "n": n,
            "pixels": int(data.images.sum(dtype=torch.int64)),
            "facts": {f.name: [*f.said, *f.denied, f.values.tobytes().hex()] for f in data.facts},
        }
    )
    done = _read_progress(folder, key) if resume else None
    if recipe.masked.epochs and (done is None or done["stage"] == "masked"):
        _masked(recipe, data, model, folder, key, done)
        done = None
    average = _contrastive(recipe, data, model, tokenize, folder, key, done)
    model.load_state_dict(average)
    return model.eval()


# ---- stage 1


def _masked(
    recipe: Recipe, data: TrainingData, model: nn.Module, folder: Path, key: str, done: dict | None
) -> None:
    part = recipe.masked
    torch.manual_seed(_seed(recipe, "masked-init", 0))
    normal = _normaliser(recipe)
    with torch.no_grad():
        tokens = patch_tokens(model.visual.eval(), normal(data.images[:2].float()))
    teacher, d_teacher = _teacher(part.teacher, tokens.shape[1])
    objective = MaskedLatent(model.visual, tokens.shape[2], d_teacher, teacher)
    modules = [model.visual, objective.predictor]
    optimizer = make_optimizer(recipe.optimizer, modules, part.lr, recipe.weight_decay)
    state = State("masked", 0, {"model": model, "objective": objective}, optimizer)
    if done:
        _restore(state, folder)

    def step(
        rows: torch.Tensor, generator: torch.Generator, _: random.Random
    ) -> dict[str, torch.Tensor]:
        x = normal(augment(data.images[rows], recipe.augment, generator))
        mask = random_cells(len(rows), tokens.shape[1], part.mask, generator)
        return {"loss": objective(model.visual, x, mask)}

    def after() -> None:
        objective.update(model.visual, part.ema)

    model.visual.train()
    _loop(recipe, data, state, folder, key, part.epochs, part.lr, step, after)


def _teacher(name: str, cells: int) -> tuple[nn.Module | None, int | None]:
    if name == "ema":
        return None, None
    from dermaudit.towers import load_model

    visual = load_model(name).model.visual
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    with torch.no_grad():
        tokens = patch_tokens(visual, torch.zeros(1, 3, size, size))
    if tokens.shape[1] != cells:
        raise ForeignArtifactError(
            f"the teacher {name} has {tokens.shape[1]} cells, the student {cells}",
            'choose a teacher with the student\'s grid, or teacher = "ema"',
        )
    return visual, tokens.shape[2]


# ---- stage 2


def _contrastive(
    recipe: Recipe,
    data: TrainingData,
    model: nn.Module,
    tokenize: Any,
    folder: Path,
    key: str,
    done: dict | None,
) -> dict[str, torch.Tensor]:
    part = recipe.contrastive
    torch.manual_seed(_seed(recipe, "contrastive-init", 0))
    normal, aspect, local = _normaliser(recipe), AspectLoss(), AspectLoss()
    truth = torch.from_numpy(np.stack([fact.values for fact in data.facts], 1))
    modules = {"model": model, "aspect": aspect, "local": local}
    optimizer = make_optimizer(
        recipe.optimizer, list(modules.values()), part.lr, recipe.weight_decay
    )
    state = State("contrastive", 0, modules, optimizer)
    state.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if done:
        _restore(state, folder)

    def step(
        rows: torch.Tensor, generator: torch.Generator, rng: random.Random
    ) -> dict[str, torch.Tensor]:
        x = normal(augment(data.images[rows], recipe.augment, generator))
        images, cells = (F.normalize(v, dim=-1) for v in embed_with_tokens(model.visual, x))
        captions = [caption(data.facts, int(row), rng, part.keep, part.deny) for row in rows]
        said, denied = aspect_sentences(data.facts, rng)
        texts = encode_short(model, tokenize(captions))
        # Apart from the captions: these are short, and would be padded to the longest caption.
        sides = encode_short(model, tokenize([*said, *denied])).split(len(said))
        losses = {
            "clip": caption_loss(part.loss, images, texts, model),
            "aspect": aspect(images, *sides, truth[rows]),
            "local": local(cells, *sides, truth[rows]),
        }
        weights = {
            "clip": part.clip_weight, "aspect": part.aspect_weight, "local": part.local_weight
        }
        return {"loss": sum(weights[name] * loss for name, loss in losses.items()), **losses}

    def after() -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            decay = min(recipe.weight_ema, 1 - 1 / (1 + _average_steps(state)))
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    state.average[name].lerp_(value, 1 - decay)
                else:
                    state.average[name].copy_(value)

    model.train()
    _loop(recipe, data, state, folder, key, part.epochs, part.lr, step, after)
    return state.average


def _average_steps(state: State) -> int:
    """Steps so far, from the optimizer itself, so that a resumed run counts on."""
    for values in state.optimizer.state.values():
        return int(values["step"])
    return 0


# ---- the loop both stages share


def _loop(recipe, data, state, folder, key, epochs, lr, step, after) -> None:
    n, per_epoch = len(data.images), len(data.images) // recipe.batch
    total = max(1, round(epochs * per_epoch))
    started, first = time.monotonic(), state.epoch
    for epoch in range(state.epoch, math.ceil(total / per_epoch)):
        seed = _seed(recipe, state.stage, epoch)
        torch.manual_seed(seed)  # dropout and stochastic depth draw from the global generator
        generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
        order = torch.randperm(n, generator=generator)
        sums: dict[str, float] = {}
        count = min(per_epoch, total - epoch * per_epoch)
        for i in range(count):
            at = epoch * per_epoch + i
            for group in state.optimizer.param_groups:
                group["lr"] = lr * _schedule(at, total, recipe.warmup)
            losses = step(order[i * recipe.batch : (i + 1) * recipe.batch], generator, rng)
            if not torch.isfinite(losses["loss"]):
                raise EvidenceError(
                    f"{state.stage}: the loss is not finite at epoch {epoch}, step {i}",
                    "lower the learning rate (--set contrastive.lr=…) and use --resume",
                )
            state.optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            state.optimizer.step()
            after()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        state.epoch = epoch + 1
        _save(state, folder, key)
        seconds = time.monotonic() - started
        left = seconds / (epoch + 1 - first) * (math.ceil(total / per_epoch) - epoch - 1)
        means = {name: round(value / count, 4) for name, value in sums.items()}
        _log(folder, stage=state.stage, epoch=epoch + 1, seconds=round(seconds, 1), **means)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        say(
            f"  {state.stage} {epoch + 1}/{math.ceil(total / per_epoch)}  {shown}  "
            f"{(epoch + 1 - first) * count * recipe.batch / seconds:.0f} images/s  {left / 60:.1f} min left"
        )
        hit("pretrain")


def _schedule(step: int, total: int, warmup: int) -> float:
    warm = min(1.0, (step + 1) / max(1, warmup))
    return warm * 0.5 * (1 + math.cos(math.pi * step / total))


def _normaliser(recipe: Recipe):
    mean = torch.tensor(recipe.model.mean).view(3, 1, 1) * 255
    std = torch.tensor(recipe.model.std).view(3, 1, 1) * 255
    return lambda x: (x - mean) / std


def _seed(recipe: Recipe, stage: str, epoch: int) -> int:
    return int(sha256_json([recipe.seed, stage, epoch])[:12], 16)


# ---- checkpoints of the training itself


def _tensors(state: State) -> dict[str, torch.Tensor]:
    found = {
        f"{part}.{name}": value
        for part, module in state.modules.items()
        for name, value in module.state_dict().items()
    }
    found.update({f"average.{name}": value for name, value in state.average.items()})
    order = [p for group in state.optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(order):
        for name, value in state.optimizer.state.get(parameter, {}).items():
            found[f"optimizer.{i}.{name}"] = value
    return found


def _save(state: State, folder: Path, key: str) -> None:
    # One file holds all: weights of one epoch can never stand beside the optimizer of another.
    progress = json.dumps({"stage": state.stage, "epoch": state.epoch, "key": key})
    write_safetensors(
        folder / "state.safetensors",
        {k: v.clone() for k, v in _tensors(state).items()},
        {"progress": progress},
    )


def _read_progress(folder: Path, key: str) -> dict[str, Any] | None:
    from safetensors import safe_open

    path = folder / "state.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as handle:
        progress = json.loads((handle.metadata() or {}).get("progress", "{}"))
    if progress.get("key") != key:
        raise ForeignArtifactError(
            f"{path} belongs to another recipe or other images",
            "resume with the same ones, or use --force",
        )
    return progress


def _restore(state: State, folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "state.safetensors", framework="pt") as handle:
        progress = json.loads(handle.metadata()["progress"])
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    for part, module in state.modules.items():
        prefix = f"{part}."
        module.load_state_dict(
            {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        )
    state.average = {
        k[len("average.") :]: v for k, v in tensors.items() if k.startswith("average.")
    }
    order = [p for group in state.optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(order):
        prefix = f"optimizer.{i}."
        values = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        if values:
            state.optimizer.state[parameter] = values
    state.epoch = progress["epoch"]
    say(f"  going on after epoch {state.epoch} of the {state.stage} stage")


def _log(folder: Path, **fields: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(fields) + "\n")
