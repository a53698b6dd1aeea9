"""Why activations of two dictionaries of disjoint halves agree less than their directions (pooled site of a run).

    dermaudit fit --consensus --run RUN; python tests/benchmarks/bench_half_activations.py RUN

Rank correlations on test images of latents that are matched with a cosine of .7 or more, with other encoders for the
same directions; and what labels can do at most: probes of the labelled concepts, fitted on each half.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch

from dermaudit.sae.evaluation.halves import first_latents, rank_correlations
from dermaudit.sae.evaluation.stability import SHARED, match, unit
from dermaudit.sae.inference.model import ThresholdSAE
from dermaudit.sae.run_data import POOLED, RunData
from dermaudit.sae.training.dictionary import disjoint_halves
from dermaudit.sae.training.site_rows import SiteRows


def encoders(run: RunData, halves: list[ThresholdSAE]) -> dict[str, list[np.ndarray]]:
    """Return {encoder: activations (test images, first latents) of each half}."""
    from sklearn.decomposition import sparse_encode

    train, test = (run.pooled[run.rows(split)] for split in ("train", "test"))
    found: dict[str, list[np.ndarray]] = {}
    for sae in halves:
        own = first_latents(sae)
        directions, origin = unit(own.W_dec.numpy()), own.b_dec.numpy()
        codes = {
            split: own.encode(torch.from_numpy(x)).numpy()
            for split, x in (("train", train), ("test", test))
        }
        projected = (test - origin) @ directions.T
        of_train = (train - origin) @ directions.T
        share = (codes["train"] > 0).mean(0)
        threshold = [np.quantile(of_train[:, j], 1 - share[j]) for j in range(own.d_sae)]
        rows = (test - sae.b_dec.numpy()).astype(float)
        atoms = unit(sae.W_dec.numpy()).astype(float)
        lasso = sparse_encode(rows, atoms, algorithm="lasso_cd", alpha=0.1, positive=True)
        for name, values in (
            ("its own encoder", codes["test"]),
            ("its own encoder, before the thresholds", (test - origin) @ own.W_enc.numpy()),
            ("the decoder as encoder, as often active", projected * (projected > threshold)),
            ("projection onto the direction", projected),
            ("positive lasso with all latents", lasso[:, : own.d_sae]),
        ):
            found.setdefault(name, []).append(values)
    return found


def probes(run: RunData) -> tuple[float, float, int]:
    """Return the mean rank correlation on test images and the mean cosine of probes of two halves, and their number."""
    from scipy.stats import spearmanr
    from sklearn.linear_model import LogisticRegression

    data = SiteRows.open(run.run, POOLED, run.splits)
    test, found = run.pooled[run.rows("test")], []
    for truth in run.truth.values():
        scores, weights = [], []
        for half in disjoint_halves(data, 0):
            rows = half.train.index[np.isfinite(truth.values[half.train.index])]
            y = truth.values[rows]
            if y.sum() >= 10:
                fitted = LogisticRegression(C=10.0, max_iter=2000, class_weight="balanced")
                fitted.fit(10 * run.pooled[rows], y)
                scores.append(fitted.decision_function(10 * test))
                weights.append(unit(fitted.coef_)[0])
        if len(scores) == 2:
            found.append((spearmanr(*scores)[0], weights[0] @ weights[1]))
    correlation, cosine = np.mean(found, axis=0)
    return float(correlation), float(cosine), len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    run = RunData.open(parser.parse_args().run)
    run.run.require(f"seeds:{POOLED}")
    halves = [ThresholdSAE.load(run.run.files.half(POOLED, number)) for number in (1, 2)]
    a, b = (unit(first_latents(sae).W_dec.numpy()) for sae in halves)
    pairs = match(a @ b.T)
    near = (a @ b.T)[pairs] >= SHARED
    print(f"{near.sum()} pairs of latents, mean cosine {(a @ b.T)[pairs][near].mean():.2f}")
    for name, codes in encoders(run, halves).items():
        values = rank_correlations(codes, (pairs[0][near], pairs[1][near]))
        print(f"  {name:<42} rank correlation {np.nanmean(values):.2f}")
    correlation, cosine, count = probes(run)
    print(f"  probes of {count} labels: rank correlation {correlation:.2f}, cosine {cosine:.2f}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
