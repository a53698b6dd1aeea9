"""Teaching without labels: the images of the run ranked by a text, by drawn artifacts, or by both.

A person confirms candidates on a sheet, or the latent is fitted by the ranking alone. In the second case what
ranked the images is kept beside the latent, so that the evidence of a recipe can fit it anew in each fold.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.console import say
from dermaudit.errors import EvidenceError, UserInputError, unknown
from dermaudit.files import write_json, write_safetensors
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.sae.run_data import RunData

from ..inputs import tower_of, vocabulary_of
from ..results import rounded
from .options import Source, TeachOptions
from .provenance import PROVENANCE, entries, metadata_of, provenance_of
from .sheet import write_sheet
from .sources import drawn_rows, rank, teachable, text_direction

if TYPE_CHECKING:
    from jaxtyping import Float, Int

RANKING = "ranking.safetensors"
SOURCE_TEXT: dict[Source, str] = {
    "text_seeded": "text, unconfirmed",
    "drawn": "drawn artifacts, unconfirmed",
    "agreement": "text and drawn artifacts, unconfirmed",
}


@dataclass(frozen=True)
class Ranking:
    """`score` (k,) of the images `rows` (k,) of the run, and what it comes from: `text_direction` (d,), and
    `drawn` (n, d), a row for each image of the run, nan where the artifact was not drawn onto it.
    """

    source: Source
    rows: Int[np.ndarray, " k"]
    score: Float[np.ndarray, " k"]
    text_direction: Float[np.ndarray, " d"] | None
    drawn: Float[np.ndarray, "n d"] | None

    def sha256(self) -> str:
        """Return the hash of source, rows and scores."""
        digest = hashlib.sha256(self.source.encode())
        for values in (self.rows.astype("<i8"), self.score.astype("<f8")):
            digest.update(values.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write what the score comes from."""
        import torch

        tensors = {}
        if self.text_direction is not None:
            tensors["text_direction"] = torch.from_numpy(self.text_direction)
        if self.drawn is not None:
            have = np.flatnonzero(np.isfinite(self.drawn).all(1))
            tensors["drawn"] = torch.from_numpy(self.drawn[have])
            tensors["drawn_row"] = torch.from_numpy(have)
        write_safetensors(path, tensors)


def ranking_of(run: Run, data: RunData, options: TeachOptions, seed: int) -> Ranking:
    """Rank the train and val images without the target.

    Raises UserInputError for a concept that the vocabulary has no words and opposites for, or that cannot be
    drawn; EvidenceError for a model without text, or where the model does not see the drawn artifact.
    """
    source = options.ranked_by
    assert source is not None  # checked by the caller
    tower, words = tower_of(run, options.threads), vocabulary_of(run, options.vocabulary)
    direction, drawn = None, None
    if options.from_text:
        entry = next((c for c in words.concepts if c.id == options.concept), None)
        if entry is None:
            raise unknown(
                "concept of the vocabulary", options.concept, [c.id for c in words.concepts]
            )
        if not entry.opposites:
            raise UserInputError(
                f"the vocabulary has no opposites of {options.concept}",
                "give a vocabulary that has them: --vocabulary FILE",
            )
        direction = text_direction(tower, words, options.concept)
        if direction is None:
            raise EvidenceError(f"the model {run.meta['model']['name']} has no text encoder")
    if options.drawn:
        drawn = drawn_rows(data, options.concept, options.target, tower, seed)
    rows = np.flatnonzero(teachable(data, options.target))
    groups = np.asarray(data.groups)[rows].astype(str)
    of_rows = None if drawn is None else drawn[rows]
    score = rank(source, data.pooled[rows], groups, direction, of_rows, seed)
    return Ranking(source, rows, score, direction, drawn)


def propose(run: Run, data: RunData, options: TeachOptions, ranking: Ranking) -> dict[str, Any]:
    """Write the sheet of candidates, and say how to confirm it. UserInputError if the sheet exists."""
    path = options.sheet_path
    places = [shlex.quote(str(place)) for place in (path, run.path)]
    again = f"dermaudit concepts teach {options.concept} --from-sheet {places[0]} --run {places[1]}"
    if path.exists() and not options.force:
        raise UserInputError(
            f"the sheet {path} exists", f"fill in its column present, then run: {again}"
        )
    n = write_sheet(path, data, ranking.rows, ranking.score, options.candidates)
    say(
        f"{options.concept}: {n} candidates in {path}. Write 1 or 0 into the column present (blank: undecided), "
        f"then run: {again}"
    )
    return {"sheet": str(path), "candidates": n, "source": options.ranked_by}


def fit_ranked(
    run: Run, data: RunData, options: TeachOptions, ranking: Ranking, seed: int
) -> Made[dict[str, Any]]:
    """Fit the latent by the ranking alone, and write it with its provenance and what ranked the images."""
    from dermaudit.sae.concept_latents.ranked import fit_by_ranking, seeds

    rows = ranking.rows
    groups = np.asarray(data.groups)[rows].astype(str)
    latent = fit_by_ranking(data.pooled[rows], ranking.score, groups, seed=seed)
    known = latent.figures
    assert known is not None  # of a fit
    source = SOURCE_TEXT[ranking.source]
    figures = rounded(
        {
            "latent": 0,
            "source": source,
            "n": len(rows),
            "n_with": known.n_with,
            "n_without": known.n_without,
            "seed_auroc": known.auroc,
            "seed_auroc_ci": known.auroc_ci,
            "fires_with": known.fires_with,
            "fires_without": known.fires_without,
            "flags": options.flags(),
        }
    )
    folder = run.files.concept_latent(options.concept)
    files = latent.as_sae(metadata_of(run, options.concept)).save(folder)
    top, bottom = seeds(ranking.score)
    present: list[int | None] = [None] * len(rows)
    for kind, chosen in ((1, top), (0, bottom)):
        for i in chosen:
            present[int(i)] = kind
    names, hashes = (data.images[column].to_pylist() for column in ("image", "sha256"))
    facts = provenance_of(run, options, source, figures, seed)
    facts["ranked_by"] = ranking.source
    facts["vocabulary_sha256"] = vocabulary_of(run, options.vocabulary).sha256()
    facts["n_drawn"] = 0 if ranking.drawn is None else int(np.isfinite(ranking.drawn).all(1).sum())
    facts["images"] = [
        {**entry, "score": round(float(value), 6)}
        for entry, value in zip(
            entries([names[i] for i in rows], [hashes[i] for i in rows], present),
            ranking.score,
            strict=True,
        )
    ]
    ranking.save(folder / RANKING)
    write_json(folder / PROVENANCE, facts)
    return [*files, folder / RANKING, folder / PROVENANCE], figures


def saved_ranking(folder: Path, n: int) -> dict[str, np.ndarray]:
    """Return what ranked the images of a run of n images, as fields of `TrapData`."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / RANKING)
    fields = {name: tensors[name] for name in ("text_direction",) if name in tensors}
    if "drawn" in tensors:
        fields["drawn"] = np.full((n, tensors["drawn"].shape[1]), np.nan, dtype=np.float32)
        fields["drawn"][tensors["drawn_row"]] = tensors["drawn"]
    return fields
