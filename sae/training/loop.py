"""Fit SAEs over stored rows: one loop, several SAEs over one pass of the data if asked.

What sae-lens has no loop for is here: epochs over a seeded permutation, a dead-latent window in
samples, the early stop on held-out rows, checkpoints that go on to the bit, and thresholds calibrated
on a pass over the data (sae-lens' running estimate is far off on short runs: 10⁴–10⁶ samples).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.console import Meter, say
from dermaudit.distributed import World
from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.failpoints import hit

from ..inference.model import ThresholdSAE, TopKSAE
from ..store.loader import MEMORY, Loader, RowStatistics, RowSubset, row_statistics
from ..store.rows import EmbeddingRows
from .calibrate import calibrate, fold
from .recipe import SAERecipe
from .sae_in_training import SAEInTraining
from .state import restore_state, save_state

LOG_FILE = "training.jsonl"
SAVE_EVERY = 300.0  # seconds: a checkpoint between two checks that lie further apart


@dataclass(frozen=True)
class FittedSAE:
    """An SAE on the rows as they are, and what its training says of it."""

    recipe: SAERecipe
    sae: ThresholdSAE | TopKSAE
    summary: dict[str, float]
    log: list[dict[str, Any]]


@dataclass(frozen=True)
class FitSession:
    """How a fit is carried out; nothing here but `dtype` (and rounding) changes what is learned.

    `folder`: where checkpoints and the log are kept; None keeps none. `resume`: a checkpoint of
    another fit is an error instead of being begun anew. `drop_bad`: rows that are not finite are
    left out, instead of being an error. `facts`: what else a checkpoint must agree on.
    """

    folder: Path | None = None
    resume: bool = False
    memory: int = MEMORY
    world: World = World()
    dtype: torch.dtype = torch.float32
    drop_bad: bool = True
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    name_rows: Callable[[np.ndarray], str] | None = None


def fit_sae(
    train: np.ndarray,
    held: np.ndarray,
    recipe: SAERecipe,
    *,
    site: str,
    model_name: str,
    seed: int | None = None,
) -> tuple[ThresholdSAE | TopKSAE, dict[str, float]]:
    """Fit on rows `train` (n, d), stop early on `held` (m, d); both float.

    Rows are scaled to mean norm √d while training, and the scale is folded back, with decoder rows
    of unit length, so that the SAE returned works on the rows as they are. `seed` is for both the first
    weights and the order. Returns (sae, summary).
    """
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed, order_seed=seed)
    fitted = fit_saes(EmbeddingRows.of(train), held, [recipe], site=site, model_name=model_name)[0]
    return fitted.sae, fitted.summary


def fit_saes(
    rows: EmbeddingRows | RowSubset,
    held: np.ndarray,
    recipes: list[SAERecipe],
    *,
    site: str,
    model_name: str,
    order: FitSession = FitSession(),
) -> list[FittedSAE]:
    """Fit one SAE for each recipe; those with one batch and order seed share one pass over the rows, and
    each becomes what it would have become alone. Rows (n, d), held (m, d) float, m up to some 10⁴.

    Errors: UserInputError for rows that are not finite (with `drop_bad` only when none is), and for
    rows that are all equal; ForeignArtifactError for another fit's checkpoint, with `resume`.
    """
    found = row_statistics(rows)
    if len(found.bad):
        rows = _without(rows, found, order, site)
    held = np.ascontiguousarray(held, dtype=np.float32)
    held = held[np.isfinite(held).all(1)]
    if not len(held):
        raise UserInputError(
            f"none of the held-out rows at {site} is finite", "embed the images again"
        )
    passes: dict[tuple[int, int], list[int]] = {}
    for i, recipe in enumerate(recipes):
        passes.setdefault((recipe.batch_of(rows.n), recipe.order_seed), []).append(i)
    done: dict[int, FittedSAE] = {}
    for number, members in enumerate(passes.values()):
        own = [recipes[i] for i in members]
        below = (
            order.folder if len(passes) == 1 or order.folder is None else order.folder / str(number)
        )
        trainees = _one_pass(rows, torch.from_numpy(held), own, found, site, order, below)
        for i, trainee in zip(members, trainees, strict=True):
            done[i] = _finish(trainee, rows, found, site, model_name)
    return [done[i] for i in range(len(recipes))]


def _without(
    rows: EmbeddingRows | RowSubset, found: RowStatistics, order: FitSession, site: str
) -> RowSubset:
    """The finite rows alone; the others are counted and named."""
    numbers = rows.index[found.bad] if isinstance(rows, RowSubset) else found.bad
    named = order.name_rows(numbers) if order.name_rows else _listed(numbers)
    told = f"{len(found.bad)} of {rows.n} rows at {site} are not finite ({named})"
    if not order.drop_bad:
        raise UserInputError(told, "leave them out: --bad-rows drop, or embed these images again")
    if order.world.leads:
        say(f"  {told}: left out")
    if isinstance(rows, RowSubset):
        return RowSubset(rows.rows, rows.index[found.good])
    return RowSubset(rows, found.good)


def _listed(numbers: np.ndarray) -> str:
    return "row " + ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")


def _one_pass(
    rows: EmbeddingRows | RowSubset,
    held: torch.Tensor,
    recipes: list[SAERecipe],
    found: RowStatistics,
    site: str,
    order: FitSession,
    folder: Path | None,
) -> list[SAEInTraining]:
    """Train SAEs of one batch and order seed together."""
    world = order.world
    trainees = [SAEInTraining(recipe, rows, held, found, world, order.dtype) for recipe in recipes]
    batch = trainees[0].batch
    loader = Loader(rows, batch, recipes[0].order_seed, order.memory)
    share = world.share(batch)
    facts = {
        **order.facts,
        **loader.facts(),
        "site": site,
        "dtype": str(order.dtype),
        "processes": world.size,
        "device": world.device.type,
        "threads": torch.get_num_threads(),
        "d_in": rows.d,
        "recipes": [dataclasses.asdict(recipe) for recipe in recipes],
    }
    facts = json.loads(json.dumps(facts))
    at = _resumed(folder, trainees, facts, order)
    saved = time.monotonic()
    total = batch * max(trainee.steps for trainee in trainees)
    with Meter(f"SAE {site}", total, batch * at, unit="rows", shown=world.leads) as meter:
        while not all(trainee.finished for trainee in trainees):
            part = loader.batch_at(at, share)
            checked = False
            for i, trainee in enumerate(trainees):
                if trainee.finished:
                    continue
                trainee.learn(part)
                if (
                    (entry := trainee.after_step()) is not None
                    and folder is not None
                    and world.leads
                ):
                    _write_lines(folder, [_line(i, entry, trainees)], append=True)
                checked |= trainee.checked
            at += 1
            late = time.monotonic() - saved > SAVE_EVERY
            if folder is not None and world.leads and (checked or late):
                save_state(folder, trainees, facts)
                saved = time.monotonic()
            meter.advance(batch, _note(trainees))
            if checked:
                hit("fit")
            hit("fit-step")
    return trainees


def _resumed(
    folder: Path | None, trainees: list[SAEInTraining], facts: dict[str, Any], order: FitSession
) -> int:
    """Bring the trainees to the checkpoint, if there is one; the step to go on with."""
    if folder is None:
        return 0
    going_on = False
    try:
        going_on = restore_state(folder, trainees, facts)
    except ForeignArtifactError as error:
        if order.resume:
            raise
        if order.world.leads:
            say(f"  {error.message}; begun again")
    at = max(trainee.done for trainee in trainees)
    if order.world.leads:
        if going_on:
            say(f"  going on after step {at}")
        lines = [
            _line(i, entry, trainees) for i, one in enumerate(trainees) for entry in one.entries
        ]
        _write_lines(folder, sorted(lines, key=lambda line: line["step"]))
    return at


def _line(i: int, entry: dict[str, Any], trainees: list[SAEInTraining]) -> dict[str, Any]:
    return entry if len(trainees) == 1 else {"sae": i, **entry}


def _write_lines(folder: Path, lines: list[dict[str, Any]], append: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a" if append else "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(line) + "\n" for line in lines)


def _note(trainees: list[SAEInTraining]) -> str:
    fvu = [trainee.best.fvu for trainee in trainees if trainee.best.weights]
    return f"held-out FVU {min(fvu):.3f}" if fvu else ""


def _finish(
    trainee: SAEInTraining,
    rows: EmbeddingRows | RowSubset,
    found: RowStatistics,
    site: str,
    model_name: str,
) -> FittedSAE:
    """Back to the best weights, folded and calibrated."""
    if not trainee.best.weights:
        raise UserInputError(
            f"fitting at {site} diverged: the held-out loss was never a number",
            f"choose a smaller lr than {trainee.recipe.lr:g}",
        )
    trainee.take_best()
    recipe = trainee.recipe
    sae = fold(trainee.sae, recipe, trainee.scale, site, model_name)
    if recipe.has_k and isinstance(sae, ThresholdSAE):
        calibrate(sae, rows, recipe.k, torch.Generator().manual_seed(recipe.order_seed))
    summary = {
        "scale": trainee.scale,
        "held_fvu_training": trainee.best.fvu,
        "steps": trainee.done,
        "best_step": trainee.best.step,
        "n_train": rows.n,
        "n_not_finite": len(found.bad),
    }
    return FittedSAE(recipe, sae, summary, trainee.entries)
