"""The SAEs of a run: one per site, fitted on train rows, stopped on val, measured on test."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.console import say
from dermaudit.distributed import World, barrier, total
from dermaudit.errors import EvidenceError
from dermaudit.files import sha256_json, write_json, write_text
from dermaudit.run.directory import Run
from dermaudit.run.stages import Record

from ..evaluation.reconstruction import accumulate
from ..evaluation.stability import stability_report
from ..inference.codes import write_codes
from ..inference.model import load_sae
from ..store.loader import MEMORY, read_all
from .loop import LOG_FILE, FitSession, FittedSAE, fit_saes
from .options import FIT, SEEDS, SWEEP
from .recipe import SAERecipe, dermfm_zero
from .site_rows import OrderedActivations, SiteRows
from .sweep import name_of

ROWS_PER_LATENT = 16
HELD_ROWS = 32_768  # val rows for early stopping
STABILITY_ROWS = 32_768  # test rows on which seeds are compared
_MEMORISES = 20  # rows for each latent, below which a warning says that the SAE memorises rows

_Result = tuple[list[Path], dict[str, Any]]  # files and summary of a record


@dataclass(frozen=True)
class FitPlan:
    """What is fitted at every site.

    `overrides` are settings of the recipe; `preset` is "" or dermfm-zero. The first of `seeds` gives the
    SAE of the run; the others are fitted together as another record and show which of its latents other
    seeds find too. `grid` has the settings of each recipe of a sweep, which is fitted with every seed in
    one pass and measured on val; it does not change the SAE of the run.
    """

    seed: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    seeds: tuple[int, ...] = ()
    grid: tuple[dict[str, Any], ...] = ()
    drop_bad: bool = True
    memory: int = MEMORY
    resume: bool = False
    world: World = field(default_factory=World)

    def inputs(self, stage: str, site: str) -> dict[str, Any]:
        """Return what a record depends on, besides the activations.

        Options with their default are left out, so that records of earlier versions stay valid.
        """
        found: dict[str, Any] = {
            "seed": self.seed,
            "overrides": self.overrides,
            "site": site,
            "threads": torch.get_num_threads(),
        }
        seeds = list(self.seeds)
        if stage == "fit":
            seeds = [] if self.first == self.seed else [self.first]
        more = {
            "preset": self.preset,
            "seeds": seeds,
            "grid": list(self.grid),
            "fatal_bad_rows": not self.drop_bad,
            "memory": 0 if self.memory == MEMORY else self.memory,
            "processes": 0 if self.world.size == 1 else self.world.size,
        }
        return found | {name: value for name, value in more.items() if value}

    @property
    def first(self) -> int:
        """The seed of the SAE of the run."""
        return self.seeds[0] if self.seeds else self.seed

    def members(self, stage: str) -> list[dict[str, Any]]:
        """Return the settings of every SAE that a record (fit, seeds, sweep) fits at a site."""
        if stage == "fit":
            return [{"seed": self.first}]
        if stage == "seeds":
            return [{"seed": seed} for seed in self.seeds[1:]]
        several = len(self.seeds) > 1
        seeds = [{"seed": seed} for seed in self.seeds] or [{}]
        return [{**one, **(seed if several else {})} for one in self.grid for seed in seeds]


def site_recipe(
    tokens: int, n_train: int, overrides: dict[str, Any], preset: dict[str, Any] | None = None
) -> SAERecipe:
    """Return the recipe of a site with `tokens` rows for each image: its defaults and `overrides`.

    With few rows for each latent an SAE memorises its rows, so the default width is halved until every
    latent has ROWS_PER_LATENT of them (not below 64).
    """
    base: dict[str, Any] = (
        {"d_sae": 128, "k": 8.0, "samples": 1_000_000}
        if tokens == 1
        else {"d_sae": 512, "k": 12.0, "samples": 1_200_000}
    )
    given = {**(preset or {}), **{name: v for name, v in overrides.items() if v is not None}}
    if "d_sae" not in given:
        while base["d_sae"] > 64 and base["d_sae"] * ROWS_PER_LATENT > n_train * tokens:
            base["d_sae"] //= 2
    if "samples" in overrides and overrides["samples"] is not None:
        given["epochs"] = None
    return SAERecipe(**{**base, **given})


def memorising(n_rows: int, d_sae: int) -> str | None:
    """Return a warning if there are too few rows for each latent, else None."""
    if n_rows >= _MEMORISES * d_sae:
        return None
    ratio = (
        "fewer rows than latents: each row can have its own latent"
        if n_rows < d_sae
        else f"{n_rows / d_sae:.1f} rows for each latent"
    )
    return (
        f"{d_sae} latents are fitted on {n_rows} rows ({ratio}), so latents will represent single rows "
        "instead of concepts, and reconstruct new images worse than the training rows; use "
        f"--d-sae {max(2, n_rows // _MEMORISES)} or fewer, or embed more images or views of them"
    )


def fit_run(run: Run, splits: np.ndarray, plan: FitPlan, *, force: bool = False) -> dict[str, Any]:
    """Fit, calibrate, measure and write `sae/<site>` and `codes/<site>` for every stored site.

    Several seeds add the other SAEs and `stability`; a grid writes `sweep/<site>` only. Returns
    {site: metrics}, or {site: {"members": [metrics]}}.
    """
    sites = run.require("embed")["summary"]["sites"]

    def perform(record: Record, site: str, fit: Callable[[_SiteFit], _Result]) -> dict[str, Any]:
        if force:
            _clear(run, record.name, site)
        inputs = plan.inputs(record.name, site)
        return _with_all_processes(
            plan.world,
            lambda make: run.perform(record, inputs, make, key=site, force=force),
            lambda: fit(_SiteFit(run, site, SiteRows.open(run, site, splits), plan)),
        )

    found = {}
    for site in sites:
        if plan.grid:
            found[site] = perform(SWEEP, site, _SiteFit.sweep)
            continue
        found[site] = perform(FIT, site, _SiteFit.fit)
        if len(plan.seeds) > 1:
            stability = perform(SEEDS, site, _SiteFit.other_seeds)
            found[site] = {**found[site], "stability": stability}
    return found


def _clear(run: Run, record: str, site: str) -> None:
    """Delete the checkpoints of a record."""
    folder = run.files.training(record, site)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # it has checkpoints of other records, or does not exist
        folder.parent.rmdir()


def _with_all_processes(
    world: World,
    perform: Callable[[Callable[[], _Result]], dict[str, Any]],
    make: Callable[[], _Result],
) -> dict[str, Any]:
    """Perform a record of the run; all processes take part if the first finds that it must be made."""
    if world.size == 1:
        return perform(make)
    call = torch.ones(1, device=world.device)
    summary: dict[str, Any] = {}
    if world.leads:
        called = []

        def lead() -> _Result:
            called.append(total(call))
            return make()

        summary = perform(lead)
        if not called:
            total(0 * call)
    elif total(0 * call).item():
        make()
    barrier()
    return summary


@dataclass(frozen=True)
class _SiteFit:
    """The fits of one site: `fit`, `other_seeds` and `sweep` return the files and the summary."""

    run: Run
    site: str
    data: SiteRows
    plan: FitPlan

    def fit(self) -> _Result:
        """Fit the SAE of the run, measure it on test rows, and write its codes."""
        fitted = self._fit_all("fit")
        if not self.plan.world.leads:
            return [], {}
        sae, files = fitted[0].sae, self.run.files
        metrics = self._metrics(fitted[0], "test")
        folder = files.sae(self.site)
        paths = sae.save(folder)
        write_json(folder / "metrics.json", metrics)
        log = files.training("fit", self.site) / LOG_FILE
        write_text(folder / LOG_FILE, log.read_text(encoding="utf-8") if log.is_file() else "")
        paths += [folder / "metrics.json", folder / LOG_FILE]
        activations = OrderedActivations(self.data.rows, sae.b_dec.numpy())
        paths += write_codes(files.codes(self.site), sae, activations, self.site)
        _clear(self.run, "fit", self.site)
        return paths, metrics

    def other_seeds(self) -> _Result:
        """Fit the other seeds, and compare the SAE of the run with them on test rows."""
        fitted = self._fit_all("seeds")
        if not self.plan.world.leads:
            return [], {}
        paths = []
        for other in fitted:
            paths += other.sae.save(self.run.files.other_seed(self.site, other.recipe.seed))
        rows = read_all(self.data.split("test", STABILITY_ROWS))
        try:
            report = stability_report(
                [load_sae(self.run.files.sae(self.site)), *(one.sae for one in fitted)],
                rows[np.isfinite(rows).all(1)],
                names=[f"seed {seed}" for seed in self.plan.seeds],
            )
        except EvidenceError as error:  # an SAE without an active latent is a result, not a failure
            report = {"reason": error.message}
        path = self.run.files.stability(self.site)
        write_json(path, report)
        _clear(self.run, "seeds", self.site)
        summary = {name: value for name, value in report.items() if name != "per_latent"}
        return [*paths, path], summary

    def sweep(self) -> _Result:
        """Fit every recipe of the grid, and measure it on val, because one will be chosen by it."""
        fitted = self._fit_all("sweep")
        if not self.plan.world.leads:
            return [], {}
        paths, members = [], []
        for settings, one in zip(self.plan.members("sweep"), fitted, strict=True):
            name = name_of(settings)
            folder = self.run.files.sweep(self.site, name)
            metrics = {"name": name, **self._metrics(one, "val")}
            write_json(folder / "metrics.json", metrics)
            paths += [*one.sae.save(folder), folder / "metrics.json"]
            members.append(metrics)
        _clear(self.run, "sweep", self.site)
        return paths, {"members": members}

    def _fit_all(self, record: str) -> list[FittedSAE]:
        """Fit every SAE of a record in one pass."""
        data, plan = self.data, self.plan
        tokens = data.rows.tokens
        preset = dermfm_zero(data.rows.d) if plan.preset else {}
        base = site_recipe(tokens, data.n_train // tokens, plan.overrides, preset)
        base = dataclasses.replace(base, order_seed=plan.seed)
        recipes = [base.replaced(member) for member in plan.members(record)]
        warning = memorising(data.n_train, max(recipe.d_sae for recipe in recipes))
        if warning and plan.world.leads and record != "seeds":
            say(f"  warning: at {self.site} {warning}")
        held_rows = read_all(data.split("val", HELD_ROWS))
        session = FitSession(
            folder=self.run.files.training(record, self.site),
            resume=plan.resume,
            memory=plan.memory,
            world=plan.world,
            drop_bad=plan.drop_bad,
            name_rows=lambda numbers: data.image_names(self.run, numbers),
            facts={
                "store": sha256_json(data.store.meta["shards"]),
                "train rows": hashlib.sha256(data.index["train"].tobytes()).hexdigest(),
                "held-out rows": hashlib.sha256(held_rows.tobytes()).hexdigest(),
            },
        )
        return fit_saes(
            data.split("train"),
            held_rows,
            recipes,
            site=self.site,
            model_name=self.run.meta["model"]["name"],
            session=session,
        )

    def _metrics(self, fitted: FittedSAE, split: str) -> dict[str, Any]:
        """Return how an SAE was fitted, and its figures on a split with intervals over groups."""
        recipe, rows = fitted.recipe, self.data.split(split)
        groups = rows.rows.image_groups[rows.index // rows.rows.tokens]
        figures = accumulate(fitted.sae, rows, groups).report(seed=recipe.order_seed)
        found: dict[str, Any] = {
            "site": self.site,
            "architecture": recipe.architecture,
            "d_in": fitted.sae.d_in,
            "d_sae": fitted.sae.d_sae,
            "k": recipe.k,
            "seed": recipe.seed,
            f"n_{split}_rows": figures["fvu"]["n"],
            **{name: figures[name]["value"] for name in ("l0", "fvu", "dead", "dense")},
            **{name: round(value, 6) for name, value in fitted.summary.items()},
            "held_out": figures,
        }
        if warning := memorising(self.data.n_train, recipe.d_sae):
            found["warning"] = warning
        return found
