"""Options of the benchmarks of models, and how intervals and tests are computed. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.stats.intervals import GroupBootstrap

MIN_DRAWS = 100  # with fewer, the 2.5 percentile rests on two draws


@dataclass(frozen=True)
class Resampling:
    """Bootstrap of the scored images by group.

    `reference`: the model with which every other model is compared; None compares all pairs.
    """

    n_draws: int = 1000
    seed: int = 0
    reference: str | None = None

    def bootstrap(self, groups: Sequence[str]) -> GroupBootstrap:
        """Return the resamples of images of these groups."""
        return GroupBootstrap(groups, self.n_draws, self.seed)


@dataclass(frozen=True)
class BenchOptions:
    """The options that all benchmarks of models share; the fields are flags of the commands."""

    models: tuple[str, ...]
    data: Path
    split: str = "test"
    where: str | None = None
    reference: str | None = None
    draws: int = 1000
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    form: str = "text"
    out: Path | None = None
    force: bool = False


def check_draws(n_draws: int) -> None:
    """Raise UserInputError for fewer resamples than an interval needs."""
    if n_draws < MIN_DRAWS:
        raise UserInputError(
            f"--draws {n_draws} is too few for an interval",
            f"at least {MIN_DRAWS} are needed, 1000 are usual",
        )
