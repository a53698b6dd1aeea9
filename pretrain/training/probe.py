"""What a model knows, on the test split: linear-probe and prompted AUROC of every label.

The probe is fitted on train (C by grouped inner folds); the prompt is text only: the mean of the
wordings that affirm a fact minus the mean of those that deny it. Intervals by bootstrap over groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.data import Manifest
from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.stats.intervals import MIN_CELL, auroc, auroc_interval
from dermaudit.towers import HookedTower
from dermaudit.towers.embedding import embed_images, refuse_seen

from ..data.facts import facts_of


def embed(tower: HookedTower, paths: list[Path]) -> np.ndarray:
    """Return unit embeddings (n, d) of image files; rows of nan for files that cannot be read."""
    return embed_images(tower, paths)[0]


def embed_splits(tower: HookedTower, manifest: Manifest) -> np.ndarray:
    """Return unit embeddings (n, d) of the train and test rows of a manifest; nan for other rows and for
    files that cannot be read. Errors: UserInputError when a test image was a training image.
    """
    splits = np.asarray(manifest.splits)
    test, train = np.flatnonzero(splits == "test"), np.flatnonzero(splits == "train")
    refuse_seen(tower, manifest, test)
    paths = manifest.paths()
    rows = np.concatenate([train, test])
    x = np.full((len(paths), tower.d_pooled), np.nan, dtype=np.float32)
    x[rows] = embed(tower, [paths[i] for i in rows])
    return x


@dataclass(frozen=True)
class ScoredFact:
    """A label with the scores of some test rows: `truth` (n,) 1, 0, or nan where it is not known; `probe`, `prompt` and
    `synonym` (n,) are higher where the label is present. `synonym` is the prompt of wordings that no training of the
    toolkit uses; None where there are none.
    """

    name: str
    truth: np.ndarray
    probe: np.ndarray
    prompt: np.ndarray
    synonym: np.ndarray | None


@torch.no_grad()
def score_facts(
    tower: HookedTower,
    manifest: Manifest,
    x: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    seed: int = 0,
) -> list[ScoredFact]:
    """Return the scores of test rows for every label with enough test images, by probe and by prompt.

    `x` (n, d) are embeddings of the rows of the manifest, of which `train` and `test` are indices.
    """
    groups = np.asarray(manifest.groups, dtype=str)
    found = []
    for fact in facts_of(manifest):
        truth = fact.values[test]
        n, n_pos = int(np.isfinite(truth).sum()), int(np.nansum(truth))
        fit = train[np.isfinite(fact.values[train])]
        if n < MIN_CELL or n_pos < 5 or n_pos == n:
            continue
        try:
            probe = fit_probe(x[fit], fact.values[fit], groups[fit], seed=seed)
        except EvidenceError:
            continue
        denied = tower.encode_text(list(fact.denials) or ["a lesion"]).mean(0)

        def prompted(wordings: tuple[str, ...], denied: torch.Tensor = denied) -> np.ndarray:
            affirmed = tower.encode_text(list(wordings)).mean(0)
            return x[test] @ (affirmed - denied).cpu().numpy()

        found.append(
            ScoredFact(
                fact.name,
                truth,
                probe_score(probe, x[test]),
                prompted(fact.wordings),
                prompted(fact.synonyms) if fact.synonyms else None,
            )
        )
    return found


def split_rows(manifest: Manifest, *embedded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the train and test rows whose image could be read in every embedding (n, d)."""
    splits = np.asarray(manifest.splits)
    readable = np.all([np.isfinite(x).all(1) for x in embedded], axis=0)
    train, test = (np.flatnonzero((splits == s) & readable) for s in ("train", "test"))
    return train, test


def measure(
    tower: HookedTower, manifest: Manifest, *, seed: int = 0, x: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """{label: {n, n_pos, probe, probe_ci, prompt, prompt_ci}} for labels with enough test images.

    `x`: what `embed_splits` gave, where it is there already.
    """
    x = embed_splits(tower, manifest) if x is None else x
    train, test = split_rows(manifest, x)
    groups = np.asarray(manifest.groups, dtype=str)[test]
    found = {}
    for fact in score_facts(tower, manifest, x, train, test, seed=seed):
        seen = np.isfinite(fact.truth)
        y, own = fact.truth[seen], groups[seen].tolist()
        found[fact.name] = {"n": len(y), "n_pos": int(y.sum())}
        for name in ("probe", "prompt"):
            score = getattr(fact, name)[seen]
            found[fact.name] |= {
                name: auroc(y, score),
                f"{name}_ci": auroc_interval(y, score, own, seed=seed),
            }
    return found
