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
from ..store.activation_store import ActivationStore
from ..store.loader import MEMORY, RowSubset, read_all
from ..store.rows import EmbeddingRows
from .loop import LOG_FILE, FitSession, FittedSAE, fit_saes
from .options import FIT, SEEDS, SWEEP
from .recipe import SAERecipe, dermfm_zero
from .sweep import name_of

MIN_ROWS = 64
ROWS_PER_LATENT = 16
HELD_ROWS = 32_768  # of val that early stopping looks at
_RELEASED = 65_536  # rows after whose reading mapped memory is given back
STABILITY_ROWS = 32_768  # of test on which seeds are compared
_MEMORISES = 20  # rows a latent below which it is said that it will memorise


@dataclass(frozen=True)
class FitPlan:
    """What is fitted at every site.

    `overrides`: settings of the recipe; `preset`: "" or dermfm-zero; `seeds`: the first one's SAE is the
    run's, the others (a stage of their own, together in one pass) say which of its latents another
    seed finds too; `grid`: settings of each recipe of a sweep, which is measured on val, fitted with
    every seed in one pass, and leaves the run's SAE alone.
    """

    seed: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    seeds: tuple[int, ...] = ()
    grid: tuple[dict[str, Any], ...] = ()
    drop_bad: bool = True
    memory: int = MEMORY
    resume: bool = False
    world: World = World()

    def inputs(self, stage: str, site: str) -> dict[str, Any]:
        """What a stage stands on, besides the activations. What is not set is not named, so that a
        fit of an earlier version with the same words is still the same."""
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
        """The seed of the run's own SAE."""
        return self.seeds[0] if self.seeds else self.seed

    def members(self, stage: str) -> list[dict[str, Any]]:
        """Settings of every SAE that a stage (fit, seeds, sweep) fits at a site."""
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
    """Defaults by kind of site. With few rows to each latent an SAE memorises its rows: the width
    is halved until every latent has ROWS_PER_LATENT of them (not below 64), unless set by hand."""
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
    """What will go wrong with so few rows to each latent; None when they are enough."""
    if n_rows >= _MEMORISES * d_sae:
        return None
    share = (
        "fewer rows than latents: each row can have a latent of its own"
        if n_rows < d_sae
        else f"{n_rows / d_sae:.1f} rows to a latent"
    )
    return (
        f"{d_sae} latents are fitted on {n_rows} rows ({share}), so latents will stand for single rows "
        "instead of for concepts, and reconstruct new images worse than the training rows; take "
        f"--d-sae {max(2, n_rows // _MEMORISES)} or fewer, or embed more images or views of them"
    )


def fit_run(run: Run, splits: np.ndarray, plan: FitPlan, *, force: bool = False) -> dict[str, Any]:
    """Fit, calibrate, measure and write `sae/<site>` and `codes/<site>` for every stored site, and with
    several seeds the others and `stability`; with a grid `sweep/<site>` alone. Returns {site: metrics},
    or {site: {"members": [metrics]}}."""
    sites = run.require("embed")["summary"]["sites"]

    def stage(record: Record, site: str, make: _Make) -> dict[str, Any]:
        if force:
            _clear(run, record.name, site)
        return _together(
            plan,
            lambda made: run.perform(
                record, plan.inputs(record.name, site), made, key=site, force=force
            ),
            lambda: make(run, site, splits, plan),
        )

    found = {}
    for site in sites:
        if plan.grid:
            found[site] = stage(SWEEP, site, _sweep_site)
            continue
        found[site] = stage(FIT, site, _fit_site)
        if len(plan.seeds) > 1:
            stability = stage(SEEDS, site, _seeds_site)
            found[site] = {**found[site], "stability": stability}
    return found


_Made = tuple[list[Path], dict[str, Any]]
_Make = Callable[[Run, str, np.ndarray, FitPlan], _Made]


def _clear(run: Run, stage: str, site: str) -> None:
    work = run.files.training(stage, site)
    shutil.rmtree(work, ignore_errors=True)
    with suppress(OSError):  # there are others in it, or it never was
        work.parent.rmdir()


