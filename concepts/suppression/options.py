"""The options of `recipe make`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dermaudit.errors import UserInputError
from dermaudit.options import option
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
        "(of the run's SAE, by labels), insertion (of the run's SAE, by the artifact drawn onto images), name (of "
        "the run's SAE, by name), or one of your own",
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
