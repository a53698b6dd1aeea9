"""What is fitted at every site of a run, and the default recipe of a site."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from dermaudit.distributed import World

from ..run_data import POOLED
from ..store.loader import MEMORY
from . import dictionary
from .recipe import SAERecipe, dermfm_zero

ROWS_PER_LATENT = 16
CONSENSUS_ROWS = 32  # the same for a consensus: more latents take twice the time and agree no more
_MEMORISES = 20  # rows for each latent, below which a warning says that the SAE memorises rows


@dataclass(frozen=True)
class FitPlan:
    """What is fitted at every site.

    `overrides` are settings of the recipe; `preset` is "" or dermfm-zero. The first of `seeds` gives the
    SAE of the run; the others are fitted together as another record and show which of its latents other
    seeds find too. With `consensus` the SAE of the run is a consensus dictionary of all seeds
    (`token_seeds` at sites with several rows for each image), at all sites or (`consensus_at`) at the pooled one
    alone, if it has a row for each latent; elsewhere it is one SAE. `halves` (all, pooled or none) says
    at which sites two more, of disjoint halves of the groups and other seeds, are compared. `sae` says whether
    the reference dictionary of the model may take the place of an SAE of the images (own, reference, auto). `grid` has
    the settings of each recipe of a sweep, which is fitted with every seed in one pass and measured on
    val; it does not change the SAE of the run.
    """

    seed: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    seeds: tuple[int, ...] = ()
    consensus: bool = False
    consensus_at: str = "all"
    token_seeds: tuple[int, ...] = ()
    halves: str = "none"
    sae: str = "own"
    grid: tuple[dict[str, Any], ...] = ()
    drop_bad: bool = True
    memory: int = MEMORY
    resume: bool = False
    world: World = field(default_factory=World)

    def at(self, site: str, n_train: int) -> FitPlan:
        """Return the plan of a site of a run with `n_train` train images."""
        if not self.consensus or self.consensus_at == "all":
            return self
        if site == POOLED and self.recipe(1, n_train, 0).d_sae <= n_train:
            return self
        return dataclasses.replace(self, consensus=False, seeds=(self.first,))

    def recipe(self, tokens: int, n_train: int, d_in: int) -> SAERecipe:
        """Return the recipe of a site of width d_in with `tokens` rows for each of n_train images."""
        recipe = site_recipe(
            tokens,
            n_train,
            self.overrides,
            dermfm_zero(d_in) if self.preset else {},
            rows_per_latent=CONSENSUS_ROWS if self.consensus else ROWS_PER_LATENT,
        )
        return dataclasses.replace(recipe, order_seed=self.seed)

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
        if stage == "fit" and not self.consensus:
            seeds = [] if self.first == self.seed else [self.first]
        more = {
            "consensus": dictionary.VERSION if self.consensus else 0,
            "preset": self.preset,
            "seeds": seeds,
            "grid": list(self.grid),
            "fatal_bad_rows": not self.drop_bad,
            "memory": 0 if self.memory == MEMORY else self.memory,
            "processes": 0 if self.world.size == 1 else self.world.size,
        }
        return found | {name: value for name, value in more.items() if value}

    def compares(self, site: str) -> bool:
        """Whether the SAE of a site is compared with others."""
        if not self.consensus:
            return len(self.seeds) > 1
        return self.halves == "all" or (self.halves == "pooled" and site == POOLED)

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
    tokens: int,
    n_train: int,
    overrides: dict[str, Any],
    preset: dict[str, Any] | None = None,
    *,
    rows_per_latent: int = ROWS_PER_LATENT,
) -> SAERecipe:
    """Return the recipe of a site with `tokens` rows for each image: its defaults and `overrides`.

    With few rows for each latent an SAE memorises its rows, so the default width is halved until every
    latent has `rows_per_latent` of them (not below 64).
    """
    base: dict[str, Any] = (
        {"d_sae": 128, "k": 8.0, "samples": 1_000_000}
        if tokens == 1
        else {"d_sae": 512, "k": 12.0, "samples": 1_200_000}
    )
    given = {**(preset or {}), **{name: v for name, v in overrides.items() if v is not None}}
    if "d_sae" not in given:
        while base["d_sae"] > 64 and base["d_sae"] * rows_per_latent > n_train * tokens:
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
