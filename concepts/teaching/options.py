"""The options of `concepts teach`, and its record in run.json."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dermaudit.errors import UserInputError
from dermaudit.options import option, required
from dermaudit.run.stages import Record, StageOptions

from ..inputs import VOCABULARY_HELP

Source = Literal["text_seeded", "drawn", "agreement"]  # what ranks images without labels

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
    from_text: bool = option(
        False, "instead: rank the images by the words of the concept, and write a sheet to confirm"
    )
    drawn: bool = option(
        False, "rank the images by the artifact drawn onto them; with --from-text, by both"
    )
    direct: bool = option(False, "with --from-text: fit by the ranking, which no person confirms")
    sheet: Path | None = option(
        None, "with --from-text: the sheet to write (default: NAME.candidates.csv)"
    )
    candidates: int = option(50, "images of the sheet", minimum=20)
    from_sheet: Path | None = option(None, "instead: a sheet that a person has filled in")
    after: tuple[str, ...] = option(
        (),
        "a taught concept that goes together with this one: fit on what its suppression leaves; repeat it for "
        "several",
        "--after",
    )
    vocabulary: str | None = option(None, VOCABULARY_HELP)
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
        self._check_sources()

    def _check_sources(self) -> None:
        sources = {
            "--labels": self.labels is not None,
            "--with": self.with_ is not None,
            "--from-sheet": self.from_sheet is not None,
            "--from-text or --drawn": self.ranked_by is not None,
        }
        given = [flag for flag, is_given in sources.items() if is_given]
        if len(given) > 1:
            raise UserInputError(
                f"{given[0]} and {given[1]} are two sources of images", "give one of them"
            )
        for flag, is_given in (("--direct", self.direct), ("--sheet", self.sheet is not None)):
            if is_given and not self.from_text:
                raise UserInputError(f"{flag} needs --from-text", "add --from-text")
        if self.after and self.ranked_by is not None and not self.writes_sheet:
            raise UserInputError(
                "--after needs images that are labelled",
                "confirm a sheet: --from-text without --direct, then --from-sheet",
            )
        if self.concept in self.after or len(set(self.after)) < len(self.after):
            raise UserInputError(
                "--after names the concept itself, or one twice", "name other concepts, each once"
            )
        if self.direct and self.sheet is not None:
            raise UserInputError("--direct writes no sheet", "give --direct or --sheet")

    @property
    def ranked_by(self) -> Source | None:
        """What ranks the images in place of labels, None with labels."""
        if self.from_text:
            return "agreement" if self.drawn else "text_seeded"
        return "drawn" if self.drawn else None

    @property
    def writes_sheet(self) -> bool:
        """Whether candidates are written for a person, and nothing is fitted."""
        return self.from_text and not self.direct

    @property
    def sheet_path(self) -> Path:
        """The sheet that is written."""
        return self.sheet or Path(f"{self.concept}.candidates.csv")

    def flags(self) -> str:
        """Return the flags besides the name with which the latent is made again."""
        words = [
            flag
            for flag, given in (
                ("--from-text", self.from_text),
                ("--drawn", self.drawn),
                ("--direct", self.direct),
            )
            if given
        ]
        for flag, value in (
            ("--labels", self.labels),
            ("--with", self.with_),
            ("--without", self.without),
            ("--from-sheet", self.from_sheet),
            ("--vocabulary", self.vocabulary),
            ("--target", None if self.target == "mel" else self.target),
        ):
            if value is not None:
                words += [flag, str(value.absolute() if isinstance(value, Path) else value)]
        words += [word for name in self.after for word in ("--after", name)]
        return shlex.join(words)
