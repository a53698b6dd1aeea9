"""What a model knows, on the test split: linear-probe and prompted AUROC of every label.

The probe is fitted on train (C by grouped inner folds); the prompt is text only: the mean of the
wordings that say a fact minus the mean of those that deny it. Intervals by bootstrap over groups.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.console import track
from dermaudit.data import BadImage, Manifest, read_image
from dermaudit.errors import EvidenceError
from dermaudit.files import sha256_file
from dermaudit.heads import fit_probe, probe_score
from dermaudit.ingest import refuse_training_images
from dermaudit.stats import MIN_CELL, auroc, auroc_interval

from .facts import facts_of

_BATCH = 64


@torch.no_grad()
def embed(tower: Any, paths: list[Path]) -> np.ndarray:
    """Unit embeddings (n, d) of image files; rows of nan for files that cannot be read."""
    x = np.full((len(paths), tower.d_pooled), np.nan, dtype=np.float32)
    for start in track(range(0, len(paths), _BATCH), "embedding"):
        images, rows = [], []
        for row, path in enumerate(paths[start : start + _BATCH], start):
            with suppress(BadImage):
                images.append(read_image(path))
                rows.append(row)
        if images:
            x[rows] = tower.encode_image(tower.preprocess(images), normalize=True).numpy()
    return x


def measure(tower: Any, manifest: Manifest, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """{label: {n, n_pos, probe, probe_ci, prompt, prompt_ci}} for labels with enough test images."""
    splits = np.asarray(manifest.splits)
    test, train = np.flatnonzero(splits == "test"), np.flatnonzero(splits == "train")
    paths = manifest.paths()
    refuse_training_images(
        tower,
        ["test"] * len(test),
        [str(paths[i]) for i in test],
        [sha256_file(paths[i]) if paths[i].is_file() else "" for i in test],
        manifest.path,
    )
    rows = np.concatenate([train, test])
    x = np.zeros((len(paths), tower.d_pooled), dtype=np.float32)
    x[rows] = embed(tower, [paths[i] for i in rows])
    test, train = (part[np.isfinite(x[part]).all(1)] for part in (test, train))
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
        said = tower.encode_text(list(fact.said)).mean(0)
        denied = tower.encode_text(list(fact.denied) or ["a lesion"]).mean(0)
        prompt = x[seen] @ (said - denied).detach().numpy()
        found[fact.name] = {
            "n": len(seen),
            "n_pos": n_pos,
            "probe": auroc(y[seen], score),
            "probe_ci": auroc_interval(y[seen], score, groups[seen], seed=seed),
            "prompt": auroc(y[seen], prompt),
            "prompt_ci": auroc_interval(y[seen], prompt, groups[seen], seed=seed),
        }
    return found
