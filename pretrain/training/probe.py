"""What a model knows, on the test split: linear-probe and prompted AUROC of every label.

The probe is fitted on train (C by grouped inner folds); the prompt is text only: the mean of the
wordings that affirm a fact minus the mean of those that deny it. Intervals by bootstrap over groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.data import Manifest
from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.stats.intervals import MIN_CELL, auroc, auroc_interval
from dermaudit.towers.embedding import embed_images, refuse_seen

from ..data.facts import facts_of


def embed(tower: Any, paths: list[Path]) -> np.ndarray:
    """Return unit embeddings (n, d) of image files; rows of nan for files that cannot be read."""
    return embed_images(tower, paths)[0]


def embed_splits(tower: Any, manifest: Manifest) -> np.ndarray:
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


@torch.no_grad()
def measure(
    tower: Any, manifest: Manifest, *, seed: int = 0, x: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """{label: {n, n_pos, probe, probe_ci, prompt, prompt_ci}} for labels with enough test images.

    `x`: what `embed_splits` gave, where it is there already.
    """
    x = embed_splits(tower, manifest) if x is None else x
    splits = np.asarray(manifest.splits)
    readable = np.isfinite(x).all(1)
    test, train = (np.flatnonzero((splits == s) & readable) for s in ("test", "train"))
    groups = np.asarray(manifest.groups, dtype=str)
    found = {}
    for fact in facts_of(manifest):
        y = fact.values
        seen = test[np.isfinite(y[test])]
        fit = train[np.isfinite(y[train])]
        n_pos = int(y[seen].sum())
        if len(seen) < MIN_CELL or n_pos < 5 or n_pos == len(seen):
            continue
        try:
            probe = fit_probe(x[fit], y[fit], groups[fit], seed=seed)
        except EvidenceError:
            continue
        score = probe_score(probe, x[seen])
        affirmed = tower.encode_text(list(fact.wordings)).mean(0)
        denied = tower.encode_text(list(fact.denials) or ["a lesion"]).mean(0)
        test_groups = groups[seen].tolist()
        prompt = x[seen] @ (affirmed - denied).cpu().numpy()
        found[fact.name] = {
            "n": len(seen),
            "n_pos": n_pos,
            "probe": auroc(y[seen], score),
            "probe_ci": auroc_interval(y[seen], score, test_groups, seed=seed),
            "prompt": auroc(y[seen], prompt),
            "prompt_ci": auroc_interval(y[seen], prompt, test_groups, seed=seed),
        }
    return found
