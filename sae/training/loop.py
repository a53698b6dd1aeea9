"""Fit SAEs on stored rows: one loop, which can fit several SAEs in one pass over the data.

It has what the loop of sae-lens lacks: epochs over a seeded permutation, a dead-latent window in samples,
early stopping on held-out rows, checkpoints that continue bit by bit, and thresholds calibrated in a pass
over the data (the running estimate of sae-lens is far off in short runs of 10⁴–10⁶ samples).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from dermaudit.console import Meter, say
from dermaudit.distributed import World
from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.failpoints import hit

from ..inference.model import ThresholdSAE, TopKSAE
from ..store.loader import MEMORY, Loader, RowStatistics, RowSubset, row_statistics
from ..store.rows import EmbeddingRows
from .calibrate import calibrate, fold
from .decoder_start import DecoderStart
from .recipe import SAERecipe
from .sae_in_training import SAEInTraining
from .stack import learners
from .state import restore_state, save_state

LOG_FILE = "training.jsonl"
SAVE_EVERY = 300.0  # seconds after which a checkpoint is written between two checks


@dataclass(frozen=True)
class FittedSAE:
    """A fitted SAE in units of the rows, with the summary and the log of its training."""

    recipe: SAERecipe
    sae: ThresholdSAE | TopKSAE
    summary: dict[str, float]
    log: list[dict[str, Any]]


@dataclass(frozen=True)
class FitSession:
    """How a fit is carried out; only `dtype` (and rounding) changes the result.

    `folder` is for checkpoints and the log; None keeps none. With `resume`, the checkpoint of another fit
    is an error; otherwise the fit starts again. With `drop_bad`, rows that are not finite are left out;
    otherwise they are an error. A checkpoint must also agree on `facts`.
    """

    folder: Path | None = None
    resume: bool = False
    memory: int = MEMORY
    world: World = field(default_factory=World)
    dtype: torch.dtype = torch.float32
    drop_bad: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
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
    """Fit an SAE on rows `train` (n, d), with early stopping on `held` (m, d); return (sae, summary).

    Rows are scaled to mean norm √d in training. The scale is folded back, with decoder rows of unit
    length, so that the SAE works on the rows as they are. `seed` replaces both seeds of the recipe.
    """
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed, order_seed=seed)
    rows = EmbeddingRows.of(train)
    fitted = fit_saes(rows, held, [recipe], site=site, model_name=model_name)[0]
    return fitted.sae, fitted.summary


def fit_saes(
    rows: EmbeddingRows | RowSubset,
    held: np.ndarray,
    recipes: list[SAERecipe],
    *,
    site: str,
    model_name: str,
    session: FitSession = FitSession(),
    starts: list[DecoderStart | None] | None = None,
) -> list[FittedSAE]:
    """Fit one SAE for each recipe on rows (n, d), with early stopping on `held` (m, d), m up to some 10⁴.

    Recipes with the same batch and order seed share one pass over the rows. Each SAE is the same as if it
    were fitted alone: to the bit where a step has at most 2¹⁹ pre-activations, else up to rounding.

    Errors: UserInputError for rows that are not finite (with `drop_bad` only if none is), and for rows
    that are all equal; ForeignArtifactError for the checkpoint of another fit, with `resume`.
    """
    statistics = row_statistics(rows)
    if len(statistics.bad):
        rows = _finite_rows(rows, statistics, session, site)
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
        own = session
        if session.folder is not None and len(passes) > 1:
            own = dataclasses.replace(session, folder=session.folder / str(number))
        models = [
            SAEInTraining(
                recipes[i],
                rows,
                torch.from_numpy(held),
                statistics,
                session.world,
                session.dtype,
                starts[i] if starts is not None else None,
            )
            for i in members
        ]
        _one_pass(rows, models, site, own)
        for i, model in zip(members, models, strict=True):
            done[i] = _finish(model, rows, statistics, site, model_name)
    return [done[i] for i in range(len(recipes))]


def _finite_rows(
    rows: EmbeddingRows | RowSubset, statistics: RowStatistics, session: FitSession, site: str
) -> RowSubset:
    """Return the finite rows; the others are counted and named, or an error."""
    numbers = rows.index[statistics.bad] if isinstance(rows, RowSubset) else statistics.bad
    names = session.name_rows(numbers) if session.name_rows else _row_list(numbers)
    message = f"{len(statistics.bad)} of {rows.n} rows at {site} are not finite ({names})"
    if not session.drop_bad:
        raise UserInputError(
            message, "leave them out: --bad-rows drop, or embed these images again"
        )
    if session.world.leads:
        say(f"  {message}: left out")
    if isinstance(rows, RowSubset):
        return RowSubset(rows.rows, rows.index[statistics.good])
    return RowSubset(rows, statistics.good)


def _row_list(numbers: np.ndarray) -> str:
    return "row " + ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")


def _one_pass(
    rows: EmbeddingRows | RowSubset, models: list[SAEInTraining], site: str, session: FitSession
) -> None:
    """Train SAEs with the same batch and order seed together."""
    world, batch = session.world, models[0].batch
    loader = Loader(rows, batch, models[0].recipe.order_seed, session.memory)
    facts = _facts(rows, models, loader, site, session)
    step = _resumed(models, facts, session)
    together = learners(models)
    saved = time.monotonic()
    total = batch * max(model.steps for model in models)
    meter = Meter(f"SAE {site}", total, batch * step, unit="rows", shown=world.leads)
    with threadpool_limits(1, "blas"), meter:  # the products of a stack; torch has its own BLAS
        while not all(model.finished for model in models):
            x = loader.batch_at(step, world.share(batch))
            checked = False
            learning = [i for i, model in enumerate(models) if not model.finished]
            for learner in together:
                if not learner.finished:
                    learner.learn(x)
            for i in learning:
                entry = models[i].after_step()
                if entry is not None and session.folder is not None and world.leads:
                    _write_lines(session.folder, [_line(i, entry, models)], append=True)
                checked |= models[i].checked
            step += 1
            late = time.monotonic() - saved > SAVE_EVERY
            if session.folder is not None and world.leads and (checked or late):
                save_state(session.folder, models, facts)
                saved = time.monotonic()
            meter.advance(batch, _note(models))
            if checked:
                hit("fit")
            hit("fit-step")


def _facts(
    rows: EmbeddingRows | RowSubset,
    models: list[SAEInTraining],
    loader: Loader,
    site: str,
    session: FitSession,
) -> dict[str, Any]:
    """Return what a checkpoint must agree on to be continued."""
    facts = {
        **session.facts,
        **loader.facts(),
        "site": site,
        "dtype": str(session.dtype),
        "processes": session.world.size,
        "device": session.world.device.type,
        "threads": torch.get_num_threads(),
        "d_in": rows.d,
        "recipes": [dataclasses.asdict(model.recipe) for model in models],
    }
    return json.loads(json.dumps(facts))


def _resumed(models: list[SAEInTraining], facts: dict[str, Any], session: FitSession) -> int:
    """Restore the checkpoint, if there is one; return the next step."""
    folder = session.folder
    if folder is None:
        return 0
    restored = False
    try:
        restored = restore_state(folder, models, facts)
    except ForeignArtifactError as error:
        if session.resume:
            raise
        if session.world.leads:
            say(f"  {error.message}; the fit starts again")
    step = max(model.done for model in models)
    if session.world.leads:
        if restored:
            say(f"  continuing after step {step}")
        lines = [_line(i, entry, models) for i, one in enumerate(models) for entry in one.entries]
        _write_lines(folder, sorted(lines, key=lambda line: line["step"]))
    return step


def _line(i: int, entry: dict[str, Any], models: list[SAEInTraining]) -> dict[str, Any]:
    return entry if len(models) == 1 else {"sae": i, **entry}


def _write_lines(folder: Path, lines: list[dict[str, Any]], append: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a" if append else "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(line) + "\n" for line in lines)


def _note(models: list[SAEInTraining]) -> str:
    fvu = [model.best.fvu for model in models if model.best.weights]
    return f"held-out FVU {min(fvu):.3f}" if fvu else ""


def _finish(
    model: SAEInTraining,
    rows: EmbeddingRows | RowSubset,
    statistics: RowStatistics,
    site: str,
    model_name: str,
) -> FittedSAE:
    """Return the SAE with the best weights, folded and calibrated."""
    if not model.best.weights:
        raise UserInputError(
            f"fitting at {site} diverged: the held-out loss was never a number",
            f"choose a smaller lr than {model.recipe.lr:g}",
        )
    model.restore_best()
    recipe = model.recipe
    sae = fold(model.sae, recipe, model.scale, site, model_name)
    if recipe.has_k and isinstance(sae, ThresholdSAE):
        calibrate(sae, rows, recipe.k, torch.Generator().manual_seed(recipe.order_seed))
    summary = {
        "scale": model.scale,
        "held_fvu_training": model.best.fvu,
        "steps": model.done,
        "best_step": model.best.step,
        "n_train": rows.n,
        "n_not_finite": len(statistics.bad),
    }
    return FittedSAE(recipe, sae, summary, model.entries)
