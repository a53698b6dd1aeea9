"""The SAEs of a run: one per site, fitted on train rows, stopped on val, measured on test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.errors import EvidenceError
from dermaudit.files import write_json
from dermaudit.rundir import Run

from .codes import write_codes
from .metrics import held_out_metrics
from .store import ActivationStore
from .train import SAERecipe, fit_sae

MIN_ROWS = 64


ROWS_PER_LATENT = 16


def site_recipe(tokens: int, n_train: int, overrides: dict[str, Any]) -> SAERecipe:
    """Defaults by kind of site. With few rows to each latent an SAE memorises its rows: the width
    is halved until every latent has ROWS_PER_LATENT of them (not below 64), unless set by hand."""
    base = (
        {"d_sae": 128, "k": 8.0, "samples": 1_000_000}
        if tokens == 1
        else {"d_sae": 512, "k": 12.0, "samples": 1_200_000}
    )
    if "d_sae" not in overrides:
        while base["d_sae"] > 64 and base["d_sae"] * ROWS_PER_LATENT > n_train * tokens:
            base["d_sae"] //= 2
    return SAERecipe(
        **{**base, **{name: value for name, value in overrides.items() if value is not None}}
    )


def fit_run(
    run: Run, splits: np.ndarray, *, seed: int, overrides: dict[str, Any], force: bool = False
) -> dict[str, Any]:
    """Fit, calibrate, measure and write `sae/<site>` and `codes/<site>` for every stored site."""
    sites = run.require("embed", "embed")["summary"]["sites"]
    metrics: dict[str, Any] = {}
    for site in sites:

        def make(site: str = site) -> tuple[list[Path], dict[str, Any]]:
            return _fit_site(run, site, splits, seed, overrides)

        metrics[site] = run.stage(
            f"fit:{site}",
            {
                "seed": seed,
                "overrides": overrides,
                "site": site,
                "threads": torch.get_num_threads(),
            },
            make,
            upstream=["embed"],
            force=force,
        )
    return metrics


def _fit_site(
    run: Run, site: str, splits: np.ndarray, seed: int, overrides: dict[str, Any]
) -> tuple[list[Path], dict[str, Any]]:
    store = ActivationStore.open(run.file("embeddings", site), check=True)
    acts, rows = store.read()
    parts = {name: acts[splits[rows] == name] for name in ("train", "val", "test")}
    flat = {name: part.reshape(-1, part.shape[-1]) for name, part in parts.items()}
    if len(parts["train"]) < MIN_ROWS or not len(parts["val"]) or not len(parts["test"]):
        # An unlabelled small folder: everything it has is train, and what is held out is said.
        if len(acts) < MIN_ROWS:
            raise EvidenceError(
                f"{len(acts)} images are too few to fit an SAE at {site}",
                f"at least {MIN_ROWS} are needed; more is better",
                {"n": len(acts), "needed": MIN_ROWS},
            )
        raise EvidenceError(
            f"the split leaves {len(parts['train'])} train, {len(parts['val'])} val and "
            f"{len(parts['test'])} test images: too few to fit and to hold out",
            "give more images, or a split column",
            {name: len(part) for name, part in parts.items()},
        )
    recipe = site_recipe(store.meta["tokens"], len(parts["train"]), overrides)
    sae, summary = fit_sae(
        flat["train"],
        flat["val"][:32_768],
        recipe,
        site=site,
        model_name=run.meta["model"]["name"],
        seed=seed,
    )
    measured = held_out_metrics(sae, torch.from_numpy(np.ascontiguousarray(flat["test"])))
    metrics = {
        "site": site,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": recipe.k,
        "seed": seed,
        "n_test_rows": measured.pop("n"),
        **{k: round(v, 6) for k, v in measured.items()},
        **{k: round(v, 6) for k, v in summary.items()},
    }
    folder = run.file("sae", site)
    files = sae.save(folder)
    write_json(folder / "metrics.json", metrics)
    files += [folder / "metrics.json", *write_codes(run.file("codes", site), sae, acts, site)]
    return files, metrics
