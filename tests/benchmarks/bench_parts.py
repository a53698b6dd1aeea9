"""Does each part of pretraining earn its place? CLIP alone, + stage 1, + MAKE, several seeds, on one data set.

    python tests/benchmarks/bench_parts.py DATA --recipe dermoscopy-from-scratch --epochs 6 --stage1 2 --out DIR

Trains what is missing in DIR (`<part>-<seed>`, by `dermaudit pretrain`), then scores all of it on the test split of
--test (default DATA): zero-shot accuracy, retrieval, mean probe AUROC, mean AUROC by words alone. Figures are means
over seeds with the lowest and highest seed, and 95 % intervals by bootstrap over groups of what is resampled together:
every seed and part on the same test images. The intervals say how well the test set knows the mean of these seeds; the
spread over seeds stands beside them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from dermaudit.bench.inputs.prompts import built_in_classes, load_templates, truth_numbers
from dermaudit.bench.retrieval import encode_captions, ranks, recall_at
from dermaudit.data import Manifest
from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.pretrain.data.facts import facts_of
from dermaudit.pretrain.training.probe import embed_splits
from dermaudit.stats.intervals import MIN_CELL, GroupBootstrap, auroc_draws, percentile_interval
from dermaudit.towers import ZeroShot, load_model

ALONE = ["contrastive.clip_weight=1.0", "contrastive.aspect_weight=0", "contrastive.local_weight=0"]
MAKE = ["contrastive.loss=make", "contrastive.make.subcaptions=6"]


def parts(epochs: str, stage1: str) -> dict[str, list[str]]:
    base = [*ALONE, f"contrastive.epochs={epochs}"]
    first = [f"masked.epochs={stage1}"]
    return {
        "clip": [*base, "masked.epochs=0"],
        "stage1": [*base, *first],
        "make": [*base, *first, *MAKE],
    }


def measures(tower, manifest: Manifest, weights: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """{measure: (draws,)}: row 0 of `weights` (draws, n) is the sample itself."""
    x = embed_splits(tower, manifest)
    splits = np.asarray(manifest.splits)
    good = np.isfinite(x).all(1)
    test, train = (np.flatnonzero((splits == s) & good) for s in ("test", "train"))
    groups = np.asarray(manifest.groups, dtype=str)
    w = weights[:, test]
    total = w.sum(1)

    classes = built_in_classes()["ham"]
    truth = truth_numbers(manifest.labels, classes, manifest.path)[test]
    logits = ZeroShot(tower, classes, load_templates("dermaudit")).logits(torch.from_numpy(x[test]))
    right = (logits.argmax(1).numpy() == truth) & (truth >= 0)
    found = {"zero-shot accuracy": w @ right / total}

    captions = [str(c) for c in np.asarray(manifest.column("caption"), dtype=object)[test]]
    vectors, which = encode_captions(tower, captions)
    hits = [recall_at(r, k)[0] for r in ranks(x[test], vectors, which)]
    found[f"retrieval R@{k}"] = (w @ hits[0] + w @ hits[1]) / 2 / total

    probes, words = [], []
    for fact in facts_of(manifest):
        y = fact.values
        seen, fit = test[np.isfinite(y[test])], train[np.isfinite(y[train])]
        n_pos = int(y[seen].sum())
        if len(seen) < MIN_CELL or n_pos < 10 or n_pos > len(seen) - 10:
            continue
        try:
            probe = fit_probe(x[fit], y[fit], groups[fit])
        except EvidenceError:
            continue
        probes.append(auroc_draws(y[seen], probe_score(probe, x[seen]), weights[:, seen]))
        with torch.no_grad():
            said, denied = (
                tower.encode_text(list(texts) or ["a lesion"]).mean(0)
                for texts in (fact.wordings, fact.denials)
            )
        words.append(auroc_draws(y[seen], x[seen] @ (said - denied).numpy(), weights[:, seen]))
    # A draw without positives of a rare label leaves that label out of its mean.
    found[f"probe AUROC ({len(probes)} labels)"] = np.nanmean(probes, axis=0)
    found[f"AUROC by words ({len(words)} labels)"] = np.nanmean(words, axis=0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--epochs", default="6")
    parser.add_argument("--stage1", default="2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    plan = parts(options.epochs, options.stage1)
    for seed in range(options.seeds):
        for name, overrides in plan.items():
            out = options.out / f"{name}-{seed}"
            if not out.exists():
                sets = [word for text in overrides for word in ("--set", text)]
                subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        "dermaudit",
                        "pretrain",
                        options.recipe,
                        "--data",
                        str(options.data),
                        "--out",
                        str(out),
                        "--seed",
                        str(seed),
                        "--threads",
                        str(options.threads),
                        *sets,
                    ],
                    check=True,
                )
    torch.set_num_threads(options.threads)
    manifest = Manifest.load(options.test or options.data)
    bootstrap = GroupBootstrap(manifest.groups, 1000, 0)
    weights = np.concatenate([np.ones((1, manifest.n)), bootstrap.matrix()])
    table: dict[str, dict[str, list[np.ndarray]]] = {}
    for name in plan:
        for seed in range(options.seeds):
            folder = options.out / f"{name}-{seed}"
            for measure, draws in measures(
                load_model(str(folder)), manifest, weights, options.k
            ).items():
                table.setdefault(measure, {}).setdefault(name, []).append(draws)
    report(table, list(plan))


def report(table: dict[str, dict[str, list[np.ndarray]]], names: list[str]) -> None:
    for measure, by_part in table.items():
        print(f"\n{measure}")
        for name in names:
            seeds = [draws[0] for draws in by_part[name]]
            mean = np.mean(by_part[name], axis=0)
            low, high = percentile_interval(mean[1:])
            print(
                f"  {name:8s} {mean[0]:.3f} [{low:.3f}, {high:.3f}]  seeds {min(seeds):.3f} … {max(seeds):.3f}"
            )
        for before, after in itertools.pairwise(names):
            change = np.mean(by_part[after], axis=0) - np.mean(by_part[before], axis=0)
            low, high = percentile_interval(change[1:])
            each = [a[0] - b[0] for a, b in zip(by_part[after], by_part[before], strict=True)]
            print(
                f"  {after} − {before}: {change[0]:+.3f} [{low:+.3f}, {high:+.3f}]  "
                f"by seed {json.dumps([round(float(e), 3) for e in each])}"
            )


if __name__ == "__main__":
    main()
