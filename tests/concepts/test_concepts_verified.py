"""What concepts read from a run is verified, and its vocabulary and seed are the defaults."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from concept_world import POOLED, RULER, TextTower, basis, world, write_run

from dermaudit.concepts.heads import fit_heads
from dermaudit.concepts.inputs import artifacts_of, vocabulary_of
from dermaudit.concepts.naming.stage import name_run
from dermaudit.concepts.recipes.recipe import load_recipe
from dermaudit.concepts.suppression.head import pick_head
from dermaudit.concepts.suppression.options import RecipeOptions
from dermaudit.concepts.suppression.stage import recipe_run
from dermaudit.concepts.vocabulary.vocabulary import Concept, Vocabulary
from dermaudit.errors import StaleArtifactError
from dermaudit.files import sha256_json
from dermaudit.run.directory import open_run

OWN = Vocabulary(
    "own",
    (Concept("sticker", "artifact", ("sticker",)), Concept("ruler", "artifact", ("ruler",))),
    ("{}",),
    tuple(f"word{i}" for i in range(12)),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "finished", world(3000, seed=1))
    run.meta["seed"] = 7
    run.save()
    name_run(run, OWN, TextTower({"ruler": basis()[RULER], "sticker": basis()[5]}))
    fit_heads(run)
    recipe_run(run, "ruler", None, OWN)
    return run


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "r")
    return open_run(tmp_path / "r")


def truncate_images(run):
    table = pq.read_table(run.file("images.parquet"))
    pq.write_table(table.slice(0, 10), run.file("images.parquet"))


def test_vocabulary_of_a_run_is_the_one_it_was_named_with(run, tmp_path):
    assert vocabulary_of(run).sha256() == OWN.sha256()
    assert [c.id for c in vocabulary_of(run).concepts] == ["sticker", "ruler"]
    assert vocabulary_of(run, "dermoscopy") == Vocabulary.load("dermoscopy")
    assert vocabulary_of(write_run(tmp_path / "unnamed", world(100))) == Vocabulary.load()


def test_concept_of_the_runs_vocabulary_is_accepted_by_recipe_and_suppress(main, run, monkeypatch):
    tower = SimpleNamespace(fingerprint="f" * 64)
    monkeypatch.setattr("dermaudit.concepts.suppression.stage.tower_of", lambda *_: tower)
    done = main("recipe", "make", "--run", run.path, "--concept", "sticker", "--json")
    assert "unknown concept" not in done.stdout + done.stderr
    assert "recipe:sticker" in open_run(run.path).meta["stages"]
    flag = ("--vocabulary", "dermoscopy")
    done = main("recipe", "make", "--run", run.path, "--concept", "sticker", *flag, "--json")
    assert "unknown concept 'sticker'" in done.json()["error"]["message"]
    done = main("suppress", "--run", run.path, "--concept", "sticker", *flag, "--json")
    assert "unknown concept 'sticker'" in done.json()["error"]["message"]


def test_default_seed_is_the_runs_and_a_finished_recipe_is_not_made_again(run):
    assert run.seed() == 7 and run.seed(0) == 0
    recipe = load_recipe(run, "ruler")
    assert recipe.body["protocol"]["seed"] == 7
    before = run.file("recipes", "ruler.recipe.json").stat().st_mtime_ns
    recipe_run(run, "ruler", None, OWN)
    recipe_run(run, "ruler", None, OWN, RecipeOptions(seed=7))
    assert run.file("recipes", "ruler.recipe.json").stat().st_mtime_ns == before


def test_artifacts_of_an_audit_are_labelled_or_named_in_the_order_of_the_vocabulary(run, tmp_path):
    assert artifacts_of(run, OWN) == ["sticker", "ruler"]  # a latent is named sticker
    w = world(200)
    columns = {"artifact:nail": w.a, "artifact:ink": w.a, "concept:veil": w.a}
    labelled = write_run(tmp_path / "labelled", w, **columns)
    assert artifacts_of(labelled, Vocabulary.load()) == ["ruler", "ink", "nail"]


def test_artifacts_of_an_unlabelled_run_are_the_named_ones(tmp_path):
    run = write_run(tmp_path / "r", world(200), **{"artifact:ruler": None})
    rows = [("ruler", POOLED), ("sticker", POOLED), ("veil", POOLED), ("ink", "visual.blocks.1")]
    table = pa.table({"name": [n for n, _ in rows], "site": [s for _, s in rows]})
    pq.write_table(table, run.file("concepts.parquet"))
    assert artifacts_of(run, OWN) == ["sticker", "ruler"]


def test_recipe_show_refuses_a_body_that_the_run_did_not_record(main, run):
    path = run.file("recipes", "ruler.recipe.json")
    raw = json.loads(path.read_text())
    raw["body"]["effects"]["cross_group_auroc_after"] = 0.99
    raw["body_sha256"] = sha256_json(raw["body"])
    path.write_text(json.dumps(raw))
    done = main("recipe", "show", "ruler", "--run", run.path, "--json")
    assert done.rc == 2 and "ruler.recipe.json is missing or was" in done.json()["error"]["message"]
    shutil.copy(path, run.file("recipes", "copy.recipe.json"))
    with pytest.raises(StaleArtifactError, match="was not made by the run"):
        load_recipe(run, "copy")


def test_concepts_refuses_stale_names(main, run):
    assert main("concepts", "--run", run.path, "--json").rc == 0
    truncate_images(run)
    done = main("concepts", "--run", run.path, "--json")
    assert done.rc == 2 and "images.parquet" in done.json()["error"]["message"]


def test_suppress_refuses_a_run_whose_head_was_removed(run):
    assert pick_head(run, None, None)[0].classes == ["mel", "nv"]
    shutil.rmtree(run.file("heads"))
    with pytest.raises(StaleArtifactError, match=r"label\.safetensors is missing"):
        pick_head(run, None, None)


def test_suppress_refuses_truncated_images(run):
    truncate_images(run)
    with pytest.raises(StaleArtifactError, match=r"images\.parquet is missing or was altered"):
        load_recipe(run, "ruler")


def test_damaged_sae_is_not_blamed_on_the_recipe(run):
    path = run.file("sae", POOLED, "sae_weights.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StaleArtifactError, match=r"sae_weights\.safetensors is missing") as stale:
        load_recipe(run, "ruler")
    assert stale.value.hint == f"run: dermaudit fit --run {run.path} --force"


def test_vocabulary_of_a_run_holds_when_its_names_are_stale(run):
    """Otherwise `name --force` would be refused with the advice to call `name --force`."""
    record = run.meta["stages"][f"fit:{POOLED}"]
    metrics = run.file("sae", POOLED, "metrics.json")
    metrics.write_text('{"site": "fitted anew"}')
    files = [metrics, *(run.path / name for name in record["outputs"])]
    run.record(f"fit:{POOLED}", {}, files, upstream=["embed"])
    with pytest.raises(StaleArtifactError):
        run.require("name")
    assert vocabulary_of(run).sha256() == OWN.sha256()
    # A vocabulary that was changed by hand is refused.
    run.files.vocabulary.write_text(run.files.vocabulary.read_text() + " ")
    with pytest.raises(StaleArtifactError):
        vocabulary_of(run)


def test_vocabulary_json_loads_to_the_same_vocabulary(tmp_path):
    for vocabulary in (OWN, Vocabulary.load()):
        path = tmp_path / "v.json"
        path.write_text(vocabulary.as_json())
        assert Vocabulary.load(path) == vocabulary
