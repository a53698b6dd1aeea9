"""The options of `recipe make`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dermaudit.run.directory import Run
from dermaudit.run.stages import StageOptions, option
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
        "e.g. ruler; repeat it for several (default: every artifact that is labelled or named)",
        "--concept",
    )
    target: str = option("mel", "the label whose prediction must not depend on the concept")
    strength: float = option(0.9, "P(concept | target) in the trap split", minimum=0.5, maximum=1.0)
    method: str = option("effect", "how the latents are chosen: effect, name, or one of your own")
    mode: str = option("subtract", f"how a latent is suppressed: {MODES_HELP}")
    level: float | None = option(None, LEVEL_HELP, minimum=0)
    vocabulary: str | None = option(None, VOCABULARY_HELP)
    threads: int = option(1, THREADS_HELP, minimum=1)
    refuse: bool = option(True, "exit 3 at a concept without evidence", "--refuse/--keep-going")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mode(self.mode, self.level)

    def inputs(self, run: Run, vocabulary: Vocabulary) -> dict[str, Any]:
        """Return the inputs that decide a recipe, as run.json hashes them."""
        inputs = {
            "seed": run.seed(self.seed),
            "target": self.target,
            "strength": self.strength,
            "vocabulary": vocabulary.sha256(),
        }
        if self.mode != "subtract":  # earlier versions had no other mode and did not record it
            inputs |= {"mode": self.mode, "level": self.level}
        return inputs | self.method_used()

    def method_used(self) -> dict[str, str]:
        """Return the method of choice, {} for the default: earlier versions had and recorded no other."""
        return {} if self.method == "effect" else {"method": self.method}
