"""Fits small enough to be run by one or two processes, killed, and compared.

`fit_world.py FOLDER DTYPE`, alone or under torchrun, fits every kind (recipes that share a pass), keeps
checkpoints in FOLDER/<kind> and writes FOLDER/<kind>-<i> (the SAE) and FOLDER/<kind>.json (log, summary).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sae_rows import planted

from dermaudit.distributed import join_world
from dermaudit.sae.recipe import SAERecipe
from dermaudit.sae.rows import Rows
from dermaudit.sae.train import Fitted, Order, fit_saes

N = 501  # rows: not a multiple of anything
#: name → (recipes of one pass, bytes of memory). 501 rows of 24: 48 kB; 20,000 bytes is in chunks.
COMMON = {
    "d_sae": 48, "k": 4.0, "batch": 64, "samples": 3200, "checks": 5, "lr": 3e-3, "dead_window": 100, "seed": 3,
    "order_seed": 5,
}
KINDS: dict[str, tuple[list[dict], int]] = {
    "family": (
        [
            {"architecture": "batchtopk"},
            {"architecture": "topk", "seed": 1},
            {"architecture": "matryoshka", "d_sae": 32, "patience": 1},
        ],
        20_000,
    ),
    "penalties": (
        [
            {"architecture": "jumprelu"},
            {
                "architecture": "relu_l1", "l1_coefficient": 8.0, "penalty_warmup": 0.0, "lr": 2e-2,
                "resample_every": 380, "d_sae": 96,
            },
        ],
        1 << 20,
    ),
}


def recipes(kind: str) -> list[SAERecipe]:
    return [SAERecipe(**{**COMMON, **own}) for own in KINDS[kind][0]]


def fit(
    kind: str, folder: Path | None, only: SAERecipe | None = None, **order
) -> list[Fitted]:
    """The fits of one kind, or one recipe under its conditions; everything follows from the seeds."""
    rows = planted(N, 0)
    rows[[7, 300]] = np.nan
    return fit_saes(
        Rows.of(rows), planted(100, 1), [only] if only else recipes(kind), site="s", model_name="toy",
        order=Order(folder=folder, memory=KINDS[kind][1], **order),
    )


def main(folder: Path, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    with join_world() as world:
        for kind in KINDS:
            found = fit(kind, folder / kind, world=world, dtype=dtype)
            if world.leads:
                for i, one in enumerate(found):
                    one.sae.save(folder / f"{kind}-{i}")
                said = {"log": [one.log for one in found], "summary": [one.summary for one in found]}
                (folder / f"{kind}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]))
