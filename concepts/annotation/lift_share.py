"""Latents against labels: the best single latent for each concept, and its lift share.

Lift share = (AUPRC of the best latent − prevalence) / (AUPRC of a supervised linear probe on the
pooled embedding − prevalence). The latent is short-listed on train, chosen on val, scored on test;
the probe is fitted on train. Interval: bootstrap over groups, jointly for latent, probe and
prevalence. Undefined where the denominator is below 0.10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.sae.run_data import RunData, Truth
from dermaudit.stats.intervals import (
    MIN_CELL,
    GroupBootstrap,
    auprc,
    auprc_draws,
    auprc_table,
    auroc,
    auroc_interval,
    percentile_interval,
)

SHORTLIST = 32
MIN_DENOMINATOR = 0.10


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
    reason: str | None = None


def latents_by_label(data: RunData, *, seed: int = 0, n_draws: int = 1000) -> list[LabelEvidence]:
    """The evidence for every known concept of the run, artifacts first."""
    truths = sorted(data.truth.values(), key=lambda t: (t.type != "artifact", t.type, t.name))
    tables = {split: _auprc_by_site(data, truths, split) for split in ("train", "val")}
    return [
        _one(data, truth, i, tables, seed=seed, n_draws=n_draws) for i, truth in enumerate(truths)
    ]


def _auprc_by_site(data: RunData, truths: list[Truth], split: str) -> dict[str, np.ndarray]:
    """Per site the AUPRC of every latent for every truth on one split: (truths, d_sae)."""
    rows = np.flatnonzero(data.rows(split))
    values = np.stack([truth.values[rows] for truth in truths], axis=1) if truths else None
    if values is None or len(rows) == 0:
        return {}
    return {
        site: auprc_table(data.codes(site).csr()[rows].toarray(), values) for site in data.sites
    }


def choose_latent(
    train: dict[str, np.ndarray], val: dict[str, np.ndarray], index: int
) -> tuple[str, int] | None:
    """(site, latent): short-listed by AUPRC on train, the best of them on val; None without any."""
    listed = [
        (table[index, latent], site, int(latent))
        for site, table in train.items()
        for latent in np.argsort(-np.nan_to_num(table[index], nan=-1), kind="stable")[:SHORTLIST]
        if np.isfinite(table[index, latent])
    ]
    listed = sorted(listed, key=lambda entry: (-entry[0], entry[1], entry[2]))[:SHORTLIST]
    scored = [
        (val[site][index, latent], site, latent)
        for _, site, latent in listed
        if site in val and np.isfinite(val[site][index, latent])
    ]
    if not scored:
        return None
    _, site, latent = max(scored, key=lambda entry: (entry[0], entry[1], -entry[2]))
    return site, latent


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
    choice = choose_latent(tables["train"], tables["val"], index)
    if choice is None:
        out.reason = "no positive or no negative image in train or val: no latent can be chosen"
        return out
    out.site, out.latent = choice
    score = data.codes(out.site).column(out.latent)[test]
    try:
        probe = fit_probe(data.pooled[train], truth.values[train], data.groups[train], seed=seed)
    except EvidenceError as error:
        out.reason = error.message
        return out
    ceiling = probe_score(probe, data.pooled[test])
    bootstrap = GroupBootstrap(data.groups[test], n_draws, seed)
    draws = auprc_draws(y, [score, ceiling], bootstrap)
    out.auprc, out.probe_auprc = auprc(y, score), auprc(y, ceiling)
    out.auprc_lo, out.auprc_hi = percentile_interval(draws[:, 0])
    out.auroc = auroc(y, score)
    out.auroc_lo, out.auroc_hi = auroc_interval(y, score, data.groups[test], seed=seed)
    out.probe_auroc = auroc(y, ceiling)
    denominator = out.probe_auprc - out.prevalence
    if denominator < MIN_DENOMINATOR:
        out.reason = f"lift share undefined: probe AUPRC − prevalence = {denominator:.3f} < 0.10"
        return out
    out.lift_share = (out.auprc - out.prevalence) / denominator
    spans = draws[:, 1] - draws[:, 2]
    shares = np.divide(
        draws[:, 0] - draws[:, 2], spans, out=np.full(len(spans), np.nan), where=spans > 0.01
    )
    out.lift_share_lo, out.lift_share_hi = percentile_interval(shares)
    return out
