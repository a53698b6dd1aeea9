"""The options of `recipe make` and of `suppress`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaudit.errors import UserInputError
from dermaudit.options import Options, option
from dermaudit.run.directory import Run
from dermaudit.run.stages import StageOptions
from dermaudit.sae.inference.modes import DOES, check_mode

from ..inputs import THREADS_HELP, VOCABULARY_HELP
from ..vocabulary.vocabulary import Vocabulary

MODES_HELP = "; ".join(f"{mode} {does}" for mode, does in DOES.items())
LEVEL_HELP = "of --mode scale: the factor of the codes, e.g. 0.5"


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(StageOptions):
    """What is suppressed, and how. Raises UserInputError for a mode without the level that it needs."""

    concept: tuple[str, ...] = option(
        (),
        "e.g. ruler; repeat it for several (default: every artifact that is labelled, taught or named)",
        "--concept",
    )
    target: str = option("mel", "the label whose prediction must not depend on the concept")
    strength: float = option(0.9, "P(concept | target) in the trap split", minimum=0.5, maximum=1.0)
    method: str = option(
        "concept_latent",
        "how the latents are made or chosen: concept_latent (one latent, fitted with labels or taught), sae "
        "(of the run's SAE, by labels), name (of the run's SAE, by name), or one of your own",
    )
    mode: str = option("subtract", f"how a latent is suppressed: {MODES_HELP}")
    level: float | None = option(None, LEVEL_HELP, minimum=0)
    vocabulary: str | None = option(None, VOCABULARY_HELP)
    threads: int = option(1, THREADS_HELP, minimum=1)
    refuse: bool = option(True, "exit 3 at a concept without evidence", "--refuse/--keep-going")
    accept_limits: str | None = option(
        None, "write the recipe against the evidence; the reason is kept in it"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mode(self.mode, self.level)
        if self.accept_limits is not None and not self.accept_limits.strip():
            raise UserInputError(
                "--accept-limits has no reason", 'give one: --accept-limits "used in a study of …"'
            )

    def inputs(self, run: Run, vocabulary: Vocabulary) -> dict[str, Any]:
        """Return the inputs that decide a recipe, as run.json hashes them."""
        return {
            "seed": run.seed(self.seed),
            "target": self.target,
            "strength": self.strength,
            "method": self.method,
            "mode": self.mode,
            "level": self.level,
            "accept_limits": self.accept_limits,
            "vocabulary": vocabulary.sha256(),
        }


@dataclass(frozen=True, kw_only=True)
class SuppressOptions(Options):
    """What is predicted, with which concepts suppressed. `head`, `target`, `mode` and `level` are those of the
    run and its recipes where they are None. UserInputError for options that contradict each other.
    """

    run: Path | None = option(None, "folder of the run (default: the newest)", "--run")
    concept: tuple[str, ...] = option((), "e.g. ruler; repeat it for several", "--concept")
    images: Path | None = option(None, "a folder or data set (default: the run's own images)")
    out: Path = option(Path("predictions.csv"), "CSV of the predictions")
    head: str | None = option(None, "a head of the run, or zeroshot")
    target: str | None = option(None, "the class whose logit changes are listed")
    mode: str | None = option(
        None, f"how a latent is suppressed (default: as the recipe does): {MODES_HELP}"
    )
    level: float | None = option(None, LEVEL_HELP, minimum=0)
    vocabulary: str | None = option(None, VOCABULARY_HELP)
    seed: int | None = option(None, "of a recipe that is made first (default: the run's)")
    threads: int = option(1, THREADS_HELP)
    force: bool = option(False, "overwrite --out")
    dry_run: bool = option(False, "print what would change, write nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.concept:
            raise UserInputError("--concept is missing", "run: dermaudit suppress --concept ruler")
        if self.mode is not None:
            check_mode(self.mode, self.level)
        elif self.level is not None:
            raise UserInputError(
                f"--level {self.level:g} needs --mode scale",
                "add --mode scale, or leave --level out",
            )
        if self.out.exists() and not (self.force or self.dry_run):
            raise UserInputError(
                f"{self.out} exists", "use --force to overwrite it, or another --out"
            )
