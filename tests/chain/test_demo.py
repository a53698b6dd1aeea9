"""What the demo finds, and the JSON that it prints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parent / "golden" / "audit.json"


def shape(value: Any, path: str = "") -> Any:
    """The kinds in a JSON value; maps from names to alike things are one entry '*'."""
    if isinstance(value, dict):
        if path in ("/sae", "/concepts", "/suppression", "/seconds"):
            kinds = [shape(v, f"{path}/*") for v in value.values()]
            merged: dict[str, Any] = {}
            for kind in kinds:
                if isinstance(kind, dict):
                    for key in kind:
                        merged.setdefault(key, "any")
                else:
                    return {"*": "number"}
            return {"*": sorted(k for k in merged if not k.endswith("reason"))}
        return {
            k: shape(v, f"{path}/{k}") for k, v in sorted(value.items()) if not k.endswith("reason")
        }
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "list" if isinstance(value, list) else "text" if isinstance(value, str) else "null"


def test_the_json_has_the_documented_shape(demo):
    assert shape(demo.result) == json.loads(GOLDEN.read_text())


def test_nothing_is_nan_and_what_is_missing_has_a_reason(demo):
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, float):
            assert math.isfinite(value)

    walk(demo.result)
    for row in demo.result["concepts"].values():
        assert row["lift_share"] is not None or row["reason"]
    for row in demo.result["suppression"].values():
        assert row["worst_group_before"] is not None or row["reason"]


def test_the_planted_artifacts_are_found(demo):
    concepts = demo.result["concepts"]
    for name in ("dark_corner", "patch"):  # what the shipped model sees well (README)
        row = concepts[name]
        assert row["type"] == "artifact"
        assert row["auprc"] > row["prevalence"] + 0.2
        assert row["auprc_ci"][0] <= row["auprc"] <= row["auprc_ci"][1]


def test_permuted_activations_name_almost_nothing(demo):
    naming = demo.result["naming"]
    assert naming["named"] > 0
    assert naming["named_under_permutation"] <= 0.05 * (naming["named"] + naming["unnamed"])


def test_sae_lens_gives_the_same_codes(demo):
    import torch
    from sae_lens import SAE

    from dermaudit.sae import ActivationStore, ThresholdSAE

    for site in demo.result["sae"]:
        ours = ThresholdSAE.load(demo.run / "sae" / site)
        theirs = SAE.load_from_disk(str(demo.run / "sae" / site))
        acts = ActivationStore.open(demo.run / "embeddings" / site).read()[0]
        x = torch.from_numpy(acts.reshape(-1, acts.shape[-1])[:2000].astype(np.float32))
        away = (ours.pre(x) - ours.threshold).abs() > 1e-4
        with torch.no_grad():
            difference = (ours.encode(x) - theirs.encode(x)).abs()
        assert float(difference[away].max()) < 1e-5


def test_images_without_the_artifact_latents_come_back_bit_for_bit(demo):
    import torch

    from dermaudit.concepts.recipes.recipe import SuppressionRecipe
    from dermaudit.concepts.suppression.combined import make_suppressor
    from dermaudit.run.directory import open_run
    from dermaudit.sae.run_data import RunData

    data = RunData(open_run(demo.run))
    recipes = sorted((demo.run / "recipes").glob("*.recipe.json"))
    assert recipes
    for path in recipes:
        module = make_suppressor([SuppressionRecipe.load(path)]).module
        done = module.apply_to(torch.from_numpy(data.pooled))
        quiet = ~done.fired.numpy()
        assert quiet.any()
        assert np.array_equal(
            done.x.numpy()[quiet].view(np.uint32), data.pooled[quiet].view(np.uint32)
        )


def test_no_figure_of_suppression_is_on_images_that_the_model_was_trained_on(demo):
    split = np.array(pq.read_table(demo.run / "images.parquet")["split"].to_pylist())
    files = list((demo.run / "suppression").glob("*.parquet"))
    assert files
    for path in files:
        assert set(split[pq.read_table(path)["row"].to_numpy()]) == {"val", "test"}


def test_the_report_is_there(demo):
    text = (demo.run / "report" / "index.html").read_text()
    assert "ruler" in text and "not a medical device" in text