def _together(
    plan: FitPlan,
    perform: Callable[[Callable[[], _Made]], dict[str, Any]],
    make: Callable[[], _Made],
) -> dict[str, Any]:
    """Perform a record of the run; all processes take part if the first finds that it must be made."""
    if plan.world.size == 1:
        return perform(make)
    call = torch.ones(1, device=plan.world.device)
    summary: dict[str, Any] = {}
    if plan.world.leads:
        called = []

        def lead() -> _Made:
            called.append(total(call))
            return make()

        summary = perform(lead)
        if not called:
            total(0 * call)
    elif total(0 * call).item():
        make()
    barrier()
    return summary


def require_enough_images(n: dict[str, int], images: int, what: str = "an SAE") -> None:
    """EvidenceError unless `images`, of which `n` {"train", "val", "test"} are in each split, are
    enough to fit an SAE and to hold images out."""
    if images < MIN_ROWS:
        raise EvidenceError(
            f"{images} images are too few to fit {what}",
            f"at least {MIN_ROWS} are needed; more is better. With fewer images these work: "
            "dermaudit bench zeroshot, dermaudit embed, and dermaudit suppress --images FOLDER with "
            "the run of a larger data set",
            {"n": images, "needed": MIN_ROWS},
        )
    if n["train"] < MIN_ROWS or not n["val"] or not n["test"]:
        raise EvidenceError(
            f"the split leaves {n['train']} train, {n['val']} val and {n['test']} test images: "
            "too few to fit and to hold out",
            "give more images, or a split column",
            n,
        )


