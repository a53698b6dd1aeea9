"""The stages `annotate` and `name` on a run on disk: files, judging by test, the same bytes again."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from concept_world import DEAD, POOLED, RULER, SIGNAL, TextTower, basis, world, write_run

from dermaudit.concepts.annotation.stage import annotate_run
from dermaudit.concepts.bottlenecks import bottleneck
from dermaudit.concepts.bottlenecks.stage import CompareOptions, compare_run
from dermaudit.concepts.heads import fit_heads
from dermaudit.concepts.naming.stage import name_run
from dermaudit.concepts.vocabulary.vocabulary import Concept, Vocabulary
from dermaudit.errors import StaleArtifactError, UserInputError
from dermaudit.files import write_json
from dermaudit.heads import LinearHead

WORDS = Vocabulary(
    "toy",
    (
        Concept("ruler", "artifact", ("ruler",), ("no ruler",)),
        Concept("veil", "clinical", ("veil",), ("no veil",)),
    ),
    ("{}", "an image with {}"),
    tuple(f"word{i}" for i in range(12)),
)
# The text tower believes that direction 5 is "veil"; the labels say that latent 5 is ink.
TOWER = TextTower({"ruler": basis()[RULER], "veil": basis()[5]})


@pytest.fixture(scope="module")
def w():
    return world(1500, seed=4)


def ink(w) -> np.ndarray:
    return (w.x @ basis()[5] > 0.1).astype(float)


@pytest.fixture(scope="module")
def run(w, tmp_path_factory):
    rng = np.random.default_rng(0)
    run = write_run(
        tmp_path_factory.mktemp("runs") / "r",
        w,
        **{"artifact:ink": ink(w), "concept:veil": rng.integers(0, 2, w.n).astype(float)},
    )
    annotate_run(run)
    name_run(run, WORDS, TOWER)
    return run


def rows(run, name):
    return pq.read_table(run.file(name)).to_pylist()


def test_annotate_planted_latents_are_found(run):
    labels = {r["concept"]: r for r in rows(run, "labels.parquet")}
    assert list(labels)[:2] == ["ink", "ruler"]  # artifacts first
    assert labels["ruler"]["latent"] == RULER and labels["ink"]["latent"] == 5
    assert labels["ruler"]["lift_share"] > 0.9 and labels["mel"]["latent"] == SIGNAL
    assert labels["mel"]["type"] == "diagnosis"
    assert labels["veil"]["lift_share"] is None and "undefined" in labels["veil"]["reason"]


def test_names_made_on_train_and_val_judged_on_test(run):
    found = {r["latent"]: r for r in rows(run, "concepts.parquet")}
    assert DEAD not in found  # one row a live latent
    assert found[RULER]["name"] == "ruler" and found[RULER]["wrong"] is False
    assert found[RULER]["label_concept"] == "ruler" and found[RULER]["label_auprc"] > 0.95
    assert found[5]["name"] == "veil" and found[5]["wrong"] is True  # its images are those with ink
    assert found[5]["label_concept"] == "ink"
    figures = json.loads(run.file("naming.json").read_text())
    assert figures["n_judged"] >= 2
    assert figures["named"] + figures["unnamed"] == len(found)
    assert figures["named"] == sum(r["name"] is not None for r in found.values())
    assert figures["vocabulary_sha256"] == WORDS.sha256()


def test_top_rows_those_that_fire_most(run, w):
    for row in rows(run, "concepts.parquet")[:5]:
        z = np.maximum(w.x @ basis()[row["latent"]], 0)
        z[z <= 0.1] = 0
        top = np.sort(z)[::-1][: len(row["top_rows"])]
        np.testing.assert_allclose(z[row["top_rows"]], top, atol=1e-6)
        assert row["n_active"] == (z > 0).sum()


def test_names_do_not_move_with_the_test_images(w, run, tmp_path):
    # The same run with the test embeddings shuffled among themselves: names and label_concept stay.
    other = world(1500, seed=4)
    test = np.flatnonzero(other.splits == "test")
    other.x[test] = other.x[np.random.default_rng(1).permutation(test)]
    again = write_run(
        tmp_path / "r",
        other,
        **{
            "artifact:ink": ink(w),
            "concept:veil": [r["concept:veil"] for r in rows(run, "images.parquet")],
        },
    )
    name_run(again, WORDS, TOWER)
    one, two = ({r["latent"]: r for r in rows(x, "concepts.parquet")} for x in (run, again))
    for key in ("name", "z", "q", "reason", "label_concept"):
        assert {j: r[key] for j, r in one.items()} == {j: r[key] for j, r in two.items()}
    assert one[RULER]["label_auprc"] > two[RULER]["label_auprc"]  # scored on test, now shuffled


def test_same_data_same_bytes(w, run, tmp_path):
    veil = [r["concept:veil"] for r in rows(run, "images.parquet")]
    again = write_run(tmp_path / "r", w, **{"artifact:ink": ink(w), "concept:veil": veil})
    annotate_run(again)
    name_run(again, WORDS, TOWER)
    for name in ("concepts.parquet", "naming.json", "labels.parquet"):
        assert run.file(name).read_bytes() == again.file(name).read_bytes()


def test_heads_and_bottlenecks(run, monkeypatch):
    monkeypatch.setattr(bottleneck, "RANDOM_DRAWS", 2)
    summary = fit_heads(run)
    head = LinearHead.load(run.file("heads", "label.safetensors"))
    assert head.classes == ["mel", "nv"] == summary["classes"]
    assert summary["test"]["auroc:mel"][0] > 0.7
    found = compare_run(run, WORDS, TOWER)
    assert found["sae"]["auroc"] > 0.7 > found["random"]["auroc"]
    with pytest.raises(UserInputError, match="unknown label 'mell': did you mean 'mel'?"):
        compare_run(run, WORDS, TOWER, CompareOptions(task="mell"))


def test_no_labels_reported_not_measured(w, tmp_path):
    small = world(300)
    run = write_run(tmp_path / "r", small, label=[None] * 300, **{"artifact:ruler": None})
    assert annotate_run(run)["reason"] == "no labels: not measured"
    assert "no labels" in fit_heads(run)["reason"]
    assert "no labels" in compare_run(run, WORDS, TOWER)["reason"]
    figures = name_run(run, WORDS, TOWER)
    assert figures["n_judged"] == 0 and figures["wrong_among_named"] is None


def test_damaged_or_absent_sae_refused(w, tmp_path):
    run = write_run(tmp_path / "r", world(200))
    path = run.file("sae", "visual.pooled", "sae_weights.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        StaleArtifactError, match=r"sae_weights\.safetensors is missing or was altered"
    ):
        annotate_run(run)
    del run.meta["stages"]["fit:visual.pooled"]
    with pytest.raises(UserInputError, match="has no fit stage yet"):
        annotate_run(run)


def test_residual_latents_of_a_consensus_are_neither_named_nor_chosen(w, tmp_path, capsys):
    """Latents 0 to 2 are of the consensus; latent 5, which is ink and would be named veil, is residual."""
    run = write_run(tmp_path / "r", w, **{"artifact:ink": ink(w)})
    written = run.files.consensus(POOLED)
    write_json(written, {"agreement": [0.95, 0.9, 0.85]})
    record = run.meta["stages"][f"fit:{POOLED}"]
    files = [run.path / name for name in record["outputs"]]
    run.record(f"fit:{POOLED}", {}, [*files, written], upstream=["embed"])
    annotate_run(run)
    name_run(run, WORDS, TOWER)
    labels = {r["concept"]: r for r in rows(run, "labels.parquet")}
    assert labels["ruler"]["latent"] == RULER and labels["ruler"]["absent"] is False
    assert labels["ink"]["latent"] in (0, 1, 2) and labels["ink"]["absent"] is True
    said = capsys.readouterr().err
    assert "a probe sees these concepts" in said and "dermaudit concepts teach ink --run" in said
    found = {r["latent"]: r for r in rows(run, "concepts.parquet")}
    assert found[RULER]["name"] == "ruler" and found[RULER]["agreement"] == 0.95
    for latent, row in found.items():
        if latent > 2:
            assert row["name"] is None and row["reason"].startswith("residual")
            assert row["agreement"] is None and row["z"] is None
