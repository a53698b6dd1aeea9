"""Audits of few images with the reference dictionary that a bundled model ships."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from dermaudit.concepts.naming.reference_names import best_latents, judged_rows
from dermaudit.errors import (
    AlteredArtifactError,
    EvidenceError,
    StaleArtifactError,
    UserInputError,
)
from dermaudit.files import write_parquet
from dermaudit.sae.run_data import POOLED, RunData
from dermaudit.sae.store.rows import EmbeddingRows
from dermaudit.sae.training import reference as references
from dermaudit.sae.training.loop import fit_saes
from dermaudit.sae.training.recipe import SAERecipe
from dermaudit.sae.training.site_rows import SiteRows
from dermaudit.towers.loading.reference import ReferenceFiles

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files() -> ReferenceFiles:
    return ReferenceFiles.load("phantom-vit")


@pytest.fixture(scope="module")
def small(cli, demo, tmp_path_factory):
    """The audit of 20 images without labels: the run, and what the command printed."""
    root = tmp_path_factory.mktemp("small")
    (root / "images").mkdir()
    for path in sorted((demo.data / "images").iterdir())[:20]:
        shutil.copy(path, root / "images")
    done = cli(
        *("audit", root / "images", "--model", "phantom-vit", "--run", root / "run", "--json"),
        timeout=300,
    )
    assert done.rc == 0, done.stderr[-2000:]
    return RunData.open(root / "run"), done


def test_it_says_which_dictionary_is_used_and_why(small):
    data, done = small
    assert "20 images are too few to fit an SAE" in done.stderr
    assert "distance from the images of the reference" in done.stderr
    for site in data.sites:
        metrics = data.sae_metrics(site)
        assert metrics["reference"]["model"] == "phantom-vit"
        assert metrics["held_out"]["fvu"]["n"] == metrics["n_rows"]
    report = (data.run.path / "report" / "index.html").read_text(encoding="utf-8")
    assert "it is the reference dictionary of phantom-vit" in report
    assert "are those of the reference of phantom-vit" in report


def test_names_are_those_of_the_reference(small, files):
    data, done = small
    names = json.loads(files.file("names.json").read_text())["latents"]
    known = {(row["site"], row["latent"]): row for row in names}
    assert data.concepts and all(
        row["name"] == known[row["site"], row["latent"]]["name"]
        for row in data.concepts
        if (row["site"], row["latent"]) in known
    )
    assert {row["name"] for row in data.concepts} > {None}
    # What it is active on is of these images.
    row = max(data.concepts, key=lambda row: row["n_active"])
    column = data.codes(row["site"]).column(row["latent"])
    assert row["n_active"] == (column > 0).sum() and row["top_rows"][0] == column.argmax()
    assert done.json()["naming"]["named"] == sum(r["name"] is not None for r in data.concepts)


def test_a_recipe_of_the_reference_suppresses_in_the_run(small, files, cli):
    data, done = small
    recipes = {Path(name).name for name in files.files if name.startswith("recipes/")}
    assert {path.name for path in (data.run.path / "recipes").iterdir()} == recipes
    assert data.suppression("ruler")["measured_on"]["reference"] == "phantom-vit"
    assert done.json()["suppression"]["ruler"]["cross_group_auroc_before"] is not None
    out = data.run.path.parent / "predictions.csv"
    again = cli(
        *("suppress", "--concept", "ruler", "--run", data.run.path, "--out", out), timeout=300
    )
    assert again.rc == 0, again.stderr
    assert len(out.read_text().splitlines()) == 21


def test_one_image_is_enough(cli, small, tmp_path):
    """FVU needs a variance, and is left open; the rest is there."""
    data, _ = small
    (tmp_path / "images").mkdir()
    first = sorted((data.run.path.parent / "images").iterdir())[0]
    shutil.copy(first, tmp_path / "images")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    run = tmp_path / "run"
    done = cli(
        *("audit", tmp_path / "images", "--model", "phantom-vit", "--run", run, "--json"),
        timeout=300,
    )
    assert done.rc == 0, done.stderr[-2000:]
    found = done.json()
    assert (found["n_images"], found["n_skipped"]) == (1, 1)
    assert found["sae"][POOLED]["fvu"] is None and found["naming"]["named"] > 0
    with pytest.raises(EvidenceError, match="are those of the reference"):
        RunData.open(run).suppressed_rows("ruler")


def test_it_is_made_once(small, cli):
    data, _ = small
    before = data.run.meta["stages"]
    again = cli(
        *("audit", data.run.path.parent / "images", "--model", "phantom-vit"),
        *("--run", data.run.path),
        timeout=300,
    )
    assert again.rc == 0, again.stderr
    after = RunData.open(data.run.path).run.meta["stages"]
    assert {k: v["outputs"] for k, v in before.items() if k != "report"} == {
        k: v["outputs"] for k, v in after.items() if k != "report"
    }


@pytest.fixture(scope="module")
def labelled(cli, demo, tmp_path_factory):
    """The audit of 150 labelled images, which are enough to fit an SAE of 64 latents and too few for a good one."""
    root = tmp_path_factory.mktemp("labelled")
    table = pq.read_table(demo.data / "manifest.parquet")
    table = table.slice(0, 150)
    write_parquet(root / "data" / "manifest.parquet", table)
    for image in table["image"].to_pylist():
        target = root / "data" / image
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(demo.data / image, target)
    argv = ("audit", root / "data", "--model", "phantom-vit", "--run", root / "run")
    done = cli(*argv, "--json", timeout=300)
    assert done.rc == 0, done.stderr[-2000:]
    return RunData.open(root / "run"), done


def test_few_images_near_those_of_the_reference_have_its_dictionary(labelled):
    data, done = labelled
    why = data.sae_metrics(POOLED)["reference"]["why"]
    assert "train images are few for an SAE of their own" in why and why in done.stderr


def test_few_images_far_from_the_reference_have_the_better_dictionary(labelled, files):
    """Rows that the reference was not made for: an SAE of their own is fitted, and the lower FVU on val decides."""
    data, _ = labelled
    rows = SiteRows.open(data.run, POOLED, data.splits)
    near = references.Candidate(references.ReferenceDictionary(files, POOLED), None)
    assert references.without_a_fit(near, rows) is not None
    old = rows.rows
    turned = np.roll(old.read(0, old.n), 50, axis=1)
    new = EmbeddingRows([turned], old.image_rows, old.image_groups, old.d)
    rows = dataclasses.replace(rows, rows=new)
    assert references.without_a_fit(near, rows) is None
    train, val = (turned[rows.index[name]] for name in ("train", "val"))
    recipe = SAERecipe(d_sae=16, k=4.0, samples=20_000)
    own = fit_saes(EmbeddingRows.of(train), val, [recipe], site=POOLED, model_name="m")[0]
    assert references.if_better(near, own, rows) is None
    worse = dataclasses.replace(own, sae=dataclasses.replace(own.sae, W_dec=-own.sae.W_dec))
    assert "reconstructs the val images with an FVU of" in references.if_better(near, worse, rows)


def test_labels_of_the_images_measure_the_latents_of_the_reference(labelled, files):
    data, _ = labelled
    best = {row["concept"]: row for row in json.loads(files.file("labels.json").read_text())}
    measured = [row for row in data.label_rows if row["auprc"] is not None]
    assert len(measured) > 5
    for row in measured:
        known = best[row["concept"]]
        assert (row["site"], row["latent"]) == (known["site"], known["latent"])
        truth = data.truth[row["concept"]].values
        rows = np.isfinite(truth)
        score = data.codes(row["site"]).column(row["latent"])
        assert row["n"] == rows.sum() and row["lift_share"] is None
        assert row["auprc"] == pytest.approx(average_precision_score(truth[rows], score[rows]))


def test_with_one_sae_of_its_own_the_labels_choose_the_latents(labelled, files, monkeypatch):
    """Images of the run had a part in one of its SAEs, so that test images alone may judge."""
    data = RunData.open(labelled[0].run.path)
    assert best_latents(data) and judged_rows(data).all()
    monkeypatch.setattr(RunData, "reference", lambda self, site: None if site == POOLED else files)
    assert best_latents(data) == {}
    np.testing.assert_array_equal(judged_rows(data), data.rows("test"))


def test_an_sae_of_its_own_if_it_is_asked_for(cli, labelled, tmp_path):
    data, _ = labelled
    run = tmp_path / "run"
    shutil.copytree(data.run.path, run)
    done = cli("fit", "--run", run, "--sae", "own", "--seeds", "0", "--no-metrics", timeout=300)
    assert done.rc == 0, done.stderr
    own = RunData.open(run)
    assert own.reference(POOLED) is None and "reference" not in own.sae_metrics(POOLED)
    stale = cli("name", "--run", run, timeout=300)  # the names are made anew, of these images
    assert stale.rc == 0, stale.stderr
    agreement = [row["agreement"] for row in RunData.open(run).concepts]
    assert agreement and set(agreement) == {None}


def test_words_that_the_reference_was_not_named_with_are_refused(cli, labelled, tmp_path):
    data, _ = labelled
    run = tmp_path / "run"
    shutil.copytree(data.run.path, run)
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"concepts": {"coin": {"type": "artifact", "terms": ["a coin"]}}}))
    done = cli("name", "--run", run, "--vocabulary", words, timeout=300)
    assert done.rc == 2 and "has names of another vocabulary" in done.stderr
    assert "--sae own" in done.stderr and "Traceback" not in done.stderr


def test_a_model_without_a_reference_says_so(labelled, monkeypatch):
    data, _ = labelled
    monkeypatch.setattr(ReferenceFiles, "of_model", lambda name: None)
    with pytest.raises(UserInputError, match="has no reference dictionary at visual"):
        references.candidate(data.run, POOLED, data.splits, "reference")
    with pytest.raises(EvidenceError, match="too few to fit an SAE at"):
        references.candidate(data.run, POOLED, data.splits[:20], "auto")


def test_an_altered_file_of_the_reference_is_refused(labelled, files, tmp_path):
    data, _ = labelled
    folder = tmp_path / "reference"
    shutil.copytree(files.folder, folder)
    weights = folder / "sae" / POOLED / "sae_weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    altered = dataclasses.replace(files, folder=folder)
    with pytest.raises(AlteredArtifactError, match="missing or was altered"):
        _ = references.ReferenceDictionary(altered, POOLED).sae


def test_a_run_of_another_reference_is_stale(labelled, files, monkeypatch):
    data, _ = labelled
    other = dataclasses.replace(files, sha256="0" * 64)
    monkeypatch.setattr(ReferenceFiles, "of_model", lambda name: other)
    with pytest.raises(StaleArtifactError, match="does not ship"):
        RunData.open(data.run.path).reference(POOLED)