@dataclass(frozen=True)
class _Site:
    """The rows of a site by split: of images, and of rows."""

    store: ActivationStore
    rows: EmbeddingRows
    index: dict[str, np.ndarray]

    @classmethod
    def open(cls, run: Run, site: str, splits: np.ndarray) -> _Site:
        store = ActivationStore.open(run.files.embeddings(site), check=True)
        rows = store.rows()
        index = {name: rows.of_images(splits == name) for name in ("train", "val", "test")}
        n = {name: len(part) // rows.tokens for name, part in index.items()}
        require_enough_images(n, len(rows.image_rows), f"an SAE at {site}")
        return cls(store, rows, index)

    def part(self, name: str, most: int | None = None) -> RowSubset:
        """The rows of a split; of more than `most`, evenly spread ones."""
        index = self.index[name]
        if most is not None and len(index) > most:
            index = index[np.linspace(0, len(index) - 1, most).astype(np.int64)]
        return RowSubset(self.rows, index)


def _fit(run: Run, site: str, data: _Site, plan: FitPlan, stage: str) -> list[FittedSAE]:
    tokens = data.rows.tokens
    preset = dermfm_zero(data.rows.d) if plan.preset else {}
    base = site_recipe(tokens, len(data.index["train"]) // tokens, plan.overrides, preset)
    base = dataclasses.replace(base, order_seed=plan.seed)
    recipes = [base.replaced(member) for member in plan.members(stage)]
    widest = max(recipe.d_sae for recipe in recipes)
    if (
        plan.world.leads
        and stage != "seeds"
        and (warning := memorising(len(data.index["train"]), widest))
    ):
        say(f"  warning: at {site} {warning}")
    held_rows = read_all(data.part("val", HELD_ROWS))
    order = FitSession(
        folder=run.files.training(stage, site),
        resume=plan.resume,
        memory=plan.memory,
        world=plan.world,
        drop_bad=plan.drop_bad,
        name_rows=lambda numbers: _named(run, data.rows, numbers),
        facts={
            "store": sha256_json(data.store.meta["shards"]),
            "train rows": hashlib.sha256(data.index["train"].tobytes()).hexdigest(),
            "held-out rows": hashlib.sha256(held_rows.tobytes()).hexdigest(),
        },
    )
    return fit_saes(
        data.part("train"),
        held_rows,
        recipes,
        site=site,
        model_name=run.meta["model"]["name"],
        order=order,
    )


def _named(run: Run, rows: EmbeddingRows, numbers: np.ndarray) -> str:
    """The images that some rows belong to: "2 images: a, b"."""
    import pyarrow.parquet as pq

    table = pq.read_table(run.files.images)
    column = "image_id" if "image_id" in table.column_names else "image"
    images = np.unique(rows.image_rows[numbers // rows.tokens])
    names = [str(table[column][int(row)]) for row in images[:5]]
    more = ", …" if len(images) > len(names) else ""
    return f"{len(images)} image{'s' * (len(images) > 1)}: {', '.join(names)}{more}"


def _fit_site(
    run: Run, site: str, splits: np.ndarray, plan: FitPlan
) -> tuple[list[Path], dict[str, Any]]:
    data = _Site.open(run, site, splits)
    fitted = _fit(run, site, data, plan, "fit")
    if not plan.world.leads:
        return [], {}
    sae = fitted[0].sae
    metrics = _metrics(site, fitted[0], data.part("test"), "test", len(data.index["train"]))
    folder = run.files.sae(site)
    files = sae.save(folder)
    write_json(folder / "metrics.json", metrics)
    write_text(folder / LOG_FILE, _lines(run.files.training("fit", site) / LOG_FILE))
    files += [folder / "metrics.json", folder / LOG_FILE]
    files += write_codes(run.files.codes(site), sae, _Images(data.rows, sae.b_dec.numpy()), site)
    _clear(run, "fit", site)
    return files, metrics


def _seeds_site(
    run: Run, site: str, splits: np.ndarray, plan: FitPlan
) -> tuple[list[Path], dict[str, Any]]:
    """The other seeds, and how the run's SAE compares with them on test rows."""
    data = _Site.open(run, site, splits)
    fitted = _fit(run, site, data, plan, "seeds")
    if not plan.world.leads:
        return [], {}
    files = []
    for other in fitted:
        files += other.sae.save(run.files.other_seed(site, other.recipe.seed))
    rows = read_all(data.part("test", STABILITY_ROWS))
    try:
        report = stability_report(
            [load_sae(run.files.sae(site)), *(one.sae for one in fitted)],
            rows[np.isfinite(rows).all(1)],
            names=[f"seed {seed}" for seed in plan.seeds],
        )
    except (
        EvidenceError
    ) as error:  # an SAE without a latent that fires: a finding, not a failed fit
        report = {"reason": error.message}
    path = run.files.stability(site)
    write_json(path, report)
    _clear(run, "seeds", site)
    return [*files, path], {name: value for name, value in report.items() if name != "per_latent"}


def _sweep_site(
    run: Run, site: str, splits: np.ndarray, plan: FitPlan
) -> tuple[list[Path], dict[str, Any]]:
    """Every recipe of the grid, measured on val: what is chosen by it is not scored by it."""
    data = _Site.open(run, site, splits)
    fitted = _fit(run, site, data, plan, "sweep")
    if not plan.world.leads:
        return [], {}
    files, members = [], []
    for settings, one in zip(plan.members("sweep"), fitted, strict=True):
        name = name_of(settings)
        folder = run.files.sweep(site, name)
        metrics = {
            "name": name,
            **_metrics(site, one, data.part("val"), "val", len(data.index["train"])),
        }
        write_json(folder / "metrics.json", metrics)
        files += [*one.sae.save(folder), folder / "metrics.json"]
        members.append(metrics)
    _clear(run, "sweep", site)
    return files, {"members": members}


def _metrics(
    site: str, fitted: FittedSAE, rows: RowSubset, split: str, n_train: int
) -> dict[str, Any]:
    """What is kept of a fit: how it was made, and what it does on rows it has not seen, with intervals
    by bootstrap over the groups of the images (`held_out`)."""
    recipe = fitted.recipe
    groups = rows.rows.image_groups[rows.index // rows.rows.tokens]
    figures = accumulate(fitted.sae, rows, groups).report(seed=recipe.order_seed)
    found: dict[str, Any] = {
        "site": site,
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
    if warning := memorising(n_train, recipe.d_sae):
        found["warning"] = warning
    return found


def _lines(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


class _Images:
    """The activations of all images in the order of the table, read as they are asked for: what
    `write_codes` slices. A row that is not finite is given as `filler` (d,), b_dec: it says nothing."""

    def __init__(self, rows: EmbeddingRows, filler: np.ndarray) -> None:
        self.rows, self.filler = rows, filler
        self.order = np.argsort(rows.image_rows, kind="stable")
        self.taken = 0

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> np.ndarray:
        tokens = self.rows.tokens
        index = (self.order[part][:, None] * tokens + np.arange(tokens)).reshape(-1)
        rows = self.rows.take(index)
        self.taken += len(rows)
        if self.taken > _RELEASED:
            self.rows.release()
            self.taken = 0
        rows[~np.isfinite(rows).all(1)] = self.filler
        return rows if tokens == 1 else rows.reshape(-1, tokens, self.rows.d)
