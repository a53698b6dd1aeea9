"""The SAEs of a run: one per site, fitted on train rows, stopped on val, measured on test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.console import say
from dermaudit.distributed import World, barrier, total
from dermaudit.errors import EvidenceError
from dermaudit.files import read_json, sha256_bytes, sha256_json, write_json, write_text
from dermaudit.run.directory import Run
from dermaudit.run.stages import Record

from ..evaluation.halves import halves_report
from ..evaluation.reconstruction import accumulate
from ..evaluation.stability import stability_report
from ..inference.codes import write_codes
from ..inference.model import ThresholdSAE, load_sae
from ..store.loader import read_all
from .decoder_start import DecoderStart
from .dictionary import (
    WITHIN,
    Dictionary,
    FitRows,
    agreement_of,
    disjoint_halves,
    require_memory,
    require_rows,
    short_recipe,
)
from .loop import LOG_FILE, FitSession, FittedSAE, fit_saes
from .options import FIT, SEEDS, SWEEP
from .plan import FitPlan, memorising
from .recipe import SAERecipe
from .reference import (
    Candidate,
    ReferenceDictionary,
    candidate,
    if_better,
    use_reference,
    without_a_fit,
)
from .site_rows import OrderedActivations, SiteRows
from .sweep import name_of

STABILITY_ROWS = 32_768  # test rows on which seeds are compared
REFIT = "refit"  # the folder of the checkpoints of the last fit of a dictionary

_Result = tuple[list[Path], dict[str, Any]]  # files and summary of a record


def fit_run(run: Run, splits: np.ndarray, plan: FitPlan, *, force: bool = False) -> dict[str, Any]:
    """Fit, calibrate, measure and write `sae/<site>` and `codes/<site>` for every stored site.

    Several seeds add the other SAEs and `stability`; a grid writes `sweep/<site>` only. Returns
    {site: metrics}, or {site: {"members": [metrics]}}.
    """
    sites = run.require("embed")["summary"]["sites"]
    n_train = int((splits == "train").sum())

    def perform(record: Record, site: str, fit: Callable[[_SiteFit], _Result]) -> dict[str, Any]:
        if force:
            _clear(run, record.name, site)
        own = plan.at(site, n_train)
        reference = candidate(run, site, splits, "own" if own.grid else own.sae)
        inputs = own.inputs(record.name, site)
        if reference is not None and record is FIT:
            inputs |= reference.inputs()
        return _with_all_processes(
            plan.world,
            lambda make: run.perform(record, inputs, make, key=site, force=force),
            lambda: fit(_SiteFit(run, site, SiteRows.open(run, site, splits), own, reference)),
        )

    found = {}
    for site in sites:
        if plan.grid:
            found[site] = perform(SWEEP, site, _SiteFit.sweep)
            continue
        found[site] = perform(FIT, site, _SiteFit.fit)
        if plan.at(site, n_train).compares(site) and "reference" not in found[site]:
            stability = perform(SEEDS, site, _SiteFit.compare)
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
    reference: Candidate | None

    def fit(self) -> _Result:
        """Fit the SAE of the run, measure it on test rows, and write its codes; or take the reference dictionary."""
        reference = self.reference
        if reference is not None and (why := without_a_fit(reference, self.data)):
            return self._use(reference.dictionary, why)
        files = self.run.files
        folder = files.sae(self.site)
        paths = []
        if self.plan.consensus:
            found = self._dictionary("fit", "", FitRows.of(self.data), self._seeds, self._levels())
            if found is None:
                return [], {}
            fitted, more = found.fitted, found.summary()
        else:
            found, more = None, {}
            several = self._fit_all("fit")
            if not self.plan.world.leads:
                return [], {}
            fitted = several[0]
        if reference is not None and (why := if_better(reference, fitted, self.data)):
            return self._use(reference.dictionary, why)
        metrics = self._metrics(fitted, "test") | more
        if found is not None:
            write_json(files.consensus(self.site), found.report())
            paths.append(files.consensus(self.site))
        sae = fitted.sae
        paths += sae.save(folder)
        write_json(folder / "metrics.json", metrics)
        log = files.training("fit", self.site) / (REFIT if self.plan.consensus else "") / LOG_FILE
        write_text(folder / LOG_FILE, log.read_text(encoding="utf-8") if log.is_file() else "")
        paths += [folder / "metrics.json", folder / LOG_FILE]
        activations = OrderedActivations(self.data.rows, sae.b_dec.numpy())
        paths += write_codes(files.codes(self.site), sae, activations, self.site)
        _clear(self.run, "fit", self.site)
        return paths, metrics

    def _use(self, reference: ReferenceDictionary, why: str) -> _Result:
        """Take the reference dictionary instead of an SAE of the images."""
        if not self.plan.world.leads:
            return [], {}
        _clear(self.run, "fit", self.site)
        return use_reference(self.run, self.data, reference, why, seed=self.plan.seed)

    def compare(self) -> _Result:
        """Compare the SAE of the run with those of other seeds, or its dictionary with those of two halves."""
        return self._halves() if self.plan.consensus else self._other_seeds()

    def _halves(self) -> _Result:
        """Make two dictionaries of disjoint halves of the groups with disjoint seeds, and compare them with
        each other and with that of the run, on test rows.
        """
        files, seeds = self.run.files, self._seeds
        halves = disjoint_halves(self.data, self.plan.seed)
        own_k = float(read_json(files.sae_metrics(self.site))["k"])
        made, paths = [], []
        for number, rows in enumerate(halves, 1):
            # Seeds that neither the run nor the other half uses.
            others = tuple(seed + number * (max(seeds) + 1) for seed in seeds)
            found = self._dictionary("seeds", f"half-{number}", rows, others, [own_k])
            if found is not None:
                made.append(found)
                found.sae.metadata["halves_of_seed"] = self.plan.seed
                paths += found.fitted.sae.save(files.half(self.site, number))
        if not self.plan.world.leads:
            return [], {}
        test = self.data.split("test", STABILITY_ROWS)
        images = test.rows.image_rows[test.index // test.rows.tokens]
        rows = read_all(test)
        finite = np.isfinite(rows).all(1)
        try:
            report = halves_report(
                ThresholdSAE.load(files.sae(self.site)),
                [one.sae for one in made],
                rows[finite],
                images[finite],
            )
        except EvidenceError as error:  # without a direction that several fits find
            report = {"reason": error.message}
        return self._with_stability(paths, report)

    @property
    def _seeds(self) -> tuple[int, ...]:
        """The seeds of a consensus at this site."""
        return self.plan.seeds if self.data.rows.tokens == 1 else self.plan.token_seeds

    def _dictionary(
        self, record: str, part: str, rows: FitRows, seeds: tuple[int, ...], levels: list[float]
    ) -> Dictionary | None:
        """Fit all seeds at every level of k in one pass, and an SAE that begins at what those of one level agree
        on: of the most directions; None in a process that does not lead.
        """
        recipe = self._recipe()
        require_rows(recipe, rows.train.n, self.site)
        require_memory(recipe, self.data.rows.d, len(seeds) * len(levels))
        tokens = self.data.rows.tokens
        shorter = short_recipe(recipe, tokens)

        def fit(levels: list[float], seeds: tuple[int, ...], part: str) -> list[FittedSAE]:
            members = [shorter.replaced({"k": k, "seed": seed}) for k in levels for seed in seeds]
            return self._fit(record, rows, members, part=part)

        # Half of the seeds choose k, and the others are fitted at it alone.
        pilots = seeds if len(levels) == 1 else seeds[: max(2, len(seeds) // 2)]
        fits = fit(levels, pilots, f"{part}/levels")
        of_level = {k: fits[i * len(pilots) : (i + 1) * len(pilots)] for i, k in enumerate(levels)}
        counts = {k: len(agreement_of(own, tokens)) for k, own in of_level.items()}
        k = max(levels, key=lambda level: counts[level])
        rest = seeds[len(pilots) :]
        chosen = of_level[k] + (fit([k], rest, f"{part}/rest") if rest else [])
        agreed = agreement_of(chosen, tokens)
        start = DecoderStart(agreed.directions, WITHIN) if len(agreed) else None
        once = recipe.replaced({"k": k, "seed": seeds[0]})
        fitted = self._fit(record, rows, [once], part=f"{part}/{REFIT}", starts=[start])[0]
        if not self.plan.world.leads:
            return None
        if start is None:
            say(
                f"  warning: at {self.site} the {len(seeds)} fits agree on no direction: the SAE is that of one "
                "fit; more images are needed"
            )
        return Dictionary.of(fitted, counts, agreed, seeds, tokens)

    def _levels(self) -> list[float]:
        """Return the values of k of which one is chosen: half of the default too, at a site with one row for each
        image, unless a k was given.
        """
        k = self._recipe().k
        chosen = (
            self.data.rows.tokens == 1 and "k" not in self.plan.overrides and not self.plan.preset
        )
        return [k / 2, k] if chosen else [k]

    def _other_seeds(self) -> _Result:
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
        return self._with_stability(paths, report)

    def _with_stability(self, paths: list[Path], report: dict[str, Any]) -> _Result:
        """Write a comparison with other SAEs, whose files are `paths`."""
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
        return paths, {"members": members, **self._agreement_of_sweep(fitted, members)}

    def _agreement_of_sweep(
        self, fitted: list[FittedSAE], members: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Return {"agreement": a record for each recipe of the grid}: how many directions its seeds agree on, with
        the mean of their figures on val; {} with fewer than two seeds.
        """
        n = len(self.plan.seeds)
        if n < 2:
            return {}
        found = []
        for i, settings in enumerate(self.plan.grid):
            span = slice(i * n, (i + 1) * n)
            agreed = agreement_of(fitted[span], self.data.rows.tokens)
            means = {
                key: float(np.mean([one[key] for one in members[span]])) for key in ("fvu", "l0")
            }
            own = float(agreed.agreement.mean()) if len(agreed) else None
            found.append(
                {"name": name_of(settings), "latents": len(agreed), "agreement": own, **means}
            )
        return {"agreement": found}

    def _fit_all(self, record: str) -> list[FittedSAE]:
        """Fit every SAE of a record in one pass."""
        base = self._recipe()
        recipes = [base.replaced(member) for member in self.plan.members(record)]
        return self._fit(record, FitRows.of(self.data), recipes)

    def _recipe(self) -> SAERecipe:
        """Return the recipe of the site."""
        tokens = self.data.rows.tokens
        return self.plan.recipe(tokens, self.data.n_train // tokens, self.data.rows.d)

    def _fit(
        self,
        record: str,
        rows: FitRows,
        recipes: list[SAERecipe],
        *,
        part: str = "",
        starts: list[DecoderStart | None] | None = None,
    ) -> list[FittedSAE]:
        """Fit SAEs in one pass, with checkpoints in the folder of a record, or a part of it."""
        data, plan = self.data, self.plan
        warning = memorising(rows.train.n, max(recipe.d_sae for recipe in recipes))
        if (
            warning
            and plan.world.leads
            and record != "seeds"
            and not part.endswith((REFIT, "rest"))
        ):
            say(f"  warning: at {self.site} {warning}")
        begin = [None if one is None else one.sha256() for one in starts or []]
        session = FitSession(
            folder=self.run.files.training(record, self.site) / part.lstrip("/"),
            resume=plan.resume,
            memory=plan.memory,
            world=plan.world,
            drop_bad=plan.drop_bad,
            name_rows=lambda numbers: data.image_names(self.run, numbers),
            facts={
                "store": sha256_json(data.store.meta["shards"]),
                "train rows": sha256_bytes(rows.train.index.tobytes()),
                "held-out rows": sha256_bytes(rows.held.tobytes()),
                **({"starts": begin} if begin else {}),
            },
        )
        return fit_saes(
            rows.train,
            rows.held,
            recipes,
            site=self.site,
            model_name=self.run.meta["model"]["name"],
            session=session,
            starts=starts,
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
