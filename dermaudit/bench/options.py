"""The options of the bench commands, one frozen dataclass per command, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dermaudit.errors import UserInputError

MIN_DRAWS = 100  # with fewer draws the 2.5 percentile depends on two of them


def check_draws(n_draws: int) -> None:
    """Raise UserInputError for too few bootstrap draws."""
    if n_draws < MIN_DRAWS:
        raise UserInputError(
            f"--draws {n_draws} is too few for an interval",
            f"at least {MIN_DRAWS} are needed, 1000 are usual",
        )


@dataclass(frozen=True)
class StatisticsOptions:
    """How intervals and paired tests are computed.

    `n_draws` bootstrap resamples from `seed`. Every model is compared with `reference`; all pairs are
    compared if it is None. `by_class` adds the recall of every class.
    """

    n_draws: int = 1000
    seed: int = 0
    reference: str | None = None
    by_class: bool = False


@dataclass(frozen=True)
class BenchOptions:
    """The options that every bench of models shares.

    `where` is an SQL condition on the rows of the manifest. `form` is the format of the table, which is
    written to the folder `out` if that is given.
    """

    model: tuple[str, ...]
    data: Path
    split: str = "test"
    where: str | None = None
    reference: str | None = None
    by_class: bool = False
    draws: int = 1000
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    form: str = "text"
    out: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class ZeroshotOptions(BenchOptions):
    """`classes` and `templates` name a built-in set or a file; `ontology` is a nested JSON file."""

    classes: str | None = None
    templates: str = "dermfm"
    ontology: Path | None = None


@dataclass(frozen=True)
class RetrievalOptions(BenchOptions):
    """`k` are the cut-offs of the recall; `column` holds the captions."""

    k: tuple[int, ...] = (1, 5, 10, 50)
    column: str = "caption"

    def __post_init__(self) -> None:
        if min(self.k) < 1:
            raise UserInputError(
                f"--k {min(self.k)} must be at least 1",
                "--k 1 asks how often the first answer is right",
            )


@dataclass(frozen=True)
class ProbeOptions(BenchOptions):
    """`parts` is the number of random subsets per fraction of the train split below 100 %."""

    parts: int = 3

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise UserInputError(
                f"--parts {self.parts} must be at least 1", "--parts 1 draws each subset once"
            )


@dataclass(frozen=True)
class AnnotateOptions(BenchOptions):
    """`terms` is a JSON file concept -> terms; `templates` names a built-in set."""

    terms: Path | None = None
    templates: str = "skin"


@dataclass(frozen=True)
class TableOptions:
    """The options of `bench table`, which reads saved predictions instead of models."""

    predictions: Path
    legacy_bootstrap: bool = False
    reference: str | None = None
    by_class: bool = False
    draws: int = 2000
    seed: int = 0
    form: str | None = None
    out: Path | None = None
    force: bool = False
