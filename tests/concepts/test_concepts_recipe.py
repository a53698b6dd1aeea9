"""Recipes made and measured in a run on disk: hashes, refusals, the same bytes again."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from concept_world import POOLED, RULER, basis_sae, open_data, world, write_run

from dermaudit.concepts.results import rounded
from dermaudit.concepts.suppression.make_recipe import make_recipe
from dermaudit.concepts.suppression.options import RecipeOptions
from dermaudit.concepts.suppression.recipe import SuppressionRecipe
from dermaudit.concepts.suppression.stage import recipe_run
from dermaudit.concepts.suppression.suppressed_model import load_recipe
from dermaudit.concepts.suppression.trap import make_trap
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.errors import EvidenceError, ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import sha256_json

WORDS = Vocabulary.load()


@pytest.fixture(scope="module")
def w():
    return world(4000, seed=1)


@pytest.fixture(scope="module")
def run(w, tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "one", w)
    recipe_run(run, "ruler", None, WORDS)
    return run


@pytest.fixture
def path(run, tmp_path):
    """A copy of the recipe, to be spoilt."""
    copy = tmp_path / "ruler.recipe.json"
    copy.write_bytes(run.file("recipes", "ruler.recipe.json").read_bytes())
    return copy


def test_recipe_names_what_it_does_and_how_well(run):
    body = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json")).body
    assert body["latents"][0]["latent"] == RULER
    assert body["sae"]["site"] == POOLED and body["model"]["fingerprint"] == "f" * 64
    effects = body["effects"]
    assert effects["worst_group_after"] - effects["worst_group_before"] >= 0.1
    assert effects["random_sets_beaten"] == 20
    assert effects["insertion_residual"] is None and effects["insertion_residual_reason"]
    assert any("insertion_residual" in limit for limit in body["limits"])
    assert "random_lifts" not in effects


def test_figures_and_rows_agree(run, w):
    figures = json.loads(run.file("suppression", "ruler.json").read_text())
    rows = pq.read_table(run.file("suppression", "ruler.parquet")).to_pylist()
    assert len(rows) == figures["n_test"]
    for group, accuracy in figures["groups_after"].items():
        mine = [r for r in rows if r["group4"] == group]
        assert len(mine) == figures["n"][group]
        right = np.mean([(r["top1_after"] == "mel") == (group[2] == "1") for r in mine])
        assert accuracy == pytest.approx(right, abs=1e-6)
    assert all((w.splits[r["row"]]) == "test" for r in rows)
    silent = [r for r in rows if not r["fired"]]
    assert silent and all(r["p_before"] == r["p_after"] for r in silent)
    z = basis_sae().encode(torch.from_numpy(w.x))[:, figures["latents"]]
    assert figures["identity_rows"] == int((~(z > 0).any(1)).sum())


def test_hash_is_that_of_the_body(run):
    raw = json.loads(run.file("recipes", "ruler.recipe.json").read_text())
    assert raw["body_sha256"] == sha256_json(raw["body"]) == SuppressionRecipe(raw["body"]).sha256
    assert set(raw["envelope"]) == {"author", "date", "signature"}


def test_recipe_save_load_equal(run, path, tmp_path):
    recipe = SuppressionRecipe.load(path)
    recipe.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body["latents"].append({"latent": 3, "why": {}}),
        lambda body: body["effects"].update(worst_group_after=0.99),
        lambda body: body["operation"].update(mode="clamp"),
    ],
)
def test_tampered_body_refused(path, spoil):
    raw = json.loads(path.read_text())
    spoil(raw["body"])
    path.write_text(json.dumps(raw))
    with pytest.raises(StaleArtifactError, match=r"ruler\.recipe\.json was altered"):
        SuppressionRecipe.load(path)


def test_envelope_is_not_hashed(path):
    raw = json.loads(path.read_text())
    raw["envelope"]["author"] = "someone"
    path.write_text(json.dumps(raw))
    assert SuppressionRecipe.load(path).latents


def test_foreign_files_refused(path):
    path.write_text("[]")
    with pytest.raises(ForeignArtifactError, match="not a recipe"):
        SuppressionRecipe.load(path)
    path.write_text('{"format_version": 2, "body": {}}')
    with pytest.raises(ForeignArtifactError):
        SuppressionRecipe.load(path)
    path.write_text("{")
    with pytest.raises(UserInputError, match="not valid JSON"):
        SuppressionRecipe.load(path)


def test_other_sae_or_model_refused(run, w, path, tmp_path):
    recipe = SuppressionRecipe.load(path)
    recipe.check(run, path)
    other = write_run(tmp_path / "other", world(100), basis_sae(threshold=0.11))
    with pytest.raises(StaleArtifactError, match="another SAE at visual.pooled"):
        recipe.check(other, path)
    other.meta["model"]["fingerprint"] = "0" * 64
    with pytest.raises(ForeignArtifactError, match="was made for the model toy"):
        recipe.check(other, path)


def test_same_data_same_bytes(run, w, tmp_path):
    other = write_run(tmp_path / "elsewhere" / "two", w)
    recipe_run(other, "ruler", None, WORDS)
    for part in (
        ("recipes", "ruler.recipe.json"),
        ("suppression", "ruler.json"),
        ("suppression", "ruler.parquet"),
    ):
        assert run.file(*part).read_bytes() == other.file(*part).read_bytes()


def test_body_no_path_and_no_time(run):
    text = run.file("recipes", "ruler.recipe.json").read_text()
    assert str(run.path) not in text and "/" not in text.replace("\\/", "")


def test_done_is_not_done_again(run):
    before = run.file("recipes", "ruler.recipe.json").stat().st_mtime_ns
    recipe_run(run, "ruler", None, WORDS)
    assert run.file("recipes", "ruler.recipe.json").stat().st_mtime_ns == before


def test_no_evidence_refused_with_numbers_or_reported(w, tmp_path):
    few = world(300, seed=2)
    run = write_run(tmp_path / "few", few)
    with pytest.raises(EvidenceError, match="ruler: n too small for worst groups") as refused:
        recipe_run(run, "ruler", None, WORDS)
    assert min(refused.value.numbers.values()) < 30
    said = recipe_run(run, "ruler", None, WORDS, RecipeOptions(refuse=False))
    assert "n too small" in said["reason"]
    assert not run.file("recipes", "ruler.recipe.json").exists()
    assert json.loads(run.file("suppression", "ruler.reason.json").read_text())["numbers"]


@pytest.mark.parametrize(("mode", "level"), [("clamp", None), ("reactive", None), ("scale", 0.25)])
def test_mode_chosen_measured_and_kept_in_the_recipe(run, w, tmp_path, mode, level):
    import shutil

    from dermaudit.heads import fit_probe, probe_score
    from dermaudit.run.directory import open_run

    shutil.copytree(run.path, tmp_path / "r")
    copy = open_run(tmp_path / "r")
    figures = recipe_run(copy, "ruler", None, WORDS, RecipeOptions(mode=mode, level=level))
    recipe = load_recipe(copy, "ruler")
    operation, S = recipe.body["operation"], recipe.latents
    assert operation["mode"] == mode and RULER in S
    z = basis_sae().encode(torch.from_numpy(w.x)).numpy()[:, S]
    free = z[(w.splits == "train") & (w.a == 0)]
    if mode == "scale":
        assert operation["level"] == [0.25] * len(S) and "level_from" not in operation
        change = -0.75 * z
    else:
        assert operation["level_from"] == f"{len(free)} train images without ruler"
    if mode == "clamp":
        level = np.quantile(free, 0.95, axis=0)
        assert operation["level"] == pytest.approx(level, abs=1e-6)
        change = np.minimum(level - z, 0)
    if mode == "reactive":
        gate = np.quantile(free.sum(1).astype(float), 0.95)
        assert operation["gate_level"] == pytest.approx(gate, abs=1e-6)
        change = np.where(z.sum(1, keepdims=True) > gate, -z, 0)
    # The figures are those of this mode: the rows by hand, through the same head.
    after = w.x + change @ basis_sae().W_dec[S].numpy()
    after /= np.linalg.norm(after, axis=1, keepdims=True)
    rows = pq.read_table(copy.file("suppression", "ruler.parquet")).to_pylist()
    changed = (change != 0).any(1)
    assert [r["fired"] for r in rows] == [bool(changed[r["row"]]) for r in rows]
    trap = make_trap(w.y, w.a, w.splits, groups=w.groups)
    head = fit_probe(w.x[trap.fit], w.y[trap.fit], w.groups[trap.fit])
    score = probe_score(head, after.astype(np.float32))
    p = np.array([r["p_after"] for r in rows if r["fired"]])
    picked = [r["row"] for r in rows if r["fired"]]
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-score[picked])), atol=1e-4)
    assert figures["worst_group_after"] > figures["worst_group_before"]
    # The default is still what it was: its stage is not named anew.
    assert (
        copy.meta["stages"]["recipe:ruler"]["inputs"]
        != run.meta["stages"]["recipe:ruler"]["inputs"]
    )


def test_mode_reactive_without_artifact_free_images_is_refused(tmp_path):
    few = world(200, seed=2)
    run = write_run(tmp_path / "r", few, **{"artifact:ruler": np.ones(200)})
    with pytest.raises(
        EvidenceError, match="ruler: 0 train images are labelled as without it"
    ) as no:
        recipe_run(run, "ruler", None, WORDS, RecipeOptions(mode="reactive"))
    assert no.value.numbers == {"n": 0, "needed": 30}


def test_without_labels_and_names_names_what_to_run(w, tmp_path):
    small = world(200)
    run = write_run(tmp_path / "bare", small, label=[None] * 200)
    with pytest.raises(UserInputError, match="has no name stage yet"):
        make_recipe(open_data(run), "ruler", WORDS)


def test_rounded():
    value = {"a": [1.23456789, float("nan")], "b": (np.float64(0.1), 3, "x", None, True)}
    assert rounded(value) == {"a": [1.234568, None], "b": [0.1, 3, "x", None, True]}


def test_refused_later_nothing_of_the_earlier_recipe_is_left(w, tmp_path):
    run = write_run(tmp_path / "r", w)
    recipe_run(run, "ruler", None, WORDS)
    files = [
        run.file("recipes", "ruler.recipe.json"),
        run.file("suppression", "ruler.json"),
        run.file("suppression", "ruler.parquet"),
    ]
    reason = run.file("suppression", "ruler.reason.json")
    assert all(f.is_file() for f in files) and not reason.exists()

    def refuse(*args, **options):
        raise EvidenceError("nothing left", None, {"n": 0})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dermaudit.concepts.suppression.make_recipe.make_recipe", refuse)
        recipe_run(run, "ruler", None, WORDS, RecipeOptions(force=True, refuse=False))
    assert reason.is_file() and not any(f.exists() for f in files)
    with pytest.raises(UserInputError, match="has no recipe for 'ruler'"):
        load_recipe(run, "ruler")
    recipe_run(run, "ruler", None, WORDS, RecipeOptions(force=True))
    assert all(f.is_file() for f in files) and not reason.exists()


def test_stale_recipe_refused_with_the_fix(w, tmp_path):
    run = write_run(tmp_path / "r", w)
    recipe_run(run, "ruler", None, WORDS)
    assert load_recipe(run, "ruler").latents
    table = pq.read_table(run.file("images.parquet"))
    pq.write_table(table.slice(0, 10), run.file("images.parquet"))
    run.record("images", {"other": 1}, [run.file("images.parquet")])
    with pytest.raises(StaleArtifactError, match="recipe:ruler stage .* is stale: images") as stale:
        load_recipe(run, "ruler")
    assert "dermaudit recipe make --concept ruler" in stale.value.hint
