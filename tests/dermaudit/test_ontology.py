"""The tree of diseases: names and synonyms, paths, Wu-Palmer distances, and files that are wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermaudit.data.captions.ontology import Ontology
from dermaudit.data.manifest.blank_cells import known, says_nothing
from dermaudit.errors import UserInputError

TREE = {
    "Proliferations": {
        "benign": {"melanocytic": {"Nevus, Mole, nevus": {}}, "Cysts, cyst": {}},
        "malignant": {"Melanocytic": {"Malignant melanoma, melanoma": {}}},
    },
    "inflammatory": {
        "Chronic dermatitis, NOS": {},
        "Café au lait macule": {},
        "Sweet’s  syndrome, ": {},
        "mole": {},
        "Damage (sun, wind)": {},
    },
}


@pytest.fixture
def ontology() -> Ontology:
    return Ontology.from_tree(TREE)


def test_nodes_are_in_pre_order_with_the_first_name_in_lower_case(ontology):
    assert ontology.names == [
        "proliferations",
        "benign",
        "melanocytic",
        "nevus",
        "cysts",
        "malignant",
        "melanocytic",
        "malignant melanoma",
        "inflammatory",
        "chronic dermatitis",
        "café au lait macule",
        "sweet’s syndrome",
        "mole",
        "damage (sun, wind)",
    ]
    assert len(ontology) == 14
    assert ontology.synonyms[3] == ("nevus", "mole") and ontology.synonyms[4] == ("cysts", "cyst")
    assert ontology.synonyms[9] == ("chronic dermatitis",), "NOS is no name"
    assert ontology.parent[:4] == [None, 0, 1, 2] and ontology.parent[8] is None
    assert ontology.depth == [1, 2, 3, 4, 3, 2, 3, 4, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("Melanoma", 7),
        ("  malignant   MELANOMA ", 7),
        ("cyst", 4),
        ("Chronic dermatitis, nos", 9),
        ("cafe au lait macule", 10),
        ("Sweet's syndrome", 11),
        ("nos", None),
        ("psoriasis", None),
        ("", None),
        (None, None),
        ("No definitive diagnosis", None),
        ("[no definitive diagnosis]", None),
        ("damage (sun, wind)", 13),
    ],
)
def test_find_any_synonym_in_any_case(ontology, name, index):
    assert ontology.find(name) == index


def test_find_all_a_name_at_two_places(ontology):
    assert ontology.find_all("melanocytic") == [2, 6] and ontology.find("melanocytic") == 2
    # Whoever bears a name comes before whoever has it as a synonym.
    assert ontology.find_all("mole") == [12, 3] and ontology.find("mole") == 12
    assert ontology.find_all("psoriasis") == []


def test_closest_offers_a_name_only_where_one_is_near(ontology):
    assert ontology.closest("malignant melanomma") == "malignant melanoma"
    assert ontology.closest("nevuss") == "nevus"
    assert ontology.closest("xyzzy") is None
    assert ontology.closest("no definitive diagnosis") is None


def test_paths(ontology):
    assert ontology.path(7) == ["proliferations", "malignant", "melanocytic", "malignant melanoma"]
    assert ontology.ancestors(7) == [0, 5, 6, 7] and ontology.ancestors(8) == [8]


def test_distance_computed_by_hand(ontology):
    assert ontology.distance(7, 7) == 0.0
    assert ontology.distance(3, 4) == pytest.approx(1 - 2 * 2 / (4 + 3))  # below `benign`
    assert ontology.distance(3, 7) == pytest.approx(1 - 2 * 1 / (4 + 4))
    assert ontology.distance(2, 3) == pytest.approx(1 - 2 * 3 / (3 + 4))  # parent and child
    assert ontology.distance(3, 9) == 1.0, "no common root"


trees = st.recursive(
    st.just({}),
    lambda below: st.dictionaries(st.text("abc", min_size=1), below, max_size=3),
    max_leaves=12,
).filter(bool)


@given(trees)
def test_distances_equal_distance_of_every_pair(tree):
    ontology = Ontology.from_tree(tree)
    nodes = list(range(len(ontology)))[::-1]
    found = ontology.distances(nodes)
    expected = [[ontology.distance(a, b) for b in nodes] for a in nodes]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, found.T)
    assert (np.diag(found) == 0).all() and (found >= 0).all() and (found <= 1).all()
    assert (found[~np.eye(len(nodes), dtype=bool)] > 0).all(), "two nodes are never one"


def test_distances_of_nothing(ontology):
    assert ontology.distances([]).shape == (0, 0)


@given(trees)
def test_parents_come_before_their_children(tree):
    ontology = Ontology.from_tree(tree)
    for index, above in enumerate(ontology.parent):
        assert above is None or above < index
        assert ontology.depth[index] == len(ontology.path(index))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": {"b": []}}', "'a > b' is a list, not an object"),
        ('{"a": {"b": "leaf"}}', "'a > b' is text, not an object"),
        ('{"a": null}', "'a' is null, not an object"),
        ('{"a": {" , ": {"b": {}}}}', "'a >  , ' names no disease"),
        ('{"a": {"b": {}, "b": {"c": {}}}}', "the key 'b' occurs twice in one object"),
        ("{}", "holds no disease"),
        ('["a"]', "holds a list, not an object of diseases"),
        ('{"a": ', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_load_names_what_is_wrong_and_where(tmp_path, text, said):
    file = tmp_path / "tree.json"
    file.write_text(text)
    with pytest.raises(UserInputError) as caught:
        Ontology.load(file)
    assert said in caught.value.message and str(file) in caught.value.message
    assert "\n" not in caught.value.message and caught.value.hint


def test_from_tree_a_leaf_without_a_name_is_left_out():
    assert Ontology.from_tree({"a": {"": {}, "b": {}}}).names == ["a", "b"]
    with pytest.raises(UserInputError, match="holds no disease"):
        Ontology.from_tree({" ,": {}})


def test_load_a_missing_file_and_another_encoding(tmp_path):
    with pytest.raises(UserInputError, match="does not exist"):
        Ontology.load(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes('{"Café": {}}'.encode("latin-1"))
    with pytest.raises(UserInputError, match="is not valid JSON"):
        Ontology.load(tmp_path / "latin.json")


def test_load_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(TREE).encode())
    assert Ontology.load(tmp_path / "bom.json").names[0] == "proliferations"


@pytest.mark.parametrize(
    "text",
    [
        "",
        None,
        " ",
        "No age information",
        "No body location information",
        "no definitive diagnosis",
        "No visual concepts",
        "[No matching attributes]",
        "n/a",
        "Unknown",
        "No symptom information.",
        "no hierarchical disease information",
    ],
)
def test_names_nothing_of_sentinels(text):
    assert says_nothing(text) and known(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "no scale is seen",
        "Nevus",
        "no diagnosis was more certain than eczema",
        "unknown nodule",
        "There is no age information and a red papule.",
        "nodule",
    ],
)
def test_names_nothing_not_of_sentences(text):
    assert not says_nothing(text) and known(f"  {text}\n") == text


@pytest.mark.data
def test_the_derm1m_ontology():
    root = os.environ.get("DERMAUDIT_DATA", "")
    file = Path(root) / "peer-data" / "derm1m" / "ontology.json"
    if not root or not file.is_file():
        pytest.skip("no peer-data/derm1m/ontology.json in DERMAUDIT_DATA")
    ontology = Ontology.load(file)
    # 371 keys, one of them a leaf without a name.
    assert len(ontology) == 370
    assert [ontology.depth.count(d) for d in range(1, 6)] == [7, 88, 109, 147, 19]
    assert len(set(range(370)) - set(ontology.parent)) == 316, "leaves"
    melanoma = ontology.find("melanoma")
    assert ontology.find("Malignant melanoma") == melanoma
    assert ontology.path(melanoma)[0] == "proliferations"
    assert all(ontology.find(word) is not None for names in ontology.synonyms for word in names)
    distances = ontology.distances(range(370))
    assert distances.min() == 0 and distances.max() == 1 and (distances == 0).sum() == 370
