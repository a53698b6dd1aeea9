"""Classes and templates of the zero-shot bench, and where in the ontology a prediction is right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dermaudit.bench.inputs.prompts import (
    DERMFM_TEMPLATES,
    built_in_classes,
    load_classes,
    load_templates,
    truth_numbers,
)
from dermaudit.bench.inputs.saved_predictions import Predictions
from dermaudit.bench.measures.hierarchy import (
    SIMILARITY,
    class_nodes,
    class_table,
    hierarchy_figures,
)
from dermaudit.bench.options import Resampling
from dermaudit.data.captions.ontology import Ontology
from dermaudit.errors import EvidenceError, UserInputError


def test_templates_the_published_eight():
    assert load_templates("dermfm") == list(DERMFM_TEMPLATES)
    assert len(set(DERMFM_TEMPLATES)) == 8
    assert all(t.count("{}") == 1 for t in DERMFM_TEMPLATES)


def test_templates_from_files(tmp_path):
    (tmp_path / "t.txt").write_text("dermoscopy of {}\n\n  {} on skin\n")
    assert load_templates(str(tmp_path / "t.txt")) == ["dermoscopy of {}", "{} on skin"]
    (tmp_path / "t.json").write_text('["a {}"]')
    assert load_templates(str(tmp_path / "t.json")) == ["a {}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dermoscopy of {}\na nevus\n", "template 2: 'a nevus' must have exactly one {}"),
        ("{} and {}\n", "must have exactly one {}"),
        ("{0} here {}\n", "must have exactly one {}"),
        ("\n", "holds no template"),
    ],
)
def test_templates_broken(tmp_path, text, message):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UserInputError) as refused:
        load_templates(str(tmp_path / "t.txt"))
    assert message in refused.value.message


def test_templates_unknown_set():
    with pytest.raises(UserInputError, match="did you mean 'dermfm'"):
        load_templates("dermfn")


def test_classes_built_in_set_by_the_labels():
    assert load_classes(None, ["nv", None, "mel"], "d") == built_in_classes()["ham"]
    assert list(load_classes(None, ["SEK", "ACK", "MEL"], "d")) == list(built_in_classes()["pad"])
    assert list(load_classes(None, ["malignant", "benign"], "d")) == ["benign", "malignant"]
    assert "SCC" in load_classes(None, ["SCC", "VASC"], "d")
    # full names stand for their codes
    assert (
        next(iter(load_classes(None, ["Actinic keratosis", "melanocytic nevus"], "d"))) == "akiec"
    )


def test_classes_unknown_labels_ask_for_a_file():
    with pytest.raises(UserInputError, match="no built-in set of classes has all labels of d"):
        load_classes(None, ["nv", "eczema"], "d")
    with pytest.raises(UserInputError, match="has no label to score"):
        load_classes(None, [None, ""], "d")


def test_classes_files(tmp_path):
    (tmp_path / "c.toml").write_text('mel = ["melanoma", "malignant melanoma"]\nnv = "nevus"\n')
    expected = {"mel": ["melanoma", "malignant melanoma"], "nv": ["nevus"]}
    assert load_classes(str(tmp_path / "c.toml"), ["mel"], "d") == expected
    (tmp_path / "c.json").write_text(json.dumps(expected))
    assert load_classes(str(tmp_path / "c.json"), ["mel"], "d") == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "mel = [\n", "is not valid TOML"),
        ("c.json", "{", "is not valid JSON"),
        ("c.json", '{"mel": ["melanoma"]}', "needs at least two classes"),
        ("c.toml", 'mel = []\nnv = ["nevus"]\n', "class 'mel' needs a list of names"),
        ("c.toml", 'mel = 3\nnv = ["nevus"]\n', "class 'mel' needs a list of names"),
    ],
)
def test_classes_broken_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserInputError, match=message):
        load_classes(str(tmp_path / name), ["mel"], "d")


def test_truth_by_code_or_name_and_unknown_stays_unknown():
    classes = {"mel": ["melanoma"], "nv": ["nevus", "mole"]}
    assert truth_numbers(["nv", "Melanoma", None, "MOLE"], classes, "d").tolist() == [1, 0, -1, 1]
    with pytest.raises(
        UserInputError, match=r"1 of .* is none .*'meel' \(2 images; did you mean 'mel'\?\)"
    ):
        truth_numbers(["meel", "nv", "meel"], classes, "d")
    with pytest.raises(UserInputError) as caught:
        truth_numbers(["meel", "nv", "meel", "baker's", None], classes, "d")
    assert "2 of the labels are none of the classes" in caught.value.message
    assert "'baker's' (1 images), 'meel' (2 images" in caught.value.message
    assert "--where \"label not in ('baker''s', 'meel')\"" in caught.value.hint


def test_truth_a_code_wins_over_another_classes_name():
    classes = {"a": ["b"], "b": ["c"]}
    assert truth_numbers(["b", "c"], classes, "d").tolist() == [1, 1]


# ---- hierarchy

TREE = {
    "tumours": {"melanocytic": {"melanoma": {}, "nevus": {}}, "bcc": {}},
    "nails": {"ridge": {}},
}


def predictions(truth, message, classes):
    truth, message = np.array(truth), np.array(message)
    images = [str(i) for i in range(len(truth))]
    return Predictions(
        images, truth, message, np.eye(len(classes))[message], classes, images, False
    )


def test_hierarchy_by_hand():
    tree = Ontology.from_tree(TREE)
    classes = ["melanoma", "nevus", "bcc", "ridge"]
    nodes = class_nodes(tree, {c: [c] for c in classes})
    right, similarity = class_table(tree, nodes)
    mel, nv, bcc, ridge = range(4)
    assert right[mel, nv].tolist() == [1, 1, 0]
    assert right[mel, bcc].tolist() == [1, 0, 0]
    assert right[mel, ridge].tolist() == [0, 0, 0]
    assert right[bcc, mel, :2].tolist() == [1, 0] and np.isnan(right[bcc, mel, 2])
    assert similarity[mel, nv] == pytest.approx(2 * 2 / 6)
    assert similarity[mel, ridge] == 0
    assert np.diag(similarity) == pytest.approx(1)

    p = predictions([mel, mel, bcc, nv], [nv, mel, mel, ridge], classes)
    figures, counts = hierarchy_figures({"m": p}, tree, nodes, Resampling(20))
    assert figures.metrics == ("level 1", "level 2", "level 3", SIMILARITY)
    assert counts == [4, 4, 3, 4]
    assert figures.points[0] == pytest.approx([3 / 4, 2 / 4, 1 / 3, (4 / 6 + 1 + 2 / 5 + 0) / 4])


def test_hierarchy_level_of_leaves_is_plain_accuracy():
    tree = Ontology.from_tree({"a": {"x": {}, "y": {}}, "b": {"z": {}}})
    rng = np.random.default_rng(0)
    p = predictions(rng.integers(0, 3, 50), rng.integers(0, 3, 50), ["x", "y", "z"])
    nodes = class_nodes(tree, {c: [c] for c in "xyz"})
    figures, _ = hierarchy_figures({"m": p}, tree, nodes, Resampling(10))
    assert figures.points[0, 1] == pytest.approx(np.mean(p.truth == p.predicted))


def test_hierarchy_classes_outside_the_tree():
    tree = Ontology.from_tree(TREE)
    nodes = class_nodes(tree, {"mel": ["melanoma"], "nv": ["mole", "nevus"], "x": ["rash"]})
    assert nodes[2] is None and tree.names[nodes[1]] == "nevus"
    p = predictions([0, 2, 1], [2, 0, 1], ["mel", "nv", "x"])
    figures, counts = hierarchy_figures({"m": p}, tree, nodes, Resampling(10))
    assert counts == [2, 2, 2, 2]  # the rash itself is left out, a melanoma called so is wrong
    assert figures.points[0] == pytest.approx([0.5, 0.5, 0.5, 0.5])
    with pytest.raises(EvidenceError):
        hierarchy_figures({"m": p}, tree, [nodes[0], None, None], Resampling(10))


def test_hierarchy_the_classes_of_ham_are_in_the_published_tree(data_dir):
    path = data_dir / "peer-data" / "derm1m" / "ontology.json"
    if not path.is_file():
        pytest.skip("no peer-data/derm1m in DERMAUDIT_DATA")
    nodes = class_nodes(Ontology.load(path), built_in_classes()["ham"])
    assert None not in nodes
