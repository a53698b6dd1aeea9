"""The options of `concepts teach`, and its record in run.json."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.options import option, required
from dermaudit.run.stages import Record, StageOptions

TEACH = Record("teach", reads=("images", "embed"), writes=("concept_latents/{key}/*",))


@dataclass(frozen=True, kw_only=True)
class TeachOptions(StageOptions):
    """Which concept is taught, and where its images come from."""

    concept: str = required("name of the concept, e.g. ruler", positional=True)
    labels: str | None = option(
        None, "column of the manifest with 1 and 0 (default: artifact:NAME or concept:NAME)"
    )
    with_: Path | None = option(None, "instead: folder of images with the concept", "--with")
    without: Path | None = option(None, "and a folder of images without it", "--without")
    target: str = option(
        "mel", "images with this label are left out, so that the latent holds nothing of it"
    )
    threads: int = option(1, "torch threads", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", self.concept):
            raise UserInputError(
                f"'{self.concept}' cannot be the name of a concept",
                "use small letters, digits and _, e.g. gel_bubble",
            )
        if (self.with_ is None) != (self.without is None):
            raise UserInputError(
                "images with and without the concept are needed",
                "give both --with and --without, or neither",
            )
        if self.with_ is not None and self.labels is not None:
            raise UserInputError(
                "--labels and --with are two sources of images", "give one of them"
            )

    def flags(self) -> str:
        """Return the flags besides the name with which the latent is made again."""
        words: list[str] = []
        for flag, value in (
            ("--labels", self.labels),
            ("--with", self.with_),
            ("--without", self.without),
            ("--target", None if self.target == "mel" else self.target),
        ):
            if value is not None:
                words += [flag, str(value.absolute() if isinstance(value, Path) else value)]
        return shlex.join(words)
