"""Recipes made and measured in a run on disk: hashes, refusals, the same bytes again."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from concept_world import POOLED, RULER, SIGNAL, basis, basis_sae, world, write_run

from dermaudit.concepts.heads import fit_heads
from dermaudit.concepts.recipes.recipe import SuppressionRecipe, load_recipe
from dermaudit.concepts.results import rounded
from dermaudit.concepts.suppression.combined import make_suppressor
from dermaudit.concepts.suppression.options import RecipeOptions
from dermaudit.concepts.suppression.stage import recipe_run
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.errors import EvidenceError, ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import sha256_json, write_json
from dermaudit.heads import LinearHead
from dermaudit.run.directory import open_run
from dermaudit.sae.concept_latents.latent import ConceptLatent

WORDS = Vocabulary.load()


@pytest.fixture(scope="module")
def w():
    return world(2000, seed=1)


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
    recipe = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json"))
    body = recipe.body
    assert body["source"] == "concept_latent" and body["sae"] is None
    assert recipe.latent_names == ["ruler"] and body["latents"][0]["why"]["auroc"] > 0.99
    assert body["site"] == POOLED and body["model"]["fingerprint"] == "f" * 64
    effects = body["effects"]
    assert effects["ci"][0] > 0 and effects["gap_closed"] > 0.7
    assert effects["random_beaten"] == 100 and effects["refused"] == []
    assert effects["insertion_residual"] is None and effects["insertion_residual_reason"]
    assert any("no drawn artifact" in limit for limit in body["limits"])
    assert "random_changes" not in effects


def test_figures_and_rows_agree(run, w):
    figures = json.loads(run.file("suppression", "ruler.json").read_text())
    rows = pq.read_table(run.file("suppression", "ruler.parquet")).to_pylist()
    assert len(rows) == figures["n_scored"] == sum(figures["n"].values())
    for decision, key in (
        ("positive_before", "before"),
        ("positive_fixed", "fixed"),
        ("positive_matched", "prevalence"),
    ):
        for kind, name in (("y=1", "sensitivity"), ("y=0", "specificity")):
            for artifact in (0, 1):
                mine = [r for r in rows if r["group4"] == f"{kind} a={artifact}"]
                right = np.mean([r[decision] == (kind == "y=1") for r in mine])
                assert figures[f"{name}_{key}"][artifact] == pytest.approx(right, abs=1e-6)
    assert all(w.splits[r["row"]] != "train" for r in rows)
    silent = [r for r in rows if not r["fired"]]
    assert silent and all(r["p_before"] == r["p_after"] for r in silent)
    assert len(silent) / len(rows) == pytest.approx(figures["identity_share"], abs=1e-6)
    causes = [r["cause"] for r in rows]
    assert {k: causes.count(k) for k in ("edit", "threshold", "both")} == figures["flips"]
    assert [r["flipped"] for r in rows] == [bool(cause) for cause in causes]


def test_the_recipe_holds_the_latent_that_was_fitted_on_train_and_val(run, w):
    """By the public function for one latent, from the same rows."""
    recipe = SuppressionRecipe.load(run.file("recipes", "ruler.recipe.json"))
    rows = np.flatnonzero((w.splits != "test") & (w.y == 0))
    present, absent = rows[w.a[rows] == 1], rows[w.a[rows] == 0]
    latent = ConceptLatent.fit(
        w.x[present],
        w.x[absent],
        groups_with=w.groups[present],
        groups_without=w.groups[absent],
    )
    x = torch.from_numpy(w.x)
    mine, made = latent.as_sae().encode(x), recipe.sae().encode(x)
    assert torch.equal(mine > 0, made > 0)
    torch.testing.assert_close(mine, made)


def test_a_recipe_needs_no_run(run, w, tmp_path):
    """The module of the file alone does what the module of the run does."""
    copy = tmp_path / "ruler.recipe.json"
    copy.write_bytes(run.file("recipes", "ruler.recipe.json").read_bytes())
    module = make_suppressor([SuppressionRecipe.load(copy)]).module
    by_run = make_suppressor([load_recipe(run, "ruler")], run).module
    x = torch.from_numpy(w.x)
    assert torch.equal(module.apply_to(x).x, by_run.apply_to(x).x)
    fired = module.apply_to(x).fired
    assert 0.2 < fired.float().mean() < 0.8
    assert torch.equal(module.apply_to(x).x[~fired], x[~fired])


def test_the_stored_intercept_keeps_the_share_of_the_target(w, tmp_path):
    run = write_run(tmp_path / "r", w)
    fit_heads(run)
    recipe_run(run, "ruler", None, WORDS)
    recipe = load_recipe(run, "ruler")
    stored = recipe.body["intercept"]
    assert stored is not None and stored["head"] == "label"
    head = LinearHead.load(run.files.head())
    rows = w.x[w.splits != "test"]
    after = make_suppressor([recipe], run).module.apply_to(torch.from_numpy(rows)).x.numpy()
    logits = head.logits(after) + np.array([stored["value"], 0])  # of mel, nv
    assert (logits.argmax(1) == 0).sum() == (head.logits(rows).argmax(1) == 0).sum()
    assert stored["n"] == len(rows)


@pytest.mark.parametrize("damage", ["encoder", "decoder", "d"])
def test_weights_that_do_not_fit_together_are_refused(path, damage):
    body = SuppressionRecipe.load(path).body
    weights = {**body["weights"], damage: 7 if damage == "d" else "AAAA"}
    with pytest.raises(ForeignArtifactError, match="weights of the recipe do not fit together"):
        SuppressionRecipe({**body, "weights": weights}).sae()


def test_hash_is_that_of_the_body(run):
    raw = json.loads(run.file("recipes", "ruler.recipe.json").read_text())
    assert raw["body_sha256"] == sha256_json(raw["body"]) == SuppressionRecipe(raw["body"]).sha256
    assert raw["envelope"] == dict.fromkeys(("author", "date", "public_key", "signature"))


def test_recipe_save_load_equal(run, path, tmp_path):
    recipe = SuppressionRecipe.load(path)
    recipe.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body["latents"].append({"latent": 3, "why": {}}),
        lambda body: body["effects"].update(cross_group_auroc_after=0.99),
        lambda body: body["weights"].update(bias="AAAAAA=="),
        lambda body: body["operation"].update(mode="clamp"),
    ],
)
def test_tampered_body_refused(path, spoil):
    raw = json.loads(path.read_text())
    spoil(raw["body"])
    path.write_text(json.dumps(raw))
    with pytest.raises(StaleArtifactError, match=r"ruler\.recipe\.json was altered"):
        SuppressionRecipe.load(path)


def test_foreign_files_refused(path):
    path.write_text("[]")
    with pytest.raises(ForeignArtifactError, match="not a recipe"):
        SuppressionRecipe.load(path)
    path.write_text('{"format_version": 1, "body": {}}')
    with pytest.raises(ForeignArtifactError, match="recipe of format 1"):
        SuppressionRecipe.load(path)
    path.write_text("{")
    with pytest.raises(UserInputError, match="not valid JSON"):
        SuppressionRecipe.load(path)


def test_other_sae_or_model_refused(w, tmp_path):
    run = write_run(tmp_path / "run", w)
    recipe_run(run, "ruler", None, WORDS, RecipeOptions(method="sae"))
    path = run.file("recipes", "ruler.recipe.json")
    recipe = load_recipe(run, "ruler")
    assert recipe.latents[0] == RULER and recipe.body["source"] == "sae"
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
    assert str(run.path) not in text
    body = json.loads(text)["body"]
    assert "/" not in json.dumps({**body, "weights": None, "distribution": None}), (
        "base64 may hold a slash, nothing else"
    )


def test_done_is_not_done_again(run):
    before = run.file("recipes", "ruler.recipe.json").stat().st_mtime_ns
    recipe_run(run, "ruler", None, WORDS)
    assert run.file("recipes", "ruler.recipe.json").stat().st_mtime_ns == before


def test_no_evidence_refused_with_numbers_or_reported(w, tmp_path):
    few = world(60, seed=2)
    run = write_run(tmp_path / "few", few)
    with pytest.raises(EvidenceError, match="ruler: n too small to cross-fit") as refused:
        recipe_run(run, "ruler", None, WORDS)
    assert min(refused.value.numbers.values()) < 30
    found = recipe_run(run, "ruler", None, WORDS, RecipeOptions(refuse=False))
    assert "n too small" in found["reason"]
    assert not run.file("recipes", "ruler.recipe.json").exists()
    assert json.loads(run.file("suppression", "ruler.reason.json").read_text())["numbers"]


def test_a_suppression_that_harms_is_refused_and_its_figures_stay(main, tmp_path, monkeypatch):
    """Where the artifact is the sign of the target itself, taking it away costs images without it."""
    tower = SimpleNamespace(fingerprint="f" * 64)
    monkeypatch.setattr("dermaudit.concepts.suppression.stage.tower_of", lambda *_: None)
    monkeypatch.setattr("dermaudit.concepts.inference.opened.tower_of", lambda *_: tower)
    w = world(1500, seed=3)
    sign = w.x @ basis()[SIGNAL]
    run = write_run(tmp_path / "r", w, **{"artifact:sign": (sign > np.median(sign)).astype(float)})
    done = main("recipe", "make", "--concept", "sign", "--run", run.path, "--json")
    assert done.rc == 3, done.stderr
    error = done.json()["error"]
    assert "images without the artifact may lose" in error["message"]
    assert "--accept-limits" in error["hint"] and error["numbers"]["clean_auroc_ci"][0] < -0.03
    assert not run.file("recipes", "sign.recipe.json").exists()
    figures = json.loads(run.file("suppression", "sign.json").read_text())
    assert figures["refused"] and run.files.suppressed_images("sign").is_file()
    run = open_run(run.path)
    run.require("recipe:sign")
    again = main("suppress", "--concept", "sign", "--run", run.path, "--dry-run", "--json")
    assert again.rc == 3 and "images without the artifact may lose" in again.stdout
    # With a reason it is written, and says why wherever it is used.
    flags = ("--accept-limits", "for a figure of a talk", "--json")
    made = main("recipe", "make", "--concept", "sign", "--run", run.path, *flags)
    assert made.rc == 0, made.stderr
    shown = main("recipe", "show", "sign", "--run", run.path)
    assert "WRITTEN AGAINST THE EVIDENCE, because: for a figure of a talk" in shown.stderr
    body = load_recipe(open_run(run.path), "sign").body
    assert body["accepted_limits"] == "for a figure of a talk" and body["limits"]


@pytest.mark.parametrize(("mode", "level"), [("clamp", None), ("reactive", None), ("scale", 0.25)])
def test_mode_is_measured_and_kept_in_the_recipe(run, w, tmp_path, mode, level):
    copied = tmp_path / "r"
    shutil.copytree(run.path, copied)
    copy = open_run(copied)
    options = RecipeOptions(mode=mode, level=level, method="sae")
    figures = recipe_run(copy, "ruler", None, WORDS, options)
    recipe = load_recipe(copy, "ruler")
    operation, S = recipe.body["operation"], recipe.latents
    assert operation["mode"] == mode and RULER in S
    free = basis_sae().encode(torch.from_numpy(w.x)).numpy()[(w.splits != "test") & (w.a == 0)]
    free = free[:, S]
    if mode == "scale":
        assert operation["level"] == [0.25] * len(S) and "level_from" not in operation
    else:
        text = f"{len(free)} train and val images without the concept"
        assert operation["level_from"] == text
    if mode == "clamp":
        assert operation["level"] == pytest.approx(np.quantile(free, 0.95, axis=0), abs=1e-6)
    if mode == "reactive":
        gate = np.quantile(free.sum(1).astype(float), 0.95)
        assert operation["gate_level"] == pytest.approx(gate, abs=1e-6)
    assert figures["cross_group_auroc_after"] > figures["cross_group_auroc_before"]
    if mode != "scale":
        return
    # The figures are those of this mode: they differ from those of subtracting.
    subtracted = recipe_run(copy, "ruler", None, WORDS, RecipeOptions(method="sae"))
    assert subtracted["cross_group_auroc_after"] != figures["cross_group_auroc_after"]


def test_mode_reactive_without_artifact_free_images_is_refused(tmp_path):
    few = world(200, seed=2)
    run = write_run(tmp_path / "r", few, **{"artifact:ruler": np.ones(200)})
    with pytest.raises(EvidenceError, match="n too small to cross-fit: 0 images with y=0 a=0"):
        recipe_run(run, "ruler", None, WORDS, RecipeOptions(mode="reactive"))


def test_without_labels_nothing_can_be_measured(tmp_path):
    run = write_run(tmp_path / "bare", world(200), label=[None] * 200)
    with pytest.raises(EvidenceError, match="the target mel has no labels in this run"):
        recipe_run(run, "ruler", None, WORDS)
    # A recipe against the evidence says so wherever it is shown.
    reason = "a try on images without labels"
    figures = recipe_run(run, "ruler", None, WORDS, RecipeOptions(accept_limits=reason))
    recipe = load_recipe(run, "ruler")
    assert recipe.body["accepted_limits"] == reason and recipe.body["limits"] == figures["refused"]
    assert "has no labels" in recipe.body["limits"][0]


def test_accept_limits_needs_a_reason():
    with pytest.raises(UserInputError, match="--accept-limits has no reason"):
        RecipeOptions(accept_limits=" ")


def test_a_concept_that_was_taught_with_other_images_is_used_as_it_is(w, tmp_path):
    """Its images are not scored, and its latent is not fitted again."""
    other = world(600, seed=9)
    present, absent = (other.x[(other.y == 0) & (other.a == kind)] for kind in (1, 0))
    latent = ConceptLatent.fit(present, absent)
    hashes = [f"{i:064x}" for i in range(w.n)]
    run = write_run(tmp_path / "r", w, sha256=hashes)
    folder = run.files.concept_latent("ruler")
    files = latent.as_sae({"hook_name": POOLED}).save(folder)
    shared = [{"image": "0.png", "sha256": hashes[i], "present": 1} for i in range(w.n)[2:40:2]]
    write_json(
        folder / "provenance.json",
        {"source": "two folders", "images": shared, "figures": vars(latent.figures)},
    )
    run.record(
        "teach:ruler",
        {},
        [*files, folder / "provenance.json"],
        upstream=["images", "embed"],
        summary={"flags": ""},
    )
    figures = recipe_run(run, "ruler", None, WORDS)
    recipe = load_recipe(run, "ruler")
    x = torch.from_numpy(w.x)
    torch.testing.assert_close(recipe.sae().encode(x), latent.as_sae().encode(x))
    taught = {int(entry["sha256"], 16) for entry in shared}
    scored = {r["row"] for r in pq.read_table(run.files.suppressed_images("ruler")).to_pylist()}
    assert not taught & scored
    assert len(scored) == figures["n_scored"]
    assert figures["ci"][0] > 0 and figures["random_beaten"] >= 95


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
