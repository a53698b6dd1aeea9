"""Fits small enough to be run by one or two processes, killed, and compared.

`fit_world.py FOLDER DTYPE`, alone or under torchrun, fits every kind (recipes that share a pass), keeps
checkpoints in FOLDER/<kind> and writes FOLDER/<kind>-<i> (the SAE) and FOLDER/<kind>.json (log, summary).
Each process writes FOLDER/chosen-<rank>.safetensors, what it took of every batch of `batches`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sae_rows import planted
from safetensors.torch import save_file

from dermaudit.distributed import World, join_world
from dermaudit.sae.store.rows import EmbeddingRows
from dermaudit.sae.training.kernels import cpu, plain
from dermaudit.sae.training.loop import FitSession, FittedSAE, fit_saes
from dermaudit.sae.training.recipe import SAERecipe

N = 501  # rows: not a multiple of anything
#: name → (recipes of one pass, bytes of memory). 501 rows of 24: 48 kB; 20,000 bytes is in chunks.
COMMON = {
    "d_sae": 48,
    "k": 4.0,
    "batch": 64,
    "samples": 3200,
    "checks": 5,
    "lr": 3e-3,
    "dead_window": 100,
    "seed": 3,
    "order_seed": 5,
}
KINDS: dict[str, tuple[list[dict], int]] = {
    "family": (
        [
            {"architecture": "batchtopk"},
            {"architecture": "topk", "seed": 1},
            {"architecture": "matryoshka", "d_sae": 32, "k": 2.0, "patience": 1},
        ],
        20_000,
    ),
    "penalties": (
        [
            {"architecture": "jumprelu"},
            {
                "architecture": "relu_l1",
                "l1_coefficient": 8.0,
                "penalty_warmup": 0.0,
                "lr": 2e-2,
                "resample_every": 380,
                "d_sae": 96,
            },
        ],
        1 << 20,
    ),
}


def recipes(kind: str) -> list[SAERecipe]:
    return [SAERecipe(**{**COMMON, **own}) for own in KINDS[kind][0]]


def fit(kind: str, folder: Path | None, only: SAERecipe | None = None, **order) -> list[FittedSAE]:
    """The fits of one kind, or one recipe under its conditions; everything follows from the seeds."""
    rows = planted(N, 0)
    rows[[7, 300]] = np.nan
    return fit_saes(
        EmbeddingRows.of(rows),
        planted(100, 1),
        [only] if only else recipes(kind),
        site="s",
        model_name="toy",
        session=FitSession(folder=folder, memory=KINDS[kind][1], **order),
    )


def batches() -> dict[str, tuple[torch.Tensor, int]]:
    """name → (rows (60, 24), how many entries are kept of all of them)."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 24, generator=g, dtype=torch.float64)
    whole = torch.randint(-2, 3, (60, 24), generator=g).double()
    one_sided = rows * torch.linspace(100, 0.01, 60, dtype=torch.float64)[:, None]
    return {
        "rows": (rows, 240),
        "fraction": (rows, 37),
        "ties": (whole, 500),
        "all ties": (torch.ones_like(whole), 100),
        "one-sided": (one_sided, 240),
        "fewer": (-whole.abs(), 10_000),
    }


def chosen(world: World, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of each batch, this process's share: what BatchTopK takes of it, dense, by either module."""
    found = {}
    for module in (cpu, plain):
        for name, (rows, n_kept) in batches().items():
            x = rows[world.share(len(rows))].contiguous()
            bias, scale = torch.zeros(len(weights)).double(), torch.ones(len(weights)).double()
            code, _ = module.encode_batch(x, weights, bias, scale, n_kept)
            dense = torch.zeros(len(x), len(weights), dtype=x.dtype)
            dense[code.rows(), code.latents.long()] = code.values
            found[f"{module.__name__} {name}"] = dense
    return found


def encoder() -> torch.Tensor:
    """(48, 24) float64 of whole numbers: products of whole rows are exact, and often equal."""
    g = torch.Generator().manual_seed(1)
    return torch.randint(-1, 2, (48, 24), generator=g).double()


def main(folder: Path, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    with join_world() as world:
        save_file(chosen(world, encoder()), folder / f"chosen-{world.rank}.safetensors")
        for kind in KINDS:
            found = fit(kind, folder / kind, world=world, dtype=dtype)
            if world.leads:
                for i, one in enumerate(found):
                    one.sae.save(folder / f"{kind}-{i}")
                said = {
                    "log": [one.log for one in found],
                    "summary": [one.summary for one in found],
                }
                (folder / f"{kind}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]))
