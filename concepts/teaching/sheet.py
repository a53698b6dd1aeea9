"""The sheet of candidates: images that a text ranks, for a person to say which of them show the concept.

CSV with `image` (as in the manifest), `file` (where it lies), `score`, `proposed` (1 or 0, by the score), and
`present`, which is left blank for the person: 1, 0, or blank while not decided.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dermaudit.errors import UserInputError
from dermaudit.files import write_text
from dermaudit.sae.run_data import RunData

from .images import TaughtImages
from .sources import teachable

if TYPE_CHECKING:
    from jaxtyping import Float, Int

COLUMNS = ("image", "file", "score", "proposed", "present")
PROPOSED = 1 / 3  # of the ranked images: half of the candidates are of this part


def candidates(score: Float[np.ndarray, " n"], n: int) -> tuple[Int[np.ndarray, " k"], int]:
    """Return the rows of n candidates, highest score first, and how many of them are proposed as images with
    the concept: half are spread evenly over the third with the highest score, the others over the rest.

    Candidates of all scores are needed: a latent that is fitted on the two extremes fires in nearly every
    image (docs/labbook.md).
    """
    order = np.argsort(-score, kind="stable")
    cut = max(1, round(PROPOSED * len(order)))
    high, low = order[:cut], order[cut:]
    half = min(n // 2, len(high)), min(n - n // 2, len(low))
    picked = [
        part[np.linspace(0, len(part) - 1, size).round().astype(int)]
        for part, size in zip((high, low), half, strict=True)
    ]
    return np.concatenate(picked), half[0]


def write_sheet(path: Path, data: RunData, rows: np.ndarray, score: np.ndarray, n: int) -> int:
    """Write n candidates of the ranked rows of a run (`rows` and `score`, both (k,)), and return how many they
    are.
    """
    chosen, proposed = candidates(score, n)
    names = data.images["image"].to_pylist()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for place, i in enumerate(chosen):
        row = int(rows[i])
        writer.writerow(
            [
                names[row],
                data.image_path(row).absolute(),
                f"{score[i]:.4f}",
                int(place < proposed),
                "",
            ]
        )
    write_text(path, text.getvalue())
    return len(chosen)


def images_of_sheet(data: RunData, path: Path, target: str) -> TaughtImages:
    """Return the images of a sheet that are decided.

    Raises UserInputError for a sheet without the columns `image` and `present`, for a value that is neither
    1 nor 0 nor blank, and for an image that is not in the run, is named twice, or may not be used: a test
    image, or one of the target.
    """
    usable = teachable(data, target)
    row_of = {name: row for row, name in enumerate(data.images["image"].to_pylist())}
    decided: dict[int, int] = {}
    for line, entry in _lines(path):
        name, value = entry["image"] or "", (entry["present"] or "").strip()
        if name not in row_of:
            raise UserInputError(f"{path}, line {line}: {name} is no image of the run")
        if value not in ("", "0", "1"):
            raise UserInputError(
                f"{path}, line {line}: present is '{value}'",
                "write 1 where the concept is present, 0 where it is absent, nothing where undecided",
            )
        row = row_of[name]
        if not usable[row]:
            raise UserInputError(
                f"{path}, line {line}: {name} is a test image or has the label {target}",
                "remove the line: such images are not used for teaching",
            )
        if value and decided.setdefault(row, int(value)) != int(value):
            raise UserInputError(f"{path}, line {line}: {name} is given as 0 and as 1")
    rows = np.array(sorted(decided), dtype=int)
    hashes = data.images["sha256"].to_pylist()
    names = data.images["image"].to_pylist()
    return TaughtImages(
        data.pooled[rows],
        np.array([decided[row] for row in rows], dtype=int),
        np.asarray(data.groups)[rows].astype(str),
        [names[row] for row in rows],
        [hashes[row] for row in rows],
        "sheet, confirmed",
    )


def _lines(path: Path) -> list[tuple[int, dict[str, str | None]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lines = [(reader.line_num, entry) for entry in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserInputError(f"the sheet {path} cannot be read: {error}") from error
    missing = [name for name in ("image", "present") if name not in (reader.fieldnames or ())]
    if missing:
        raise UserInputError(
            f"the sheet {path} has no column {missing[0]}",
            "write one: dermaudit concepts teach NAME --from-text --run RUN",
        )
    return lines
