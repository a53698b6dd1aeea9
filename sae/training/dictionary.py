"""A consensus dictionary: an SAE whose first latents are the directions that many fits agree on.

They stay within the cosine WITHIN of the consensus, and encoder and thresholds are fitted to them. The other
latents are a residual dictionary: they reconstruct the rest, another fit would have others, and nothing is named
after them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermaudit.errors import UserInputError

from ..inference.model import ThresholdSAE
from ..store.loader import RowSubset, read_all
from .consensus import JOIN, KEEP, KEEP_TOKENS, Consensus, consensus
from .loop import FittedSAE
from .recipe import SAERecipe
from .site_rows import SiteRows, evenly

VERSION = 1  # of the method: a dictionary of an earlier one is made again
WITHIN = 0.98
#: Part of the training that a fit of a consensus has at sites with several rows for each image: it takes less time,
#: and what shorter fits agree on fits labelled artifacts better (docs/labbook.md).
SHORTER_TOKENS = 0.25
HELD_ROWS = 32_768  # val rows for early stopping
#: Numbers of an SAE in training for each of its weights: itself, its gradient, two moments, the best so far.
_COPIES = 5
_MEMORY = 0.5  # of the free memory that the fits may take


@dataclass(frozen=True)
class FitRows:
    """The rows that an SAE learns from, and those on which it is stopped early (m, d)."""

    train: RowSubset
    held: np.ndarray

    @classmethod
    def of(cls, data: SiteRows, half: dict[str, np.ndarray] | None = None) -> FitRows:
        """Return the train and val rows of a site, or those of a half of its groups."""
        index = half or data.index
        held = RowSubset(data.rows, evenly(index["val"], HELD_ROWS))
        return cls(RowSubset(data.rows, index["train"]), read_all(held))


@dataclass(frozen=True)
class Dictionary:
    """An SAE that was fitted to a consensus of fits with `seeds`; `levels` are the numbers of directions that were
    agreed on at each k.
    """

    fitted: FittedSAE
    levels: dict[float, int]
    agreed: Consensus
    seeds: tuple[int, ...]
    tokens: int

    @property
    def sae(self) -> ThresholdSAE:
        """The SAE, whose first latents are the consensus."""
        assert isinstance(self.fitted.sae, ThresholdSAE)
        return self.fitted.sae

    @classmethod
    def of(
        cls,
        fitted: FittedSAE,
        levels: dict[float, int],
        agreed: Consensus,
        seeds: tuple[int, ...],
        tokens: int,
    ) -> Dictionary:
        """Return the dictionary; the file of its SAE says how many latents are of the consensus."""
        fitted.sae.metadata["consensus_latents"] = len(agreed)
        return cls(fitted, levels, agreed, seeds, tokens)

    def report(self) -> dict[str, Any]:
        """Return the content of consensus.json."""
        return {
            "format_version": VERSION,
            "seeds": list(self.seeds),
            "keep": keep_at(self.tokens),
            "join": JOIN,
            "within": WITHIN,
            "kept": len(self.agreed),
            "agreement": [round(float(value), 6) for value in self.agreed.agreement],
            "share": [round(float(value), 6) for value in self.agreed.share],
        }

    def summary(self) -> dict[str, Any]:
        """Return what metrics.json says of the consensus."""
        agreement = self.agreed.agreement
        return {
            "consensus": {
                "fits": len(self.seeds),
                "latents": len(self.agreed),
                "agreement": round(float(agreement.mean()), 6) if len(agreement) else None,
                "agreed_at_k": {f"{k:g}": count for k, count in self.levels.items()},
            }
        }


def keep_at(tokens: int) -> float:
    """Return the agreement from which a direction is kept at a site with `tokens` rows for each image."""
    return KEEP if tokens == 1 else KEEP_TOKENS


def agreement_of(fits: list[FittedSAE], tokens: int) -> Consensus:
    """Return the consensus of the decoders of fits at a site with `tokens` rows for each image."""
    return consensus([one.sae.W_dec.numpy() for one in fits], keep=keep_at(tokens))


def short_recipe(recipe: SAERecipe, tokens: int) -> SAERecipe:
    """Return the recipe of the fits of a consensus at a site with `tokens` rows for each image."""
    part = 1.0 if tokens == 1 else SHORTER_TOKENS
    if recipe.epochs is not None:
        return recipe.replaced({"epochs": recipe.epochs * part})
    return recipe.replaced({"samples": max(1, round(recipe.samples * part))})


def half_indices(data: SiteRows, seed: int) -> list[dict[str, np.ndarray]]:
    """Return the train and val rows of two halves of the groups; images of one group are in the same half.

    UserInputError where the train or val images are of one group.
    """
    groups = np.asarray(data.rows.image_groups).astype(str)
    halves: list[dict[str, np.ndarray]] = [{}, {}]
    for split in ("train", "val"):
        index = data.index[split]
        of_rows = groups[index // data.rows.tokens]
        names = np.unique(of_rows)
        if len(names) < 2:
            raise UserInputError(
                f"the {split} images are of one group, and cannot be divided into two halves of groups",
                "give more groups, or leave stability unmeasured: --halves none",
            )
        np.random.default_rng([seed, 11]).shuffle(names)
        first = np.isin(of_rows, names[: len(names) // 2])
        halves[0][split], halves[1][split] = index[first], index[~first]
    return halves


def disjoint_halves(data: SiteRows, seed: int) -> list[FitRows]:
    """Return the rows of the two halves of `half_indices`, to fit an SAE on each."""
    return [FitRows.of(data, half) for half in half_indices(data, seed)]


def require_rows(recipe: SAERecipe, n_rows: int, site: str) -> None:
    """Raise UserInputError unless there are at least as many rows as latents, which have thresholds."""
    if recipe.export == "topk" or not recipe.has_k:
        raise UserInputError(
            "a consensus dictionary needs an architecture with k, and latents with thresholds",
            "choose --arch batchtopk, without export=topk",
        )
    if n_rows < recipe.d_sae:
        raise UserInputError(
            f"a consensus of {recipe.d_sae} latents at {site} needs as many rows at least, and has {n_rows}",
            f"give --d-sae {max(2, n_rows // 4)} or fewer, or more images",
        )


def require_memory(recipe: SAERecipe, d_in: int, n_fits: int) -> None:
    """Raise UserInputError where the fits do not fit in memory at once, with the number that does."""
    one = _COPIES * 4 * (2 * d_in + 1) * recipe.d_sae
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    )
    most = int(_MEMORY * free // one)
    if n_fits > most:
        raise UserInputError(
            f"{n_fits} fits of {recipe.d_sae} latents take {n_fits * one / 1e9:.1f} GB, and "
            f"{_MEMORY * free / 1e9:.1f} GB are for them: {most} fit at once",
            f"give --seeds {most}" if most > 1 else "give a smaller --d-sae",
        )
