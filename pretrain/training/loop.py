"""The training loop: stage 1 (masked latent), stage 2 (contrastive); seeded, shared, resumable.

A batch is shared by the processes and cut into `accumulate` parts. Parts of a stage whose losses compare
rows are computed twice: once without gradients, for the embeddings of all parts, on which the loss and its
gradients are taken; then one by one with gradients, from there on backwards (GradCache, arXiv 2101.06983).
So all rows of a batch stay negatives of each other, whatever the memory holds.

What is random depends on the recipe's seed and the step alone (state.py): a killed run that is resumed gives
the same weights, on the CPU bit for bit at fixed threads on one process. Several processes, and batches in
parts, give those of one but for rounding where the towers have neither dropout nor batch norm: batch norm
takes its statistics over the rows that are computed at once, dropout draws independently in each process.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermaudit.console import Meter, say
from dermaudit.distributed import (
    World,
    average_buffers,
    average_gradients,
    barrier,
    n_processes,
    rank,
    total,
)
from dermaudit.errors import EvidenceError
from dermaudit.failpoints import hit
from dermaudit.files import write_text

from ..data.augment import draw_views
from ..data.source import batches
from ..recipe import TrainingRecipe
from ..tokens import statistics_kept
from .optimizer import make_optimizer
from .stages import BatchPart, Encoded, Losses, TrainingStage
from .state import STATE_FILE, Position, TrainingState, read_position, restore, save_state, seed_of

LOG_FILE = "log.jsonl"


@dataclass(frozen=True)
class TrainingPlan:
    """How stages are run: who computes, where the state is kept."""

    recipe: TrainingRecipe
    folder: Path
    identity: dict[str, Any]
    world: World
    threads: int = 1


def train(
    plan: TrainingPlan, stages: list[TrainingStage], *, resume: bool = False
) -> tuple[dict[str, Tensor], float]:
    """Run the stages in order: (the averaged weights of the last one, or its own without `weight_ema`;
    seconds of training in all).

    `plan.folder` takes `state.safetensors` and `log.jsonl`. Errors: EvidenceError with fewer images than
    one batch or a loss that is not finite; ForeignArtifactError when the state in `folder` belongs to
    another training.
    """
    recipe = plan.recipe
    for stage in stages:
        require_batch(stage.source.n, recipe)
    plan.world.share(recipe.batch // recipe.accumulate, "part of a batch")
    at = read_position(plan.folder, plan.identity) if resume else None
    if resume and at is None:
        say("  nothing was saved yet: beginning at the start")
    if at is None and plan.world.leads:
        for name in (STATE_FILE, LOG_FILE):
            (plan.folder / name).unlink(missing_ok=True)
    position = at or Position(stages[0].name)
    names = [stage.name for stage in stages]
    weights: dict[str, Tensor] = {}
    for stage in stages[names.index(at.stage) if at else 0 :]:
        for module in stage.modules.values():
            module.to(plan.world.device).train()
        optimizer = make_optimizer(
            recipe.optimizer, stage.trained, stage.lr, stage.weight_decay, recipe.eps, stage.rates
        )
        state = TrainingState(stage.modules, optimizer, Position(stage.name, 0, position.seconds))
        if recipe.weight_ema and stage is stages[-1]:
            state.average = {
                k: v.detach().clone() for k, v in stage.modules["model"].state_dict().items()
            }
        if at and at.stage == stage.name:
            restore(state, plan.folder, at)
            if plan.world.leads:
                _cut_log(plan.folder / LOG_FILE, at, names)
                say(f"  going on after step {at.step} of the {at.stage} stage")
        _run(plan, stage, state)
        position = state.position
        weights = state.average or dict(stage.modules["model"].state_dict())
    return weights, position.seconds


def require_batch(n: int, recipe: TrainingRecipe) -> None:
    """EvidenceError when there are fewer images than one batch."""
    if n < recipe.batch:
        raise EvidenceError(
            f"{n} training images are fewer than one batch of {recipe.batch}",
            "give more images, or --set batch=…",
            {"n": n, "batch": recipe.batch},
        )


def _run(plan: TrainingPlan, stage: TrainingStage, state: TrainingState) -> None:
    recipe, world = plan.recipe, plan.world
    per_epoch = stage.source.n // recipe.batch
    last = max(1, round(stage.epochs * per_epoch))
    started, first, before = time.monotonic(), state.position.step, state.position.seconds
    sums: dict[str, float] = {}
    since, failed = first, 0
    with Meter(stage.name, last * recipe.batch, first * recipe.batch, shown=world.leads) as meter:
        for step, parts, bad in _parts(plan, stage, first, last):
            for group in state.optimizer.param_groups:
                group["lr"] = stage.lr * group["rate"] * _schedule(step, last, stage.warmup)
            losses = take_step(stage, state.optimizer, parts, recipe)
            _average(state, recipe.weight_ema)
            for name, value in _means(losses, stage.name, step).items():
                sums[name] = sums.get(name, 0.0) + value
            failed += bad
            seconds = time.monotonic() - started
            state.position = Position(stage.name, step + 1, before + seconds)
            meter.advance(recipe.batch, f"loss {sums['loss'] / (step + 1 - since):.3f}")
            hit("pretrain-step")
            every = recipe.checkpoint_every
            at_mark = (step + 1) % per_epoch == 0 or step + 1 == last
            if not (at_mark or (every and (step + 1) % every == 0)):
                continue
            n_failed = int(total(torch.tensor(float(failed), device=world.device)))
            # Processes have seen other rows: what is saved is what all of them continue with.
            average_buffers(stage.modules.values())
            if world.leads:
                means = {name: value / (step + 1 - since) for name, value in sums.items()}
                _log(
                    plan.folder / LOG_FILE,
                    stage=stage.name,
                    step=step + 1,
                    epoch=(step + 1) / per_epoch,
                    images=(step + 1) * recipe.batch,
                    seconds=round(seconds, 1),
                    lr=state.optimizer.param_groups[0]["lr"],
                    images_per_s=round((step + 1 - first) * recipe.batch / seconds, 1),
                    failed=n_failed,
                    **{name: round(value, 8) for name, value in means.items()},
                )
                meter.note(_told(stage.name, step + 1, per_epoch, last, means, n_failed))
                save_state(state, plan.folder, plan.identity)
            barrier()
            sums, since, failed = {}, step + 1, 0
            hit("pretrain")


def _parts(
    plan: TrainingPlan, stage: TrainingStage, first: int, last: int
) -> Iterator[tuple[int, list[BatchPart], int]]:
    """(step, this process' parts of its batch, images that could not be read) from `first` on."""
    recipe, source = plan.recipe, stage.source
    per_epoch = source.n // recipe.batch
    # Every process computes its share of each part, so that all have parts of the same rows.
    size = recipe.batch // recipe.accumulate
    share = plan.world.share(size)
    own = [torch.arange(i * size, (i + 1) * size)[share] for i in range(recipe.accumulate)]
    mine = torch.cat(own).numpy()

    def rows() -> Iterator[Any]:
        for epoch in range(first // per_epoch, math.ceil(last / per_epoch)):
            order = source.order(seed_of(recipe.seed, stage.name, "order", epoch))
            for step in range(max(first, epoch * per_epoch), min(last, (epoch + 1) * per_epoch)):
                at = (step - epoch * per_epoch) * recipe.batch
                yield order[at : at + recipe.batch][mine]

    for step, read in zip(range(first, last), batches(source, rows(), plan.threads), strict=True):
        seed = seed_of(recipe.seed, stage.name, step)
        views = draw_views(recipe.batch, recipe.augment, torch.Generator().manual_seed(seed))
        parts, done = [], 0
        for positions in own:
            cut = slice(done, done + len(positions))
            parts.append(
                BatchPart(
                    read.rows[cut],
                    read.images[cut].to(plan.world.device),
                    {name: value[positions] for name, value in views.items()},
                    [seed * 1_000_003 + int(p) for p in positions],
                    seed,
                    step / last,
                )
            )
            done += len(positions)
        yield step, parts, read.failed


def take_step(
    stage: TrainingStage,
    optimizer: torch.optim.Optimizer,
    parts: list[BatchPart],
    recipe: TrainingRecipe,
) -> Losses:
    """One step on a batch in parts; returns its losses (this process' share of their mean)."""
    optimizer.zero_grad(set_to_none=True)
    device = parts[0].images.device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")

    def encode(i: int) -> dict[str, Tensor]:
        # Dropout and stochastic depth draw from the global generator: the same twice.
        torch.manual_seed(parts[i].step_seed + 7919 * i + 104729 * rank())
        with autocast:
            return stage.encode(parts[i])

    if len(parts) == 1:
        losses = stage.losses(encode(0), parts[0])
        losses["loss"].backward()
    elif stage.separable:
        losses = {}
        for i in range(len(parts)):
            found = stage.losses(encode(i), parts[i])
            (found["loss"] / len(parts)).backward()
            for name, value in found.items():
                losses[name] = losses.get(name, 0.0) + value.detach() / len(parts)
    else:
        losses = _through_cache(stage, parts, encode)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, stage.clip_norm)
    optimizer.step()
    stage.after()
    return losses


def _through_cache(
    stage: TrainingStage, parts: list[BatchPart], encode: Callable[[int], Encoded]
) -> Losses:
    # The second forward moves the statistics of batch norm; once is enough.
    with torch.no_grad(), statistics_kept(nn.ModuleList(stage.trained)):
        cached = [encode(i) for i in range(len(parts))]
    whole = {name: torch.cat([c[name] for c in cached]) for name in cached[0]}
    leaves = {n: v.requires_grad_() for n, v in whole.items() if n not in stage.constant}
    losses = stage.losses(whole, _joined(parts))
    losses["loss"].backward()
    done = 0
    for i, part in enumerate(parts):
        cut = slice(done, done + len(part.rows))
        encoded = encode(i)
        grads = {name: leaf.grad[cut] for name, leaf in leaves.items() if leaf.grad is not None}
        torch.autograd.backward([encoded[name] for name in grads], list(grads.values()))
        done = cut.stop
    return {name: value.detach() for name, value in losses.items()}


def _joined(parts: list[BatchPart]) -> BatchPart:
    """Return what `losses` reads of a batch in parts, which is everything but its images."""
    first = parts[0]
    return BatchPart(
        np.concatenate([p.rows for p in parts]),
        first.images,
        {},
        [],
        first.step_seed,
        first.progress,
    )


def _means(losses: Losses, stage: str, step: int) -> dict[str, float]:
    """Means over the processes. Errors: EvidenceError on all of them when the loss is not finite."""
    stacked = total(torch.stack([value.detach().double() for value in losses.values()]))
    means = dict(zip(losses, (stacked / n_processes()).tolist(), strict=True))
    if not math.isfinite(means["loss"]):
        raise EvidenceError(
            f"{stage}: the loss is not finite at step {step}",
            f"lower the learning rate (--set {stage}.lr=…) and continue with --resume",
        )
    return means


def _average(state: TrainingState, ema: float) -> None:
    if not state.average:
        return
    with torch.no_grad():
        decay = min(ema, 1 - 1 / (2 + state.position.step))
        for name, value in state.modules["model"].state_dict().items():
            if value.is_floating_point():
                state.average[name].lerp_(value, 1 - decay)
            else:
                state.average[name].copy_(value)


def _schedule(step: int, last: int, warmup: int) -> float:
    warm = min(1.0, (step + 1) / max(1, warmup))
    return warm * 0.5 * (1 + math.cos(math.pi * step / last))


def _told(name, step, per_epoch, last, means, failed) -> str:
    shown = "  ".join(f"{key} {value:.3f}" for key, value in means.items())
    bad = f"  {failed} images could not be read" if failed else ""
    return f"  {name} {step / per_epoch:.4g}/{last / per_epoch:.4g}  {shown}{bad}"


def _log(path: Path, **fields: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(fields) + "\n")


def _cut_log(path: Path, at: Position, names: list[str]) -> None:
    """Drop what a killed run logged after its last saved state: it will be done again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # a line that a kill cut in two
            continue
        place = (names.index(entry["stage"]), entry["step"])
        if place <= (names.index(at.stage), at.step):
            kept.append(line)
    write_text(path, "".join(f"{line}\n" for line in kept))
