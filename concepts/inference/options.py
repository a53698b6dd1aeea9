"""The options of `suppress`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.options import Options, option
from dermaudit.sae.inference.modes import check_mode

from ..inputs import THREADS_HELP, VOCABULARY_HELP
from ..suppression.options import LEVEL_HELP, MODES_HELP

FORMATS = (".csv", ".parquet", ".jsonl")
DEFAULT_MODEL = "dermoscopy-small"


@dataclass(frozen=True, kw_only=True)
class SuppressOptions(Options):
    """What is predicted, with which concepts suppressed. `head`, `target`, `mode` and `level` are those of the
    recipes where they are None. UserInputError for options that contradict each other.
    """

    run: Path | None = option(None, "folder of the run (default: the newest)", "--run")
    concept: tuple[str, ...] = option((), "e.g. ruler; repeat it for several", "--concept")
    recipe: tuple[Path, ...] = option(
        (), "instead of a run: a recipe file; repeat it for several", "--recipe"
    )
    model: str | None = option(
        None,
        "instead of a run: a bundled model with its reference head and recipes (default without a run: "
        f"{DEFAULT_MODEL})",
    )
    images: str | None = option(
        None,
        "a folder, a data set, webdataset shards (a .tar file, or a folder of them), or - for a list of files on "
        "stdin (default: the run's own images)",
    )
    out: Path = option(
        Path("predictions.csv"), "table of the predictions: .csv, .parquet or .jsonl"
    )
    head: str | None = option(None, "a head of the run, a head file (.safetensors), or zeroshot")
    target: str | None = option(None, "the class whose logit changes are listed")
    mode: str | None = option(
        None, f"how a latent is suppressed (default: as the recipe does): {MODES_HELP}"
    )
    level: float | None = option(None, LEVEL_HELP, minimum=0)
    vocabulary: str | None = option(None, VOCABULARY_HELP)
    seed: int | None = option(None, "of a recipe that is made first (default: the run's)")
    threads: int = option(1, THREADS_HELP, minimum=1)
    readers: int = option(1, "threads that read and decode images", minimum=1)
    force: bool = option(False, "overwrite --out, and do not continue what was stopped")
    dry_run: bool = option(False, "print what would change, write nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [
            flag
            for flag, value in (
                ("--run", self.run),
                ("--recipe", self.recipe),
                ("--model", self.model),
            )
            if value
        ]
        if len(given) > 1:
            raise UserInputError(
                f"{' and '.join(given)} are two sources of recipes", "give one of them"
            )
        if self.recipe and self.concept:
            raise UserInputError(
                "--concept and --recipe are given: a recipe file says its concept",
                "leave --concept out",
            )
        if not self.concept and not self.recipe:
            raise UserInputError("--concept is missing", "run: dermaudit suppress --concept ruler")
        if self.mode is not None:
            check_mode(self.mode, self.level)
        elif self.level is not None:
            raise UserInputError(
                f"--level {self.level:g} needs --mode scale",
                "add --mode scale, or leave --level out",
            )
        if self.out.suffix not in FORMATS:
            raise UserInputError(
                f"--out {self.out} is no table that can be written",
                f"give a name that ends in {', '.join(FORMATS)}",
            )
        if self.out.exists() and not (self.force or self.dry_run):
            raise UserInputError(
                f"{self.out} exists", "use --force to overwrite it, or another --out"
            )
