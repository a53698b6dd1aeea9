"""A small but complete run: rendered phantoms, a random SAE, and every file of docs/formats.md.

The numbers in it mean nothing, so that tests can choose them. Its form is that of a real run
(test_toy_run.py compares it with the demo), and it is recorded by `Run` as the stages do.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dermaudit.concepts.naming.concept_rows import concept_table
from dermaudit.files import write_json, write_parquet
from dermaudit.run.directory import Run

POOLED, PATCHES = "visual.pooled", "visual.blocks.0.hook_resid_post"
N, D, D_SAE, GRID = 120, 12, 20, (4, 4)
IMAGE_ROWS = pa.schema(
    {
        "row": pa.int64(),
        "group4": pa.string(),
        "fold": pa.int64(),
        "p_before": pa.float64(),
        "p_after": pa.float64(),
        "p_threshold": pa.float64(),
        "positive_before": pa.bool_(),
        "positive_fixed": pa.bool_(),
        "positive_matched": pa.bool_(),
        "flipped": pa.bool_(),
        "cause": pa.string(),
        "fired": pa.bool_(),
    }
)
SPLITS = ["train"] * 36 + ["val"] * 20 + ["test"] * 64


def make_run(
    folder: Path,
    *,
    labels: bool = True,
    suppression: bool = True,
    licence: str | None = "CC0-1.0",
    k: int | None = None,
) -> Path:
    """Write a run at `folder`/run over images at `folder`/data; returns the run's folder. With `k` its
    SAEs are per-sample TopK."""
    run = Run.create(folder / "run", seed=7)
    table = _images(folder / "data", labels)
    if licence:
        write_json(
            folder / "data" / "data.json", {"layout": "phantom", "licence": licence, "n_images": N}
        )
    run.meta["model"] = {"name": "toy", "fingerprint": "f" * 64, "preprocess": {"size": 48}}
    run.meta["data"] = {
        "root": os.path.relpath(folder / "data"),
        "manifest": "manifest.parquet",
        "manifest_sha256": "a" * 64,
        "n_images": N,
        "n_skipped": 1,
    }
    write_parquet(run.file("images.parquet"), table)
    write_parquet(
        run.file("skipped.parquet"), pa.table({"image": ["bad.png"], "reason": ["truncated"]})
    )
    run.record(
        "images", {}, [run.file("images.parquet"), run.file("skipped.parquet")], summary={"n": N}
    )
    _activations(run, k)
    _concepts(run, labels)
    if labels:
        _labels(run)
        _bottlenecks_and_head(run)
    else:
        _refused(run)
    if suppression and labels:
        _suppression(run)
    return run.path


def _images(folder: Path, labels: bool) -> pa.Table:
    from dermaudit.files import sha256_file
    from dermaudit.phantom import load_bias_table, render, sample

    bias = load_bias_table(None)
    scenes = [sample(1000, i, bias) for i in range(N)]
    (folder / "images").mkdir(parents=True)
    names = [f"images/{i:03d}.png" for i in range(N)]
    for scene, name in zip(scenes, names, strict=True):
        Image.fromarray(render(scene, 48).rgb).save(folder / name)
    columns: dict[str, Any] = {
        "image": names,
        "split": SPLITS,
        "group": [f"g{i // 2}" for i in range(N)],
        "sha256": [sha256_file(folder / name) for name in names],
        "width": [48] * N,
        "height": [48] * N,
    }
    if labels:
        # A label that is markup: other people's text must stay text.
        columns["label"] = [
            "mel" if i % 3 == 0 else "<b>nv</b>" if i % 3 == 1 else "bkl" for i in range(N)
        ]
        columns["skin_tone"] = ["2" if i % 5 else None for i in range(N)]
        columns["artifact:ruler"] = [float(s.artifacts["ruler"]) for s in scenes]
        columns["artifact:ink"] = [
            None if i % 4 == 0 else float(s.artifacts["ink"]) for i, s in enumerate(scenes)
        ]
        columns["concept:streaks"] = [float(s.concepts["streaks"]) for s in scenes]
    return pa.table(columns)


def _activations(run: Run, k: int | None) -> None:
    import torch
    from activation_stores import write_store

    from dermaudit.sae import ThresholdSAE, TopKSAE
    from dermaudit.sae.inference.codes import write_codes

    generator = np.random.default_rng(3)
    pooled = generator.normal(size=(N, D)).astype(np.float32)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    patches = generator.normal(size=(N, GRID[0] * GRID[1], D)).astype(np.float16)
    files = []
    for site, acts, grid in ((POOLED, pooled, None), (PATCHES, patches, list(GRID))):
        store = write_store(
            run.file("embeddings", site),
            [(acts[rows], rows, rows) for rows in np.array_split(np.arange(N), 2)],
            site=site,
            grid=grid,
            dtype=str(acts.dtype),
            model_fingerprint="f" * 64,
            images_sha256="x",
        )
        files += store.files()
    run.record("embed", {}, files, upstream=["images"], summary={"sites": [POOLED, PATCHES]})
    for site, acts in ((POOLED, pooled), (PATCHES, patches)):
        decoder = generator.normal(size=(D_SAE, D)).astype(np.float32)
        decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
        threshold = 0.35 if site == POOLED else 1.5
        tensors = (
            torch.from_numpy(decoder.T.copy()),
            torch.from_numpy(decoder),
            torch.zeros(D_SAE),
            torch.zeros(D),
        )
        sae = TopKSAE(*tensors, k) if k else ThresholdSAE(*tensors, torch.full((D_SAE,), threshold))
        files = sae.save(run.file("sae", site))
        write_json(
            run.file("sae", site, "metrics.json"),
            {
                "d_in": D,
                "d_sae": D_SAE,
                "k": 4.0,
                "l0": 3.25,
                "fvu": 0.417,
                "dead": 0.05,
                "n_train": 36,
                "seed": 7,
            },
        )
        files += [
            run.file("sae", site, "metrics.json"),
            *write_codes(run.file("codes", site), sae, acts, site),
        ]
        run.record(f"fit:{site}", {}, files, upstream=["embed"])


def _concepts(run: Run, labels: bool) -> None:
    rows = []
    for site in (POOLED, PATCHES):
        indptr = np.load(run.file("codes", site, "csc_indptr.npy"))
        for latent in np.flatnonzero(np.diff(indptr)):
            named = latent % 3 != 2
            word = ("ruler", "streaks")[latent % 2] if named else None
            rows.append(
                {
                    "site": site,
                    "latent": int(latent),
                    "name": word,
                    "type": {"ruler": "artifact", "streaks": "clinical"}[word] if word else None,
                    "z": 2.5 - 0.05 * latent,
                    "p_null": 0.005 if named else 0.4,
                    "q": 0.012 if named else 0.4,
                    "p_correct": None,
                    "rivals": json.dumps([[word or "hair", 2.41], ["(sofa)", 1.93]]),
                    "n_active": int(indptr[latent + 1] - indptr[latent]),
                    "frequency": float(indptr[latent + 1] - indptr[latent]) / N,
                    "top_rows": [0, 1],
                    "label_concept": "ruler" if labels else None,
                    "label_auprc": 0.613 if labels else None,
                    "wrong": None,
                    "reason": None if named else "no word beats its null",
                    "agreement": None,
                    "half_names": None,
                    "verdict": "named" if named else "unnamed",
                    "one_of": None,
                    "named_by": "words" if named else None,
                }
            )
    write_parquet(run.file("concepts.parquet"), concept_table(rows))
    named = sum(row["name"] is not None for row in rows)
    write_json(
        run.file("naming.json"),
        {
            "named": named,
            "unnamed": len(rows) - named,
            "coverage": round(named / len(rows), 6),
            "n_judged": 4 if labels else 0,
            "wrong_among_named": 0.25 if labels else None,
            "named_under_permutation": 1,
            "two_halves": {},
            "verdicts": {"named": named, "unnamed": len(rows) - named},
            "wrong_tolerant": 0.25 if labels else None,
            "vocabulary": "toy",
            "vocabulary_sha256": "v",
        },
    )
    run.record(
        "name",
        {},
        [run.file("concepts.parquet"), run.file("naming.json")],
        upstream=["images", "embed", f"fit:{POOLED}", f"fit:{PATCHES}"],
    )


def _labels(run: Run) -> None:
    from dermaudit.concepts.annotation.lift_share import LabelEvidence

    rows = [
        LabelEvidence(
            "ruler",
            "artifact",
            POOLED,
            0,
            0.7123,
            0.6011,
            0.8034,
            0.8312,
            0.7523,
            0.9017,
            0.8241,
            0.9135,
            0.2034,
            64,
            13,
            0.8197,
            0.6871,
            0.9523,
        ),
        LabelEvidence(
            "streaks",
            "clinical",
            PATCHES,
            1,
            0.4127,
            0.3019,
            0.5238,
            0.6541,
            0.5437,
            0.7642,
            0.4611,
            0.7013,
            0.3815,
            64,
            24,
            reason="lift share undefined: probe AUPRC − prevalence = 0.080 < 0.10",
        ),
        LabelEvidence(
            "ink", "artifact", n=48, n_pos=2, reason="n too small: 2 of 48 labelled test images"
        ),
    ]
    write_parquet(run.file("labels.parquet"), pa.Table.from_pylist([asdict(row) for row in rows]))
    run.record(
        "annotate", {}, [run.file("labels.parquet")], upstream=["images", "embed", f"fit:{POOLED}"]
    )


def _bottlenecks_and_head(run: Run) -> None:
    from dermaudit.heads import LinearHead

    kinds = {
        "sae": (0.7731, f"{POOLED}/0"),
        "vocabulary": (0.7412, "ruler"),
        "random": (0.6623, "sofa"),
        "probe": (0.8514, None),
    }
    rows = [
        {
            "task": "mel",
            "kind": kind,
            "nec": None if word is None else 5,
            "auroc": at,
            "lo": at - 0.0511,
            "hi": at + 0.0413,
            "n": 64,
            "n_pos": 21,
            "concepts": json.dumps({word: 1.25} if word else {}),
        }
        for kind, (at, word) in kinds.items()
    ]
    write_parquet(run.file("bottlenecks.parquet"), pa.Table.from_pylist(rows))
    run.record("compare", {}, [run.file("bottlenecks.parquet")], upstream=["images"])
    weight = np.random.default_rng(5).normal(size=(3, D)).astype(np.float32)
    head = LinearHead(
        weight,
        np.zeros(3, np.float32),
        np.zeros(D, np.float32),
        np.ones(D, np.float32),
        ["<b>nv</b>", "bkl", "mel"],
        0.1,
        POOLED,
        36,
    )
    head.save(run.file("heads", "label.safetensors"))
    run.record(
        "heads",
        {},
        [run.file("heads", "label.safetensors")],
        upstream=["embed"],
        summary={
            "test": {
                "n": 64,
                "accuracy": 0.6094,
                "balanced_accuracy": 0.5871,
                "auroc:mel": [0.7919, 0.6812, 0.8925],
            }
        },
    )


def _refused(run: Run) -> None:
    """What the stages write for a data set without labels."""
    from dermaudit.concepts.annotation.lift_share import LabelEvidence

    empty = pa.Table.from_pylist([asdict(LabelEvidence("x", "artifact"))]).slice(0, 0)
    write_parquet(run.file("labels.parquet"), empty)
    run.record("annotate", {}, [run.file("labels.parquet")], upstream=["images"])
    for stage, name in (
        ("compare", "bottlenecks.reason.json"),
        ("heads", "heads/label.reason.json"),
    ):
        write_json(run.file(name), {"reason": "no labels: not measured", "numbers": {}})
        run.record(stage, {}, [run.file(name)], upstream=["images"])


def _suppression(run: Run) -> None:
    from dermaudit.concepts.recipes.recipe import SuppressionRecipe, sae_facts

    test = [i for i in range(N) if SPLITS[i] == "test"]
    truth = {i: i % 3 == 0 for i in test}
    rows = []
    for k, i in enumerate(test):
        # y=0 a=0 gets 40 images, the other cells fewer than 30.
        flipped = k % 8 == 0
        before = k % 16 == 0 if flipped else truth[i]
        cause = ("edit", "threshold", "both")[k // 8 % 3] if flipped else ""
        matched = before != flipped
        rows.append(
            {
                "row": i,
                "group4": f"y={int(truth[i])} a={int(k % 16 == 3)}",
                "fold": k % 5,
                "p_before": 0.31 + k / 200,
                "p_after": 0.22 + k / 300,
                "p_threshold": 0.5,
                "positive_before": before,
                "positive_fixed": matched if cause == "edit" else before,
                "positive_matched": matched,
                "flipped": flipped,
                "cause": cause,
                "fired": cause in ("edit", "both") or (not flipped and k % 5 == 0),
            }
        )
    pair = [0.6213, 0.5837]
    figures = {
        "site": POOLED,
        "method": "sae",
        "latents": [0, 3],
        "target": "mel",
        "strength": 0.9,
        "cross_group_auroc_before": 0.4213,
        "cross_group_auroc_after": 0.7837,
        "oracle": 0.8106,
        "gap_closed": 0.9309,
        "ci": [0.2714, 0.4531],
        "auroc_before": 0.7016,
        "auroc_after": 0.7428,
        "clean_auroc_delta": -0.0041,
        "clean_auroc_ci": [-0.0187, 0.0102],
        "worst_group_before": 0.4213,
        "worst_group_fixed": 0.4519,
        "worst_group_prevalence": 0.5837,
        **{
            f"{rate}_{when}": pair
            for rate in ("sensitivity", "specificity")
            for when in ("before", "fixed", "prevalence")
        },
        "flips": {"edit": 3, "threshold": 3, "both": 2},
        "identity_share": 0.7969,
        "stability": {"cosine": 0.9712, "low": 0.9611, "high": 0.9804, "halvings": 5},
        "random_beaten": 98,
        "random_changes": [round(-0.05 + 0.002 * i, 4) for i in range(100)],
        "n": {"y=1 a=1": 2},
        "n_scored": 64,
        "n_trap": 30,
        "insertion_residual": None,
        "insertion_residual_reason": "drawing ruler moves the prediction by 0.0021 only",
        "insertion_n": 40,
        "insertion_before": 0.0021,
        "insertion_after": 0.0009,
        "refused": [],
        "accepted_limits": None,
    }
    _recipe(
        run,
        "ruler",
        figures,
        SuppressionRecipe,
        sae_facts(run, POOLED),
        pa.Table.from_pylist(rows, IMAGE_ROWS),
        ["insertion_residual: too small an effect"],
    )
    why = "no image of this run has the label mel: nothing can depend on it"
    unmeasured = {
        "site": POOLED,
        "method": "name",
        "latents": [4],
        "reason": why,
        "refused": [why],
        "accepted_limits": "a try on images of another clinic",
    }
    _recipe(run, "hair", unmeasured, SuppressionRecipe, sae_facts(run, POOLED), None, [why])
    write_json(
        run.file("suppression", "ink.reason.json"),
        {"reason": "n too small to cross-fit: 2 images with y=1 a=1", "numbers": {"y=1 a=1": 2}},
    )
    run.record("recipe:ink", {}, [run.file("suppression", "ink.reason.json")], upstream=["images"])
    _verdict(run)


def _verdict(run: Run) -> None:
    from dermaudit.concepts.verdict.stage import SCHEMA

    drawn = {"change": 0.0311, "change_ci": [0.0112, 0.0523], "random_beaten": 96, "n": 40}
    figures = {
        "seen": 0.9122,
        "seen_ci": [0.8713, 0.9514],
        "aurocs": {"difference": None, "difference_ci": [None, None]},
        "change": -0.0812,
        "change_ci": [-0.1021, -0.0614],
        "random_beaten": 99,
        "decisions": 0.1317,
        "decisions_ci": [0.0613, 0.2019],
        "decisions_random": 0.0122,
        "n": 31,
        "drawn": drawn,
    }
    rows = [
        ("ruler", 0.9122, True, "without a threshold", -0.0041, "act", None, figures),
        ("ink", None, None, None, None, "not measured", "n too small: 2 images with it", None),
    ]
    columns = [
        dict(zip(SCHEMA.names, (*row[:-1], json.dumps(row[-1])), strict=True)) for row in rows
    ]
    write_parquet(run.files.verdict, pa.Table.from_pylist(columns, SCHEMA))
    run.record(
        "verdict", {}, [run.files.verdict], upstream=["images", "embed"], summary={"target": "mel"}
    )


def _recipe(
    run: Run,
    concept: str,
    figures: dict,
    kind: type,
    sae: dict,
    rows: pa.Table | None,
    limits: list[str],
) -> None:
    from dermaudit.concepts.recipes.distribution import distribution_of
    from dermaudit.concepts.recipes.weights import packed
    from dermaudit.sae import ThresholdSAE, load_sae
    from dermaudit.sae.run_data import RunData

    sae_of_run = load_sae(run.files.sae(POOLED))
    body = {
        "concept": concept,
        "target": "mel",
        "model": {"name": "toy", "fingerprint": "f" * 64, "preprocess": {}},
        "site": POOLED,
        "source": "sae",
        "sae": sae,
        "weights": packed(sae_of_run, figures["latents"])
        if isinstance(sae_of_run, ThresholdSAE)
        else None,
        "intercept": None,
        "accepted_limits": figures["accepted_limits"],
        "operation": {"mode": "subtract", "renormalise": True, "error_term": "kept"},
        "distribution": distribution_of(RunData(run).pooled, np.arange(N)),
        "latents": [{"latent": j, "why": {"auprc": 0.661}} for j in figures["latents"]],
        "effects": {},
        "limits": limits,
        "parent": None,
        "vocabulary_sha256": "",
        "data": {},
        "protocol": {},
    }
    files = [
        run.file("recipes", f"{concept}.recipe.json"),
        run.file("suppression", f"{concept}.json"),
    ]
    kind(body).save(files[0])
    write_json(files[1], figures)
    if rows is not None:
        files.append(run.file("suppression", f"{concept}.parquet"))
        write_parquet(files[-1], rows)
    run.record(
        f"recipe:{concept}", {}, files, upstream=["images", "embed", f"fit:{POOLED}", "name"]
    )
