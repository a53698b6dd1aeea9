"""The options of `sae measure`, and its record in run.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.options import option
from dermaudit.run.stages import Record, StageOptions

MEASURE = Record(
    "measure",
    reads=("embed", "fit:{key}", "seeds:{key}?"),
    columns=("split", "group", "label", "artifact:*", "concept:*"),
    writes=("sae/{key}/measured.json",),
)


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(StageOptions):
    """What is measured, and what it is compared with."""

    site: tuple[str, ...] = option((), "sites instead of all that were fitted", "--site")
    against: tuple[Path, ...] = option(
        (), "folder of an SAE of the same site and another seed, or a run with one", "--against"
    )
    embeddings_of: str | None = option(
        None, "an independent model, by whose embeddings monosemanticity is judged"
    )
    zero_shot: bool = option(True, "also what the zero-shot classifier keeps, where labels allow")
    controls: bool = option(
        True, "also the controls of the pooled SAE: nine dictionaries, a minute"
    )
    draws: int = option(1000, "bootstrap draws over groups", minimum=20)
    threads: int = option(1, "torch threads", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for folder in self.against:
            if not folder.is_dir():
                raise UserInputError(
                    f"--against {folder} is not a folder", "give the folder with cfg.json, or a run"
                )
