"""A per-sample TopK in a run: every command, in a real subprocess; and the editor that encodes it once."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from concept_world import DEAD, POOLED, RULER, D, basis_sae, tiny_tower, world, write_run

from dermaudit.concepts.recipes.recipe import SuppressionRecipe
from dermaudit.concepts.suppression.editor import Editor
from dermaudit.errors import StaleArtifactError
from dermaudit.heads import LinearHead
from dermaudit.run.directory import open_run
from dermaudit.sae import Codes, LatentSuppressor, TopKSAE, load_sae

K, N = 7, 2400


def basis_topk(k: int = K) -> TopKSAE:
    sae = basis_sae()
    return TopKSAE(sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, k, dict(sae.metadata))


def free_rows(x: np.ndarray):
    from scipy.sparse import csr_matrix

    return csr_matrix(basis_topk().encode(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("mode", ["subtract", "mean", "clamp", "scale", "reactive"])
def test_editor_is_the_suppressor_and_encodes_rows_once(mode, monkeypatch):
    x, free = world(300, seed=1).x, free_rows(world(200, seed=2).x)
    sae, calls = basis_topk(), []
    monkeypatch.setattr(
        TopKSAE, "encode", lambda self, rows: calls.append(len(rows)) or top_codes(self, rows)
    )
    editor = Editor(sae, mode, factor=0.5, free=free)
    for latents in ([RULER], [RULER, 5], [5, 2, DEAD]):
        z = free[:, latents].toarray()
        given = {
            "mean": {"level": torch.from_numpy(z.mean(0))},
            "clamp": {"level": torch.from_numpy(np.quantile(z, 0.95, axis=0)).float()},
            "scale": {"level": 0.5},
            "reactive": {"gate_level": float(np.quantile(z.sum(1).astype(np.float64), 0.95))},
        }.get(mode, {})
        expected = LatentSuppressor(sae, latents, mode=mode, **given).apply_to(torch.from_numpy(x))
        after = editor.rows(latents, x)
        np.testing.assert_allclose(after, expected.x, atol=1e-6)
        same = (after.view(np.uint32) == x.view(np.uint32)).all(1)
        np.testing.assert_array_equal(same, ~expected.fired.numpy())
        assert 0 < same.sum() < len(x)
    assert calls == [300]
    editor.rows([RULER], x[:100].copy())
    assert calls == [300, 100]


def top_codes(sae: TopKSAE, rows: torch.Tensor) -> torch.Tensor:
    pre = sae.pre(rows)
    least = pre.sort(-1, descending=True).values[:, sae.k - 1 : sae.k]
    return torch.where(pre >= least, pre.clamp_min(0), torch.zeros(()))


# ---- from the fit to the report


VERBS = """
import sys
from dermaudit.cli import main
run, out = sys.argv[1:]
short = ["--d-sae", "24", "--k", "7", "--samples", "80000", "--seeds", "0", "--no-metrics"]
for setting in ("lr=5e-3", "batch=128", "centre=false"):
    short += ["--set", setting]
for command in (
    ["fit", "--run", run, "--arch", "topk", "--set", "export=topk", *short],
    ["name", "--run", run],
    ["annotate", "--run", run],
    ["compare", "--run", run],
    ["heads", "--run", run],
    ["recipe", "make", "--run", run, "--concept", "sticker", "--method", "sae"],
    ["suppress", "--run", run, "--concept", "sticker", "--out", out],
    ["report", "--run", run],
):
    if code := main([*command, "--quiet"]):
        sys.exit(f"{command[0]}: {code}")
"""


@pytest.fixture(scope="module")
def done(run_python, tmp_path_factory):
    """(run, predictions.csv): a planted world through every command with a TopK of its own."""
    root = tmp_path_factory.mktemp("topk")
    tower = tiny_tower(root / "tower", D)
    from dermaudit.towers import load_model

    # A sticker: an artifact that is not drawn onto images, of which there are none here.
    w = world(N, seed=1)
    run = write_run(root / "run", w, **{"artifact:ruler": None, "artifact:sticker": w.a})
    run.meta["model"].update(name=str(tower), fingerprint=load_model(str(tower)).fingerprint)
    run.meta["stages"] = {n: s for n, s in run.meta["stages"].items() if not n.startswith("fit")}
    run.save()
    for part in ("sae", "codes"):
        shutil.rmtree(run.path / part)
    ended = run_python("-c", VERBS, run.path, root / "predictions.csv", timeout=300)
    assert ended.rc == 0, ended.stderr
    return open_run(run.path), root / "predictions.csv"


@pytest.mark.slow
def test_every_command_a_topk_of_the_run(done):
    run, _ = done
    sae = load_sae(run.file("sae", POOLED))
    assert isinstance(sae, TopKSAE) and sae.k == K
    stages = run.meta["stages"]
    assert {"name", "annotate", "compare", "heads", "recipe:sticker", "report"} <= stages.keys()
    for stage in stages:
        run.require(stage)
    codes = Codes(run.file("codes", POOLED)).csr()
    assert codes.getnnz(1).max() == K
    assert (run.path / "report" / "index.html").is_file()


@pytest.mark.slow
def test_recipe_of_a_topk_lifts_and_names_what_it_stands_on(done, tmp_path):
    run, _ = done
    path = run.file("recipes", "sticker.recipe.json")
    recipe = SuppressionRecipe.load(path)
    assert recipe.body["sae"]["k"] == K
    effects = recipe.body["effects"]
    assert effects["ci"][0] > 0 and effects["random_beaten"] >= 95
    assert recipe.body["weights"] is None, "which latents of a TopK fire depends on all of them"
    # Another k with the same weights is another SAE.
    shutil.copytree(run.path, tmp_path / "other")
    other = open_run(tmp_path / "other")
    cfg = other.file("sae", POOLED, "cfg.json")
    cfg.write_text(json.dumps({**json.loads(cfg.read_text()), "k": K - 1}))
    with pytest.raises(StaleArtifactError, match="made with another SAE"):
        recipe.check(other, path)


@pytest.mark.slow
def test_suppress_of_a_topk_by_hand(done):
    """x' = x − Σ z_j W_dec[j] of the recipe's latents, z the k largest of the row, through the head."""
    run, out = done
    recipe = SuppressionRecipe.load(run.file("recipes", "sticker.recipe.json"))
    sae = load_sae(run.file("sae", POOLED))
    x = world(N, seed=1).x
    latents = sorted(recipe.latents)
    z = top_codes(sae, torch.from_numpy(x))[:, latents].numpy()
    after = x - z @ sae.W_dec[latents].numpy()
    after /= np.linalg.norm(after, axis=1, keepdims=True)
    after = np.where((z > 0).any(1)[:, None], after, x)
    head = LinearHead.load(run.file("heads", "label.safetensors"))
    rows = list(csv.DictReader(out.read_text().splitlines()))
    found = np.array([[float(r[f"p_after:{c}"]) for c in head.classes] for r in rows])
    np.testing.assert_allclose(found, head.probs(after), atol=1e-4)
    np.testing.assert_array_equal([r["fired"] == "1" for r in rows], (z > 0).any(1))
    # Each latent alone: only it is taken off.
    column = head.classes.index("mel")
    for i, latent in enumerate(latents):
        alone = x - z[:, [i]] @ sae.W_dec[[latent]].numpy()
        alone /= np.linalg.norm(alone, axis=1, keepdims=True)
        change = (head.logits(alone) - head.logits(x))[:, column] * (z[:, i] > 0)
        said = [float(r[f"delta_logit:mel:{latent}"]) for r in rows]
        np.testing.assert_allclose(said, change, atol=2e-4)
