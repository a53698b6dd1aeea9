"""How often names are wrong, and whether the probabilities that they come with say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dermaudit.stats.intervals import GroupBootstrap, percentile_interval

COVERAGES = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
_BINS = 10
_DRAWS = 1000


@dataclass
class Answers:
    """Names that were given: how many, and of those that labels can judge the concept, the score, and whether the
    name is right.
    """

    count: int = 0
    concepts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    tolerant: list[bool] = field(default_factory=list)  # wrong in the tolerant sense

    def add(self, concept: str, score: float, right: bool | None) -> None:
        """Add a name; `right` is None where labels cannot judge it."""
        self.count += 1
        if right is not None:
            self.concepts.append(concept)
            self.scores.append(float(score))
            self.right.append(right)


def risk_figures(answers: Answers, *, probabilities: bool) -> dict[str, Any]:
    """Return `n_judged`, `wrong` with `wrong_ci` (95 %, over concepts), `wrong_tolerant`, `risk_coverage` {share of
    the judged names, the surest first: share of wrong ones}, `aurc` (its mean over all shares), and of `probabilities`
    `ece` and `brier`; None where nothing can be judged.
    """
    right = np.array(answers.right, dtype=bool)
    n = len(right)
    if not n:
        return {
            "n_judged": 0,
            **dict.fromkeys(("wrong", "wrong_ci", "wrong_tolerant", "aurc", "ece", "brier")),
            "risk_coverage": {},
        }
    scores = np.array(answers.scores)
    order = np.argsort(-scores, kind="stable")
    risk = np.cumsum(~right[order]) / np.arange(1, n + 1)
    weights = GroupBootstrap(answers.concepts, _DRAWS).matrix()
    with np.errstate(invalid="ignore"):
        draws = weights @ ~right / weights.sum(1)
    return {
        "n_judged": n,
        "wrong": float((~right).mean()),
        "wrong_ci": [float(value) for value in percentile_interval(draws)],
        "wrong_tolerant": float(np.mean(answers.tolerant)) if answers.tolerant else None,
        "risk_coverage": {f"{c:g}": float(risk[max(0, round(c * n) - 1)]) for c in COVERAGES},
        "aurc": float(risk.mean()),
        "ece": calibration_error(scores, right) if probabilities else None,
        "brier": float(((scores - right) ** 2).mean()) if probabilities else None,
    }


def calibration_error(p: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error: over ten bins of p (n,), |mean p − share of right| weighed by size."""
    bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
    return float(
        sum(
            abs(p[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
            for b in np.unique(bins)
        )
    )
