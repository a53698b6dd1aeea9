"""What `bench suppress --sweeps` and `--pairs` measure of a concept latent beside its effect, and its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.concepts.evidence.cross_fit import CrossFitted, Fold, cross_fit
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.concepts.results import interval_text
from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod
from dermaudit.console import table
from dermaudit.sae.run_data import RunData

from .pairs import Pairs, changes_in_pairs
from .side_effects import side_effects
from .strata import by_stratum, strata_of, zero_shot_accuracy
from .sweeps import DRAWS, LABELS, STRENGTHS, few_labels, trap_curve

if TYPE_CHECKING:
    from dermaudit.concepts.suppression.head import Head

SWEEPS = ("curves", "few_labels", "side_effects", "strata", "zero_shot")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Further:
    """What is measured: with `sweeps` the keys of SWEEPS, and "pairs" where there are `pairs` of a concept.
    `zero_shot`: the classifier by texts, None for a model without them.
    """

    data: RunData
    sweeps: bool
    zero_shot: Head | None = None
    pairs: dict[str, Pairs] = field(default_factory=dict)

    def measure(self, concept: str, found: list[Fold], oracle: np.ndarray) -> Figures:
        """Return the figures of one concept, {} where nothing is asked for. Errors: those of the method."""
        figures: Figures = {}
        if not self.sweeps and concept not in self.pairs:
            return figures
        result = cross_fit(CrossFittedMethod(ConceptLatentMethod()), found)
        heads = [one for one in result.fitted if isinstance(one, EditedHead)]
        if self.sweeps:
            trap = found[0].data
            assert trap.row is not None  # of a run
            others = {n: t.values[trap.row] for n, t in self.data.truth.items() if n != concept}
            strata = {n: v[trap.row] for n, v in strata_of(self.data.images).items()}
            figures |= {
                "curves": trap_curve(trap),
                "few_labels": few_labels(found, oracle),
                "side_effects": side_effects(found, [one.edit for one in heads], others),
                "strata": by_stratum(trap, result, strata),
                "zero_shot": self._zero_shot(found, result, heads),
            }
        if concept in self.pairs:
            figures["pairs"] = changes_in_pairs(found, heads, self.pairs[concept])
        return figures

    def _zero_shot(
        self, found: list[Fold], result: CrossFitted, heads: list[EditedHead]
    ) -> Figures:
        trap = found[0].data
        if self.zero_shot is None:
            return {"reason": "the model has no text encoder"}
        edited = trap.x.copy()
        for fold, head in zip(found, heads, strict=True):
            edited[fold.held] = head.edit(trap.x[fold.held])
        return zero_shot_accuracy(trap, edited, self.data.labels[trap.row], self.zero_shot)


def print_further(figures: dict[str, Figures]) -> None:
    """Print a table of each kind of figures: {kind: {concept: figures}}."""
    for kind, show in _TABLES.items():
        if figures.get(kind):
            show(figures[kind])


def _curves(figures: Figures) -> None:
    table(
        "Concept latent: cross-group AUROC before → after, by P(artifact | target) where the head is fitted",
        ("artifact", *(f"{strength:g}" for strength in STRENGTHS)),
        [(concept, *map(_pair, points)) for concept, points in figures.items()],
    )


def _few_labels(figures: Figures) -> None:
    table(
        f"Concept latent: gap closed with n + n labels, mean (lowest) of {DRAWS} draws",
        ("artifact", *(f"{n} + {n}" for n in LABELS)),
        [
            (concept, *(f"{each['mean']:.2f} ({each['lowest']:.2f})" for each in row.values()))
            for concept, row in figures.items()
        ],
    )


def _side_effects(figures: Figures) -> None:
    lines = []
    for concept, found in figures.items():
        lost = [n for n, one in found["concepts"].items() if (one["ci"][1] or 0) < 0]
        residual = (_pair(found["residual"][kind]) for kind in ("linear", "mlp"))
        lines.append((concept, *residual, ", ".join(lost) or "none"))
    table(
        "Concept latent: AUROC of the artifact by fresh probes of edited rows, and concepts that lose",
        ("artifact", "linear probe", "MLP", "other concepts that are read significantly worse"),
        lines,
    )


def _strata(figures: Figures) -> None:
    table(
        "Concept latent: AUROC of the target by the trap heads, before → after suppression, in groups of patients",
        ("artifact", "column", "stratum", "images", "AUROC", "change, 95 %"),
        [
            (concept, column, stratum, str(one["n"]), *_with_interval(one))
            for concept, columns in figures.items()
            for column, strata in columns.items()
            for stratum, one in strata.items()
        ],
    )


def _zero_shot(figures: Figures) -> None:
    table(
        "Concept latent: accuracy of the zero-shot classifier, before → after suppression",
        ("artifact", "images", "accuracy", "change, 95 %"),
        [
            (concept, str(one.get("n", "")), *_with_interval(one))
            for concept, one in figures.items()
        ],
    )


def _pairs(figures: Figures) -> None:
    table(
        "Concept latent: mean |Δp| between real photographs with the artifact and the same without it",
        ("artifact", "pairs", "before → after suppression", ""),
        [
            (concept, str(one["n"]), _pair(one), one["reason"] or "")
            for concept, one in figures.items()
        ],
    )


def _pair(one: Figures) -> str:
    return f"{one['before']:.2f} → {one['after']:.2f}"


def _with_interval(one: Figures) -> tuple[str, str]:
    if "reason" in one:
        return one["reason"], ""
    return _pair(one), interval_text(*one["ci"], digits=3)


_TABLES: dict[str, Callable[[Figures], None]] = {
    "curves": _curves,
    "few_labels": _few_labels,
    "side_effects": _side_effects,
    "strata": _strata,
    "zero_shot": _zero_shot,
    "pairs": _pairs,
}
