"""Concept bottlenecks at equal NEC: SAE codes, the predefined vocabulary, random words, full probe.

NEC (number of effective concepts, VLG-CBM arXiv 2408.01432): an L1 path on train is followed until
NEC concepts have weight, the NEC largest are kept and refitted; AUROC on test with an interval over
groups. All kinds use the same rows, standardisation and refit. Diagnosis words are kept out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.sae.run_data import RunData
from dermaudit.stats.intervals import (
    MIN_CELL,
    GroupBootstrap,
    auroc,
    auroc_draws,
    auroc_interval,
    percentile_interval,
)

from ..vocabulary.vocabulary import Vocabulary

NEC = 5
RANDOM_DRAWS = 10


@dataclass
class Bottleneck:
    """One row of bottlenecks.parquet."""

    task: str
    kind: str
    nec: int | None
    auroc: float
    lo: float
    hi: float
    n: int
    n_pos: int
    concepts: str  # JSON: {name or site/latent: weight}


def compare(
    data: RunData,
    vocabulary: Vocabulary,
    vectors: np.ndarray,
    distractors: np.ndarray,
    *,
    task: str = "mel",
    nec: int = NEC,
    seed: int = 0,
) -> list[Bottleneck]:
    """Bottlenecks for `task` (a label) against the rest. EvidenceError when test is too small."""
    y = np.where(data.labels == "", np.nan, (data.labels == task).astype(float))
    known = np.isfinite(y)
    train = np.flatnonzero(data.rows("train") & known)
    test = np.flatnonzero(data.rows("test") & known)
    n_pos = int(y[test].sum())
    if min(n_pos, len(test) - n_pos) < MIN_CELL or y[train].sum() < MIN_CELL:
        raise EvidenceError(
            f"too few images for the bottlenecks of '{task}': {n_pos} of {len(test)} in test, "
            f"{int(y[train].sum())} of {len(train)} in train",
            f"at least {MIN_CELL} of each kind are needed",
            {"n": len(test), "n_pos": n_pos},
        )
    bare = [i for i, concept in enumerate(vocabulary.concepts) if concept.type != "diagnosis"]
    names = [vocabulary.concepts[i].id for i in bare]
    groups = data.groups

    def one(kind: str, features: np.ndarray, labels: list[str]) -> tuple[Bottleneck, np.ndarray]:
        score, weights = sparse_head(
            features, y, train, test, groups, nec=min(nec, features.shape[1]), seed=seed
        )
        low, high = auroc_interval(y[test], score, groups[test], seed=seed)
        named = json.dumps({labels[j]: round(float(w), 5) for j, w in weights})
        row = Bottleneck(task, kind, nec, auroc(y[test], score), low, high, len(test), n_pos, named)
        return row, score

    sae_features = np.hstack([data.codes(site).csr().toarray() for site in data.sites])
    sae_names = [f"{site}/{j}" for site in data.sites for j in range(data.codes(site).shape[1])]
    rows = [
        one("sae", sae_features, sae_names)[0],
        one("vocabulary", data.pooled @ vectors[bare].T, names)[0],
    ]
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(RANDOM_DRAWS if len(distractors) else 0):
        pick = generator.choice(len(distractors), min(len(bare), len(distractors)), replace=False)
        words = [vocabulary.distractors[j] for j in pick]
        drawn.append(one("random", data.pooled @ distractors[pick].T, words))
    if drawn:
        scores = [score for _, score in drawn]
        weights = GroupBootstrap(groups[test], 400, seed).matrix()
        means = np.mean([auroc_draws(y[test], score, weights) for score in scores], axis=0)
        low, high = percentile_interval(means)
        mean = float(np.mean([row.auroc for row, _ in drawn]))
        rows.append(
            Bottleneck(task, "random", nec, mean, low, high, len(test), n_pos, drawn[0][0].concepts)
        )
    probe = fit_probe(data.pooled[train], y[train], groups[train], seed=seed)
    score = probe_score(probe, data.pooled[test])
    low, high = auroc_interval(y[test], score, groups[test], seed=seed)
    rows.append(
        Bottleneck(task, "probe", None, auroc(y[test], score), low, high, len(test), n_pos, "{}")
    )
    return rows


def sparse_head(
    features: np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    groups: np.ndarray,
    *,
    nec: int,
    seed: int,
) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Scores on test of a logistic head with exactly `nec` features, and (feature, weight) pairs."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = features[train].mean(0), features[train].std(0)
    usable = np.flatnonzero(scale > 1e-9)
    z = (features[:, usable] - mean[usable]) / scale[usable]
    target = y[train]
    # The smallest C at which anything enters: the largest correlation with the residual.
    largest = np.abs(z[train].T @ (target - target.mean())).max()
    chosen = np.argsort(-np.abs(z[train].T @ (target - target.mean())), kind="stable")[:nec]
    c = 1.0 / max(largest, 1e-9)
    for _ in range(60):
        c *= 1.15
        model = LogisticRegression(
            C=c,
            l1_ratio=1.0,
            solver="liblinear",
            intercept_scaling=10,
            max_iter=400,
            random_state=seed,
        ).fit(z[train], target)
        weight = np.abs(model.coef_[0])
        if (weight > 0).sum() >= nec:
            chosen = np.argsort(-weight, kind="stable")[:nec]
            break
    head = fit_probe(z[train][:, chosen], target, groups[train], seed=seed)
    weights = head.direction()[1] * 2
    return probe_score(head, z[test][:, chosen]), [
        (int(usable[j]), float(w)) for j, w in zip(chosen, weights, strict=True)
    ]
