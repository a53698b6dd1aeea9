"""Whether two dictionaries that share neither images nor seeds get the same names.

The dictionary of each half of the groups (`fit --consensus`) is named on the train and val images of its half, as that
of the run on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from dermaudit.sae.evaluation.halves import first_latents
from dermaudit.sae.evaluation.stability import SHARED, match, unit
from dermaudit.sae.inference.codes import encode_images
from dermaudit.sae.training.dictionary import half_indices
from dermaudit.sae.training.site_rows import SiteRows
from dermaudit.stats.intervals import percentile_interval

from .naming import RunNamer

UNNAMED_WORD, NOT_FOUND = -1, -2  # a latent without a name; no latent that is near
_DRAWS = 1000


class NamesOfHalves(TypedDict):
    """How alike the names of two halves are, of latents that are matched with a cosine of .7 or more."""

    n_pairs: int
    n_named_in_one: int  # in one at least
    n_named_in_both: int
    same: float | None  # share of n_named_in_both with one name; None without any
    interval: list[float] | None  # 95 %, over pairs
    by_chance: float | None  # the same share of pairs that are drawn among the named latents


@dataclass(frozen=True)
class HalfNames:
    """The directions (h, d) of the dictionary of a half, and the concept (h,) of each, or UNNAMED_WORD."""

    directions: np.ndarray
    word: np.ndarray

    def names_of(self, directions: np.ndarray) -> np.ndarray:
        """Return the concept (n,) of the latent nearest to each of directions (n, d), or NOT_FOUND."""
        if not len(self.directions):
            return np.full(len(directions), NOT_FOUND)
        cosine = unit(directions) @ self.directions.T
        return np.where(cosine.max(1) >= SHARED, self.word[cosine.argmax(1)], NOT_FOUND)


def names_of_halves(namer: RunNamer, site: str) -> list[HalfNames]:
    """Name the dictionaries of the two halves at a site; [] where the run has none."""
    data = namer.data
    saes = data.halves(site)
    if not saes:
        return []
    rows = SiteRows.open(data.run, site, data.splits)
    seed = int(saes[0].metadata.get("halves_of_seed", data.run.seed(None)))
    found = []
    for sae, index in zip(saes, half_indices(rows, seed), strict=True):
        own = first_latents(sae)
        places = np.unique(np.concatenate([index["train"], index["val"]]) // rows.rows.tokens)
        values = rows.rows.take(_rows_of(places, rows.rows.tokens))
        if rows.rows.tokens > 1:
            values = values.reshape(len(places), rows.rows.tokens, -1)
        codes = np.concatenate([codes for codes, _ in encode_images(own, values)])
        directions = own.W_dec.numpy()
        images = rows.rows.image_rows[places]
        names = namer.of(site, codes, images, directions)
        found.append(HalfNames(unit(directions), names.word))
    return found


def compared(one: HalfNames, other: HalfNames, *, seed: int = 0) -> NamesOfHalves:
    """Compare the names of the latents that are matched one to one between two halves."""
    cosine = one.directions @ other.directions.T
    pairs = match(cosine)
    near = cosine[pairs] >= SHARED
    words = np.stack([one.word[pairs[0][near]], other.word[pairs[1][near]]], 1)
    named = words[(words >= 0).all(1)]
    same = (named[:, 0] == named[:, 1]).astype(float)
    draws = np.random.default_rng([seed, 15]).integers(0, max(1, len(named)), (_DRAWS, len(named)))
    interval = percentile_interval(same[draws].mean(1)) if len(named) > 1 else None
    return NamesOfHalves(
        n_pairs=int(near.sum()),
        n_named_in_one=int((words >= 0).any(1).sum()),
        n_named_in_both=len(named),
        same=float(same.mean()) if len(named) else None,
        interval=None if interval is None else [float(value) for value in interval],
        by_chance=float((named[:, :1] == named[:, 1]).mean()) if len(named) else None,
    )


def _rows_of(places: np.ndarray, tokens: int) -> np.ndarray:
    return (places[:, None] * tokens + np.arange(tokens)).ravel()
