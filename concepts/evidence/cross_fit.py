"""Cross-fitted trap heads: every row is scored by a head and an edit that saw no row of its group.

In each fold a *trap head* is fitted on training rows drawn so that P(artifact | positive) = strength and
P(artifact | negative) = 1 − strength (Bissoto et al., arXiv 2004.11457), and an *oracle* on four equal
groups of about as many rows. A method sees the training rows of the fold only. Figures are taken from the
rows that count: those that the tower was not trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import LinearHead, fit_probe, probe_score
from dermaudit.stats.folds import group_folds
from dermaudit.stats.intervals import MIN_CELL

from .operating_points import prevalence_matched_threshold

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from dermaudit.sae import ThresholdSAE, TopKSAE

FOLDS = 5
CROSS_GROUPS = ("y=1 a=0", "y=0 a=1")  # between them the cross-group AUROC is taken


@dataclass(frozen=True)
class TrapData:
    """Rows x (n, d) with label y and artifact a (n,): 0, 1, or nan where unknown (see `known`). `groups` (n,)
    stay together in the folds. `scored` (n,): the rows that figures are taken from; `row` (n,): their row
    numbers in the run, where they are of one.

    For methods that use them: `sae`; `named`, the latents that were named after the artifact, each with the
    figures of its name; `text_direction` (d,), the embedding of texts with the artifact minus that of texts
    without it; `drawn` (n, d), the rows of the images with the artifact drawn onto them, nan where it was not;
    `first`, the concepts that are suppressed before the artifact, with the values (n,) of each, as `a`.
    """

    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    a: Float[np.ndarray, " n"]
    groups: np.ndarray
    scored: Bool[np.ndarray, " n"]
    strength: float = 0.9
    seed: int = 0
    row: Int[np.ndarray, " n"] | None = None
    sae: ThresholdSAE | TopKSAE | None = None
    named: tuple[tuple[int, dict[str, float]], ...] = ()
    text_direction: Float[np.ndarray, " d"] | None = None
    drawn: Float[np.ndarray, "n d"] | None = None
    first: tuple[tuple[str, Float[np.ndarray, " n"]], ...] = ()

    def known(self) -> TrapData:
        """Return the rows whose label and artifact are both known."""
        rows = np.flatnonzero(np.isfinite(self.y) & np.isfinite(self.a))
        of_rows = {name: getattr(self, name)[rows] for name in ("x", "y", "a", "groups", "scored")}
        if self.drawn is not None:
            of_rows["drawn"] = self.drawn[rows]
        of_rows["first"] = tuple((name, values[rows]) for name, values in self.first)
        return replace(self, **of_rows, row=rows if self.row is None else self.row[rows])

    def cell(self, label: int, artifact: int) -> np.ndarray:
        """Return which rows have this label and artifact (n,)."""
        return (self.y == label) & (self.a == artifact)


@dataclass(frozen=True)
class TrainingRows:
    """The rows of `data` that a method may use; `number` gives each set its own random numbers."""

    data: TrapData
    number: int
    train: Int[np.ndarray, " n"]

    def rows_of(self, label: int) -> np.ndarray:
        """Return the training rows of one label."""
        return self.train[self.data.y[self.train] == label]


@dataclass(frozen=True)
class Fold(TrainingRows):
    """One fold: the training rows, the rows held out, and the rows that the trap head was fitted on."""

    held: Int[np.ndarray, " m"]
    trap_rows: Int[np.ndarray, " k"]
    head: LinearHead

    @property
    def threshold(self) -> float:
        """The logit of the share of positives among the rows of the head. Above it an image is called
        positive: for a calibrated head this is where the balanced accuracy is best.
        """
        positive = float(self.data.y[self.trap_rows].mean())
        return float(np.log(positive / (1 - positive)))


class Fitted(Protocol):
    """A method that was fitted in one fold."""

    def score(self, x: np.ndarray) -> np.ndarray:
        """Return the logit of the target (n,) of rows x (n, d), after suppression."""
        ...

    def unchanged(self, x: np.ndarray) -> np.ndarray:
        """Return which rows (n,) of x (n, d) keep every bit of their embedding."""
        ...


class CrossFitMethod(Protocol):
    """A way to suppress an artifact: fitted in each fold anew."""

    @property
    def name(self) -> str:
        """What `bench suppress --method` calls it."""
        ...

    def fit(self, fold: Fold) -> Fitted:
        """Fit on the training rows of the fold. EvidenceError where they are not enough."""
        ...


@dataclass
class CrossFitted:
    """Scores and decisions (n,) of all rows, each from the fold where the row was held out.

    `after_fixed` decides at the unchanged threshold, `after_matched` at the prevalence-matched one.
    `fitted` holds the fitted method of each fold.
    """

    fold: np.ndarray
    score_before: np.ndarray
    score: np.ndarray
    before: np.ndarray
    after_fixed: np.ndarray
    after_matched: np.ndarray
    unchanged: np.ndarray
    fitted: list[Fitted] = field(default_factory=list)


def folds(data: TrapData) -> list[Fold]:
    """Return the folds, each with its trap head.

    Raises EvidenceError with the counts where a group of label and artifact has too few rows.
    """
    counts = {f"y={i} a={j}": int(data.cell(i, j).sum()) for i in (0, 1) for j in (0, 1)}
    scored = dict(counted(data))
    small = {name: n for name, n in counts.items() if n < MIN_CELL}
    small |= {name: scored[name] for name in CROSS_GROUPS if scored[name] < MIN_CELL}
    if small:
        raise EvidenceError(
            "n too small to cross-fit: "
            + ", ".join(f"{n} images with {name}" for name, n in small.items()),
            f"at least {MIN_CELL} of each group are needed, and of {' and '.join(CROSS_GROUPS)} as many "
            "outside the train split",
            counts,
        )
    found = []
    for number, (train, held) in enumerate(
        group_folds(2 * data.y + data.a, data.groups, FOLDS, data.seed)
    ):
        generator = np.random.default_rng([data.seed, number])
        rows = biased_rows(data, train, generator)
        head = fit_probe(data.x[rows], data.y[rows], data.groups[rows], seed=data.seed)
        found.append(Fold(data, number, train, held, rows, head))
    return found


def biased_rows(data: TrapData, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the largest part of `rows` with P(a | y = 1) = strength and P(a | y = 0) = 1 − strength."""
    picked = []
    for label, share in ((1, data.strength), (0, 1 - data.strength)):
        present = rows[data.cell(label, 1)[rows]]
        absent = rows[data.cell(label, 0)[rows]]
        total = min(
            len(present) / share if share > 0 else np.inf,
            len(absent) / (1 - share) if share < 1 else np.inf,
        )
        picked.append(generator.permutation(present)[: round(total * share)])
        picked.append(generator.permutation(absent)[: round(total * (1 - share))])
    return np.concatenate(picked)


