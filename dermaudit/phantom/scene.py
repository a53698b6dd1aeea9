"""The factors of one phantom: diagnosis, skin type, concepts, artifacts; no pixels yet.

Each presence has its own random stream, so that a table that changes one probability changes
that factor and no other: the same image under two tables differs in the trap alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bias import BASE_COLORS, EXCLUSIVE, IMPLIES, BiasTable, load_bias_table
from .seeds import stream
from .vocabulary import ARTIFACTS, CONCEPTS, DIAGNOSES, SKIN_TYPES


@dataclass(frozen=True)
class Scene:
    """What one image shows. `concepts` and `artifacts` hold 0 or 1 for every name."""

    seed: int
    index: int
    diagnosis: str
    skin_type: int
    concepts: dict[str, int]
    artifacts: dict[str, int]

    def stream(self, factor: str) -> np.random.Generator:
        """Return the random stream that draws `factor` in this image."""
        return stream(self.seed, self.index, f"draw:{factor}")


def sample(seed: int, index: int, table: BiasTable | None = None) -> Scene:
    """Draw the factors of image `index` of `seed` from `table` (None: the default table)."""
    table = load_bias_table(None) if table is None else table

    def uniform(factor: str) -> float:
        return float(stream(seed, index, f"presence:{factor}").random())

    diagnosis = _pick(DIAGNOSES, [table.diagnosis[name] for name in DIAGNOSES], uniform("dx"))
    skin_type = _pick(SKIN_TYPES, [table.skin_type[t] for t in SKIN_TYPES], uniform("skin_type"))
    p = table.concept[diagnosis]
    present = {name: int(uniform(name) < p[name]) for name in CONCEPTS}

    # Exact marginals and at least one colour: the three probabilities lie end to end on a line that
    # is sampled at every whole step from a random start.
    order = stream(seed, index, "presence:base_color").permutation(len(BASE_COLORS))
    at, start = 0.0, uniform("base_color_start")
    for name in (BASE_COLORS[k] for k in order):
        present[name] = int(np.floor(at + p[name] - start) > np.floor(at - start))
        at += p[name]

    first, second = EXCLUSIVE
    mark = uniform(first)
    present[first] = int(mark < p[first])
    present[second] = int(p[first] <= mark < p[first] + p[second])

    for structure, color in IMPLIES.items():
        rest = (p[color] - p[structure]) / (1 - p[structure]) if p[structure] < 1 else 0.0
        present[color] = int(present[structure] or uniform(color) < rest)

    q = table.artifact[diagnosis]
    artifacts = {name: int(uniform(name) < q[name]) for name in ARTIFACTS}
    return Scene(seed, index, diagnosis, skin_type, present, artifacts)


def _pick(names: tuple, weights: list[float], mark: float):
    edges = np.cumsum(weights)
    return names[min(int(np.searchsorted(edges, mark * edges[-1], side="right")), len(names) - 1)]
