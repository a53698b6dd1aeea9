"""`concepts teach`: from a column, from two folders, what is recorded, what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from concept_world import basis, world, write_run
from PIL import Image

from dermaudit.concepts.recipes.recipe import SuppressionRecipe
from dermaudit.concepts.suppression import stage as recipes
from dermaudit.concepts.suppression.combined import make_suppressor
from dermaudit.concepts.teaching import stage as teaching
from dermaudit.errors import AlteredArtifactError, StaleArtifactError
from dermaudit.run.directory import open_run
from dermaudit.sae import LatentSuppressor, ThresholdSAE, load_sae


@pytest.fixture
def run(tmp_path):
    w = world(800)
    return write_run(
        tmp_path / "run",
        w,
        sha256=[f"{i:064d}" for i in range(w.n)],
        **{"artifact:words": ["yes"] * w.n},
    )


def teach(main, run, *flags):
    return main("concepts", "teach", *flags, "--run", run.path, "--json")


def test_by_a_column_it_is_written_as_an_sae_with_its_images(main, run):
    done = teach(main, run, "ruler")
    assert done.rc == 0, done.stderr
    found = done.json()
    assert found["concept"] == "ruler" and found["auroc"] > 0.95
    folder = run.path / "concept_latents" / "ruler"
    sae = load_sae(folder)
    assert isinstance(sae, ThresholdSAE) and sae.d_sae == 1 and sae.hook_name == "visual.pooled"
    # The planted direction of the artifact, seen from the mean of the rows.
    assert abs(float(sae.W_dec[0] @ torch.from_numpy(basis()[0]).float())) > 0.9
    known = json.loads((folder / "provenance.json").read_text())
    w = world(800)
    used = {int(entry["sha256"]): entry["present"] for entry in known["images"]}
    assert len(used) == found["n_with"] + found["n_without"]
    assert all(w.y[i] == 0 and w.splits[i] != "test" and w.a[i] == a for i, a in used.items())
    sizes = [point["n"] for point in found["learning_curve"]]
    assert sizes == [10, 25, 50] and "50 + 50" in done.stderr
    assert found["learning_curve"][-1]["auroc"] >= found["learning_curve"][0]["auroc"] - 0.02


def test_it_suppresses_the_artifact_on_test_images(main, run):
    assert teach(main, run, "ruler").rc == 0
    w, sae = world(800), load_sae(run.path / "concept_latents" / "ruler")
    x = torch.from_numpy(w.x[w.splits == "test"])
    a = w.a[w.splits == "test"]
    out = LatentSuppressor(sae, [0]).apply_to(x).x.numpy()
    direction = basis()[0]
    before = (x.numpy()[a == 1] @ direction).mean() - (x.numpy()[a == 0] @ direction).mean()
    after = (out[a == 1] @ direction).mean() - (out[a == 0] @ direction).mean()
    assert abs(after) < 0.2 * before


def test_the_same_command_again_keeps_it_and_an_altered_file_is_refused(main, run):
    first, second = teach(main, run, "ruler"), teach(main, run, "ruler")
    assert first.json() == second.json()
    weights = run.path / "concept_latents" / "ruler" / "sae_weights.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert teach(main, run, "ruler").rc == 0 and weights.stat().st_mtime_ns == stamp
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    from dermaudit.run.directory import open_run

    with pytest.raises(AlteredArtifactError, match="concept_latents/ruler") as refused:
        open_run(run.path).require("teach:ruler")
    assert f"dermaudit concepts teach ruler --run {run.path} --force" in str(refused.value.hint)


class ColourTower:
    """A tower whose embedding is the mean colour, and noise that depends on the image."""

    def preprocess(self, images):
        return torch.stack(
            [torch.from_numpy(np.asarray(im, dtype=np.float32)).mean((0, 1)) for im in images]
        )

    d_pooled = 8

    def encode_image(self, x, normalize=True):
        noise = torch.sin(x.sum(1, keepdim=True) * torch.arange(1, 6))
        return torch.nn.functional.normalize(torch.cat([x / 255, 0.2 * noise], 1), dim=1)


def folder_of(path, red, n=14, first=0):
    for i in range(first, first + n):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        pixels = np.kron(coarse, np.ones((4, 4, 1), np.uint8))
        pixels[..., 0] = (pixels[..., 0] * (0.3 + 0.7 * red)).astype(np.uint8)
        path.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


def test_by_two_folders_and_the_hint_has_their_flags(main, run, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "tower_of", lambda run, threads: ColourTower())
    red, blue = folder_of(tmp_path / "red", 1), folder_of(tmp_path / "blue", 0, first=50)
    done = teach(main, run, "redness", "--with", red, "--without", blue)
    assert done.rc == 0, done.stderr
    assert (done.json()["n_with"], done.json()["n_without"]) == (14, 14)
    from dermaudit.run.directory import open_run

    again = open_run(run.path).remake_command("teach:redness")
    assert f"--with {red} --without {blue}" in again
    shutil.copy(red / "0.png", blue / "same.png")
    done = teach(main, run, "redness", "--with", red, "--without", blue)
    assert done.rc == 2 and "1 images are in" in done.json()["error"]["message"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("rulr",), "unknown column of labels 'artifact:rulr'"),
        (("x", "--labels", "artifact:words"), "values that are not numbers"),
        (("../evil",), "cannot be the name of a concept"),
        (("ruler", "--with", "a"), "with and without the concept are needed"),
        (("ruler", "--labels", "l", "--with", "a", "--without", "b"), "two sources"),
    ],
)
def test_bad_input_is_one_sentence(main, run, flags, message):
    done = teach(main, run, *flags)
    assert done.rc == 2 and message in done.json()["error"]["message"]


def test_without_evidence_nothing_is_written(main, tmp_path):
    w = world(600)
    coin = np.random.default_rng(1).integers(0, 2, w.n).astype(float)
    few = np.where(np.arange(w.n) < 12, 1.0, 0.0)
    run = write_run(
        tmp_path / "run", w, sha256=["0"] * w.n, **{"artifact:coin": coin, "artifact:few": few}
    )
    for name, message in (("coin", "not told apart"), ("few", "too few images")):
        done = teach(main, run, name)
        assert done.rc == 3 and message in done.json()["error"]["message"], done.stdout
        assert not (run.path / "concept_latents" / name).exists()


def test_learning_curve_scores_no_group_that_was_drawn():
    from dermaudit.sae.concept_latents.learning_curve import learning_curve

    g = np.random.default_rng(0)
    base = g.standard_normal((200, 30))
    x = np.repeat(base, 4, axis=0) + 1e-3 * g.standard_normal((800, 30))
    present = np.repeat(np.arange(200) % 2, 4)  # noise, but equal in a group
    groups = np.repeat(np.arange(200), 4).astype(str)
    grouped = learning_curve(x, present, groups)
    alone = learning_curve(x, present, np.arange(800).astype(str))
    assert [p.n for p in grouped] == [10, 25, 50, 100, 200]
    assert grouped[3].auroc < alone[3].auroc - 0.05


@pytest.fixture
def two(tmp_path):
    """A run with a second artifact, ink, that goes together with the ruler and shares its direction."""
    w = world(4000)
    g = np.random.default_rng(5)
    ink = np.where(g.random(w.n) < 0.8, w.a, 1 - w.a)
    w.x = w.x + (0.5 * ink)[:, None] * (basis()[0] + basis()[2])
    w.x = (w.x / np.linalg.norm(w.x, axis=1, keepdims=True)).astype(np.float32)
    hashes = [f"{i:064d}" for i in range(w.n)]
    return write_run(tmp_path / "run", w, sha256=hashes, **{"artifact:ink": ink})


def made(main, run, concept, *flags):
    done = main("recipe", "make", "--concept", concept, "--run", run.path, *flags, "--json")
    assert done.rc == 0, done.stdout
    path = run.path / "recipes" / f"{concept}.recipe.json"
    return json.loads(path.read_text())["body"]


def test_taught_after_another_its_recipe_suppresses_both(main, two, monkeypatch):
    monkeypatch.setattr(recipes, "tower_of", lambda run, threads: None)
    assert teach(main, two, "ruler").rc == 0
    done = teach(main, two, "ink", "--after", "ruler")
    assert done.rc == 0 and done.json()["auroc"] > 0.75, done.stdout
    ruler, ink = (load_sae(two.path / "concept_latents" / name) for name in ("ruler", "ink"))
    apart = float(ink.W_enc[:, 0] @ ruler.W_dec[0])
    assert abs(apart) < 1e-5 * float(ink.W_enc.norm())
    body = made(main, two, "ink")
    assert [entry["concept"] for entry in body["latents"]] == ["ruler", "ink"]
    assert body["limits"][0].startswith("it suppresses ruler too")
    assert body["effects"]["ci"][0] > 0 and body["effects"]["random_beaten"] >= 95
    recipe = SuppressionRecipe.load(two.path / "recipes" / "ink.recipe.json")
    x = torch.from_numpy(world(1500).x)
    torch.testing.assert_close(
        recipe.sae().encode(x)[:, 0], ruler.encode(x)[:, 0], atol=1e-3, rtol=1e-3
    )
    shown = main("recipe", "show", "ink", "--run", two.path)
    assert "the concept latents of ruler, ink" in shown.stdout + shown.stderr
    # With the recipe of the ruler, its latent is there once.
    made(main, two, "ruler")
    other = SuppressionRecipe.load(two.path / "recipes" / "ruler.recipe.json")
    assert sorted(make_suppressor([recipe, other]).names) == ["ink", "ruler"]


def test_when_the_first_concept_is_taught_again_what_stands_on_it_is_stale(main, two):
    assert teach(main, two, "ruler").rc == 0
    assert teach(main, two, "ink", "--after", "ruler").rc == 0
    assert teach(main, two, "ruler", "--seed", "7", "--force").rc == 0
    with pytest.raises(StaleArtifactError, match="teach:ruler was made again") as stale:
        open_run(two.path).require("teach:ink")
    assert "concepts teach ink --after ruler" in stale.value.hint


@pytest.mark.parametrize(
    "flags, message",
    [
        (("ink", "--after", "hair"), "unknown taught concept 'hair'"),
        (("ink", "--after", "ink"), "--after names the concept itself"),
        (("ink", "--drawn", "--after", "ruler"), "--after needs images that are labelled"),
        (("ink", "--after", "second"), "second was taught after ruler"),
    ],
)
def test_after_what_cannot_come_first_nothing_is_taught(main, two, flags, message):
    assert teach(main, two, "ruler").rc == 0
    assert teach(main, two, "second", "--labels", "artifact:ink", "--after", "ruler").rc == 0
    done = teach(main, two, *flags)
    assert done.rc == 2 and message in done.json()["error"]["message"], done.stdout
