"""Latents against labels: the best single latent for each concept, and its lift share.

Lift share = (AUPRC of the best latent − prevalence) / (AUPRC of a supervised linear probe on the
pooled embedding − prevalence). The best latent has the highest harmonic mean of its AUPRC on train
and on val: val alone has too few positives for a rare concept, and on train alone a latent that
memorised its images would win. It is scored on test; the probe is fitted on train. Interval:
bootstrap over groups, jointly for latent, probe and prevalence. Undefined where the denominator is
below 0.10. Residual latents of a consensus dictionary are no candidates. Where the SAE is the reference dictionary of
the model, the latent is the one that was best on the images of the reference, and there is no probe.

The best pair is the best latent with a second one, joined by a logistic regression, both chosen on train and val.
A concept is absent from the dictionary if the probe sees it and the lift share of the best latent is below
ABSENT: it can be taught (`dermaudit concepts teach`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.sae.evaluation.lift import choice_table, lift_share
from dermaudit.sae.run_data import RunData, Truth
from dermaudit.stats.intervals import (
    MIN_CELL,
    GroupBootstrap,
    auprc,
    auprc_draws,
    auroc,
    auroc_interval,
    percentile_interval,
)

from ..naming.reference_names import best_latents, judged_rows

PARTNERS = 32  # latents at most that are tried beside the best one
ABSENT = 0.5  # lift share


@dataclass
class LabelEvidence:
    """One row of labels.parquet; None where something could not be measured (then `reason`)."""

    concept: str
    type: str
    site: str | None = None
    latent: int | None = None
    auprc: float | None = None
    auprc_lo: float | None = None
    auprc_hi: float | None = None
    auroc: float | None = None
    auroc_lo: float | None = None
    auroc_hi: float | None = None
    probe_auprc: float | None = None
    probe_auroc: float | None = None
    prevalence: float | None = None
    n: int = 0
    n_pos: int = 0
    lift_share: float | None = None
    lift_share_lo: float | None = None
    lift_share_hi: float | None = None
    pair_site: str | None = None  # the second latent of the best pair
    pair_latent: int | None = None
    pair_auprc: float | None = None
    pair_lift_share: float | None = None
    absent: bool | None = None  # the probe sees the concept, and no latent does
    reason: str | None = None


def latents_by_label(data: RunData, *, seed: int = 0, n_draws: int = 1000) -> list[LabelEvidence]:
    """The evidence for every known concept of the run, artifacts first."""
    truths = sorted(data.truth.values(), key=lambda t: (t.type != "artifact", t.type, t.name))
    if truths and (best := best_latents(data)):
        return [_by_reference(data, truth, best.get(truth.name), seed=seed) for truth in truths]
    tables = _auprc_by_site(data, truths)
    return [
        _one(data, truth, i, tables, seed=seed, n_draws=n_draws) for i, truth in enumerate(truths)
    ]


def _auprc_by_site(data: RunData, truths: list[Truth]) -> dict[str, np.ndarray]:
    """Per site the `choice_table` of every truth and latent: (truths, latents)."""
    splits = [np.flatnonzero(data.rows(split)) for split in ("train", "val")]
    if not truths or not all(map(len, splits)):
        return {}
    values = np.stack([truth.values for truth in truths], axis=1)
    found = {}
    for site in data.sites:
        codes, count = data.codes(site).csr(), data.n_concepts(site)
        train, val = ((codes[rows, :count].toarray(), values[rows]) for rows in splits)
        found[site] = choice_table(train, val)
    return found


def ranked_latents(tables: dict[str, np.ndarray], index: int) -> list[tuple[str, int]]:
    """Return (site, latent) by descending AUPRC for one truth; equal ones by site and number, undefined ones not."""
    scored = [
        (-value, site, latent)
        for site, table in tables.items()
        for latent, value in enumerate(table[index])
        if np.isfinite(value)
    ]
    return [(site, latent) for _, site, latent in sorted(scored)]


def _best_partner(
    data: RunData, truth: Truth, ranked: list[tuple[str, int]]
) -> tuple[tuple[str, int], np.ndarray] | None:
    """Return the latent that makes the best pair with the first of `ranked` on train and val, and the score (n,)
    of the pair for every image.
    """
    from sklearn.linear_model import LogisticRegression

    seen = truth.known(data.rows("train", "val"))
    y = truth.values[seen]
    codes = [data.codes(site).column(latent) for site, latent in ranked[: PARTNERS + 1]]
    best = None
    for partner, column in zip(ranked[1:], codes[1:], strict=False):
        both = np.stack([codes[0], column], axis=1)
        both = both / (both[seen].std(0) + 1e-9)
        score = LogisticRegression().fit(both[seen], y).decision_function(both)
        value = auprc(y, score[seen])
        if best is None or value > best[0]:
            best = value, partner, score
    return None if best is None else best[1:]


def _by_reference(
    data: RunData, truth: Truth, best: tuple[str, int] | None, *, seed: int
) -> LabelEvidence:
    """Return the evidence for the latent that was the best one on the images of the reference. It is scored on all
    images of the run, none of which had a part in the choice.
    """
    known = truth.known(judged_rows(data))
    y, groups = truth.values[known], data.groups[known]
    out = LabelEvidence(truth.name, truth.type, n=len(known), n_pos=int(y.sum()))
    if best is None:
        out.reason = "the reference has no label of this concept"
        return out
    out.site, out.latent = best
    if len(known) < MIN_CELL or out.n_pos < 5 or out.n_pos == len(known):
        out.reason = f"n too small: {out.n_pos} of {len(known)} labelled images"
        return out
    score = data.codes(out.site).column(out.latent)[known]
    out.prevalence = float(y.mean())
    out.auprc, out.auroc = auprc(y, score), auroc(y, score)
    draws = auprc_draws(y, [score], GroupBootstrap(groups, 1000, seed).matrix())
    out.auprc_lo, out.auprc_hi = percentile_interval(draws[:, 0])
    out.auroc_lo, out.auroc_hi = auroc_interval(y, score, groups, seed=seed)
    out.reason = "no lift share: with the reference dictionary no probe is fitted"
    return out


def _one(
    data: RunData, truth: Truth, index: int, tables: dict, *, seed: int, n_draws: int
) -> LabelEvidence:
    test, train = truth.known(data.rows("test")), truth.known(data.rows("train"))
    y = truth.values[test]
    out = LabelEvidence(truth.name, truth.type, n=len(test), n_pos=int(y.sum()))
    if len(test) < MIN_CELL or out.n_pos < 5 or out.n_pos == len(test):
        out.reason = f"n too small: {out.n_pos} of {len(test)} labelled test images"
        return out
    out.prevalence = float(y.mean())
    ranked = ranked_latents(tables, index)
    if not ranked:
        out.reason = "no positive or no negative image in train or val: no latent can be chosen"
        return out
    out.site, out.latent = ranked[0]
    score = data.codes(out.site).column(out.latent)[test]
    try:
        probe = fit_probe(data.pooled[train], truth.values[train], data.groups[train], seed=seed)
    except EvidenceError as error:
        out.reason = error.message
        return out
    ceiling = probe_score(probe, data.pooled[test])
    bootstrap = GroupBootstrap(data.groups[test], n_draws, seed)
    draws = auprc_draws(y, [score, ceiling], bootstrap.matrix())
    out.auprc, out.probe_auprc = auprc(y, score), auprc(y, ceiling)
    out.auprc_lo, out.auprc_hi = percentile_interval(draws[:, 0])
    out.auroc = auroc(y, score)
    out.auroc_lo, out.auroc_hi = auroc_interval(y, score, data.groups[test], seed=seed)
    out.probe_auroc = auroc(y, ceiling)
    denominator = out.probe_auprc - out.prevalence
    out.lift_share = lift_share(out.auprc, out.probe_auprc, out.prevalence)
    if out.lift_share is None:
        out.reason = f"lift share undefined: probe AUPRC − prevalence = {denominator:.3f} < 0.10"
        return out
    out.absent = out.lift_share < ABSENT
    pair = _best_partner(data, truth, ranked)
    if pair is not None:
        (out.pair_site, out.pair_latent), together = pair
        out.pair_auprc = auprc(y, together[test])
        out.pair_lift_share = lift_share(out.pair_auprc, out.probe_auprc, out.prevalence)
    spans = draws[:, 1] - draws[:, 2]
    shares = np.divide(
        draws[:, 0] - draws[:, 2], spans, out=np.full(len(spans), np.nan), where=spans > 0.01
    )
    out.lift_share_lo, out.lift_share_hi = percentile_interval(shares)
    return out