def balanced_rows(fold: Fold, n: int | None = None) -> np.ndarray:
    """Return training rows with equally many of each of the four groups, about n in all."""
    generator = np.random.default_rng([fold.data.seed, fold.number, 1])
    cells = [
        generator.permutation(fold.train[fold.data.cell(i, j)[fold.train]])
        for i in (0, 1)
        for j in (0, 1)
    ]
    size = min(map(len, cells))
    if n is not None:
        size = min(size, n // 4)
    return np.concatenate([cell[:size] for cell in cells])


def fit_oracle(fold: Fold) -> LinearHead:
    """Return a head for the same task without the trap, fitted on about as many rows."""
    rows = balanced_rows(fold, len(fold.trap_rows))
    data = fold.data
    return fit_probe(data.x[rows], data.y[rows], data.groups[rows], seed=data.seed)


def oracle_scores(found: list[Fold]) -> np.ndarray:
    """Return the score (n,) of each row by the oracle of the fold where it was held out."""
    data = found[0].data
    score = np.full(len(data.x), np.nan)
    for fold in found:
        score[fold.held] = probe_score(fit_oracle(fold), data.x[fold.held])
    return score


def cross_fit(method: CrossFitMethod, found: list[Fold]) -> CrossFitted:
    """Fit the method in every fold, and score the rows held out. Errors: those of the method."""
    n = len(found[0].data.x)
    result = CrossFitted(
        fold=np.full(n, -1),
        score_before=np.full(n, np.nan),
        score=np.full(n, np.nan),
        before=np.zeros(n, bool),
        after_fixed=np.zeros(n, bool),
        after_matched=np.zeros(n, bool),
        unchanged=np.zeros(n, bool),
    )
    for fold in found:
        _place(result, fold, method.fit(fold))
    return result


def _place(result: CrossFitted, fold: Fold, fitted: Fitted) -> None:
    """Enter the scores and decisions of one fold."""
    data = fold.data
    result.fitted.append(fitted)
    held, train = data.x[fold.held], data.x[fold.train]
    before, after = probe_score(fold.head, held), fitted.score(held)
    matched = prevalence_matched_threshold(
        probe_score(fold.head, train), fold.threshold, fitted.score(train)
    )
    result.fold[fold.held] = fold.number
    result.score_before[fold.held], result.score[fold.held] = before, after
    result.before[fold.held] = before > fold.threshold
    result.after_fixed[fold.held] = after > fold.threshold
    result.after_matched[fold.held] = after > matched
    result.unchanged[fold.held] = fitted.unchanged(held)


def counted(data: TrapData) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of rows of each of the four groups among the scored rows."""
    for i in (0, 1):
        for j in (0, 1):
            yield f"y={i} a={j}", int((data.cell(i, j) & data.scored).sum())
