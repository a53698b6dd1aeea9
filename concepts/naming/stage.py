"""The stage `name`: names made on train and val images, judged against labels on test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dermaudit.console import say
from dermaudit.failpoints import hit
from dermaudit.files import write_json, write_parquet
from dermaudit.run.directory import Run
from dermaudit.sae.run_data import RunData
from dermaudit.stats.intervals import auprc_table

from ..stages import finished_fits
from ..suppression.recipe import rounded
from ..vocabulary.vocabulary import Vocabulary
from . import permutation as naming

TOP_ROWS = 24


def name_run(
    run: Run, vocabulary: Vocabulary, tower: Any, *, seed: int = 0, force: bool = False
) -> dict[str, Any]:
    """`concepts.parquet` and `naming.json`. Names are made on train and val, judged on test."""
    fits = finished_fits(run)
    upstream = ["images", "embed", *fits]

    def make() -> tuple[list[Path], dict[str, Any]]:
        data = RunData(run)
        vectors, distractors = vocabulary.text_vectors(tower)
        rows, permuted = [], 0
        seen = data.rows("train", "val")
        for site in data.sites:
            codes = data.codes[site].csr()
            names = naming.name_latents(
                codes[np.flatnonzero(seen)].toarray(),
                data.pooled[seen],
                vectors,
                distractors,
                vocabulary,
                seed=seed,
            )
            permuted += names.named_under_permutation
            rows += _site_rows(data, site, names, vocabulary)
        judged = _judge(data, rows)
        alive, named = len(rows), sum(row["name"] is not None for row in rows)
        figures = {
            "named": named,
            "unnamed": alive - named,
            "coverage": named / alive if alive else None,
            "named_under_permutation": permuted,
            **judged,
        }
        write_parquet(run.file("concepts.parquet"), _concept_table(rows))
        figures = rounded(figures)
        write_json(
            run.file("naming.json"),
            {**figures, "vocabulary": vocabulary.name, "vocabulary_sha256": vocabulary.sha256()},
        )
        hit("name")
        return [run.file("concepts.parquet"), run.file("naming.json")], figures

    figures = run.stage(
        "name",
        {"seed": seed, "vocabulary": vocabulary.sha256()},
        make,
        upstream=upstream,
        force=force,
    )
    say(
        f"  {figures['named']} latents named, {figures['unnamed']} unnamed; with activations permuted "
        f"{figures['named_under_permutation']} would be named; of {figures['n_judged']} names with labels "
        + (
            f"{figures['wrong_among_named']:.0%} are wrong"
            if figures["wrong_among_named"] is not None
            else "none can be judged"
        )
    )
    return {"run": str(run.path), **figures}


def _site_rows(
    data: RunData, site: str, names: naming.Names, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    codes = data.codes[site]
    rows = []
    active = codes.n_active()
    for latent in np.flatnonzero(active):
        column = codes.column(int(latent))
        top = np.argsort(-column, kind="stable")[: min(TOP_ROWS, int(active[latent]))]
        word = int(names.word[latent])
        concept = vocabulary.concepts[word] if word >= 0 else None
        rows.append(
            {
                "site": site,
                "latent": int(latent),
                "name": concept.id if concept else None,
                "type": concept.type if concept else None,
                "z": _number(names.z[latent]),
                "p_null": _number(names.p_null[latent]),
                "q": _number(names.q[latent]),
                "p_correct": None,
                "rivals": names.rivals[latent],
                "n_active": int(active[latent]),
                "frequency": float(active[latent] / data.n),
                "top_rows": [int(row) for row in top],
                "label_concept": None,
                "label_auprc": None,
                "wrong": None,
                "reason": names.reason[latent],
            }
        )
    return rows


def _judge(data: RunData, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Names against labels, on test: a name is wrong when its latent ranks another labelled concept
    better (AUPRC above prevalence, as a share of what is possible), or its own no better than chance.
    The label shown beside a latent (`label_concept`) is chosen on train and val, scored on test."""
    truths = list(data.truth.values())
    test, seen = (np.flatnonzero(data.rows(*s)) for s in (("test",), ("train", "val")))
    empty = {"n_judged": 0, "wrong_among_named": None}
    if not truths or not len(test):
        return empty
    table, lift = _auprc_and_lift(data, test)
    _, choice = _auprc_and_lift(data, seen)
    index = {truth.name: i for i, truth in enumerate(truths)}
    judged = wrong = 0
    for row in rows:
        above = lift[row["site"]][:, row["latent"]]
        if not np.isfinite(above).any():
            continue
        best = int(np.nanargmax(above))
        known = np.where(np.isfinite(above), choice[row["site"]][:, row["latent"]], np.nan)
        if np.isfinite(known).any():
            label = int(np.nanargmax(known))
            row["label_concept"] = truths[label].name
            row["label_auprc"] = float(table[row["site"]][label, row["latent"]])
        if row["name"] in index and np.isfinite(above[index[row["name"]]]):
            own = above[index[row["name"]]]
            row["wrong"] = bool(own <= 0 or own < above[best] - 1e-12)
            judged += 1
            wrong += row["wrong"]
    return {"n_judged": judged, "wrong_among_named": wrong / judged if judged else None}


def _auprc_and_lift(data: RunData, rows: np.ndarray) -> tuple[dict, dict]:
    """Per site (truths, d_sae): the AUPRC on `rows`, and how far above prevalence as a share of what
    is possible (nan for truths with under 5 positives there)."""
    values = np.stack([truth.values[rows] for truth in data.truth.values()], 1)
    known, positives = np.isfinite(values).sum(0), np.nansum(values, 0)
    prevalence = np.where(positives >= 5, positives / np.maximum(known, 1), np.nan)
    table = {
        site: auprc_table(data.codes[site].csr()[rows].toarray(), values) for site in data.sites
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = {
            s: (ap - prevalence[:, None]) / (1 - prevalence[:, None]) for s, ap in table.items()
        }
    return table, lift


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _concept_table(rows: list[dict[str, Any]]) -> pa.Table:
    kinds = {
        "site": pa.string(),
        "latent": pa.int64(),
        "name": pa.string(),
        "type": pa.string(),
        "z": pa.float64(),
        "p_null": pa.float64(),
        "q": pa.float64(),
        "p_correct": pa.float64(),
        "rivals": pa.string(),
        "n_active": pa.int64(),
        "frequency": pa.float64(),
        "top_rows": pa.list_(pa.int64()),
        "label_concept": pa.string(),
        "label_auprc": pa.float64(),
        "wrong": pa.bool_(),
        "reason": pa.string(),
    }
    return pa.table(
        {
            name: pa.array([rounded(row[name], 9) for row in rows], kind)
            for name, kind in kinds.items()
        }
    )
