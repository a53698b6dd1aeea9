"""Concept annotation: MONET's score by hand, concepts met by name, blanks left out, random words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from dermaudit.bench.annotation import (
    COUNT,
    MEAN,
    TEMPERATURE,
    ConceptScores,
    annotation_figures,
    annotation_sheets,
    presence,
    random_aurocs,
)
from dermaudit.bench.inputs.concepts import (
    TEMPLATES,
    BenchConcept,
    concepts_of,
    diagnosis_terms,
    enough,
    read_terms,
)
from dermaudit.bench.options import Resampling
from dermaudit.data import Manifest
from dermaudit.errors import UserInputError


class Words:
    """A tower whose text vectors are chosen: {text: vector}."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode_text(self, texts):
        rows = torch.tensor([self.vectors[t] for t in texts], dtype=torch.float64)
        return rows / rows.norm(dim=1, keepdim=True)


def test_presence_by_hand():
    tower = Words(
        {
            "a of hair": [1.0, 0], "a of hairs": [0.6, 0.8], "a": [0.8, 0.6],
            "hair b": [0, 1.0], "hairs b": [0, 1.0], "b": [1.0, 0],
        }
    )  # fmt: skip
    x = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    found = presence(tower, x, [("hair", "hairs")], [("a of {}", "a"), ("{} b", "b")])[:, 0]
    expected = []
    for row in x:
        parts = []
        for terms, reference in (([[1, 0], [0.6, 0.8]], [0.8, 0.6]), ([[0, 1], [0, 1]], [1, 0])):
            target = np.mean([row @ np.array(t) for t in terms]) / TEMPERATURE
            other = row @ np.array(reference) / TEMPERATURE
            top = max(target, other)
            parts.append(np.exp(target - top) / (np.exp(target - top) + np.exp(other - top)))
        expected.append(np.mean(parts))
    assert found == pytest.approx(expected)


def test_templates_the_published_ones():
    assert len(TEMPLATES["skin"]) == 6
    assert all(a.count("{}") == 1 and "{}" not in b for t in TEMPLATES.values() for a, b in t)
    assert pytest.approx(1 / 98.93, rel=1e-3) == TEMPERATURE


def manifest(tmp_path, **columns):
    n = len(next(iter(columns.values())))
    base = {"image": [f"{i}.png" for i in range(n)]}
    return Manifest(pa.table({**base, **columns}), tmp_path, tmp_path / "manifest.csv")


def test_concepts_meet_their_columns_by_name_not_by_place(tmp_path):
    m = manifest(
        tmp_path,
        **{"concept:blue_whitish_veil": [1.0, 0.0, None], "artifact:ruler": [None, 1.0, 0.0]},
    )
    terms = {"streaks": ["starburst"], "Blue-whitish veil": ["veil"], "hair": ["hair"]}
    found, unmatched = concepts_of(m, terms, np.array([2, 0]))
    assert [(c.name, c.terms, c.own_name) for c in found] == [
        ("blue_whitish_veil", ("veil",), False),
        ("ruler", ("ruler",), True),
    ]
    assert unmatched == ["hair", "streaks"]
    assert np.isnan(found[0].truth[0]) and found[0].truth[1] == 1
    assert found[1].truth[0] == 0 and np.isnan(found[1].truth[1])


def test_concepts_none_to_score(tmp_path):
    with pytest.raises(UserInputError, match="no concept: or artifact: column"):
        concepts_of(manifest(tmp_path, label=["a"]), {}, np.array([0]))


def test_terms_the_published_file_and_broken_ones(tmp_path, data_dir):
    path = data_dir / "peer-data" / "make" / "ConceptTerms.json"
    if path.is_file():
        terms = read_terms(path)
        assert (len(terms), sum(map(len, terms.values()))) == (64, 120)
    (tmp_path / "t.json").write_text('{"ulcer": ["ulcer"], "scale": "scaly"}')
    with pytest.raises(UserInputError, match="'scale' needs a list of terms"):
        read_terms(tmp_path / "t.json")
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(UserInputError, match="holds no concepts"):
        read_terms(tmp_path / "t.json")


def named(name, *terms):
    return BenchConcept(name, np.zeros(1), terms)


def test_diagnoses_among_terms_labels_and_built_in_names():
    asked = [
        named("plaque", "plaque", "psoriasis"),
        named("patch", "melasma", "vitiligo"),
        named("pigment", "Malignant melanomas", "dark"),  # a built-in name, within a term
        named("nevoid", "nevoid"),  # not the word "nevus", nor a part of a word
    ]
    assert diagnosis_terms(asked, ["Psoriasis", None, "nail_disease", ""]) == {
        "plaque": ["psoriasis"], "pigment": ["Malignant melanomas"],
    }  # fmt: skip
    assert diagnosis_terms(asked[:2], []) == {}


def test_diagnoses_among_terms_the_published_file(data_dir):
    path = data_dir / "peer-data" / "make" / "ConceptTerms.json"
    if not path.is_file():
        pytest.skip("no peer-data/make in DERMAUDIT_DATA")
    asked = [named(name, *terms) for name, terms in read_terms(path).items()]
    found = diagnosis_terms(asked, ["vitiligo", "psoriasis", "scabies", "impetigo"])
    assert found["plaque"] == ["psoriasis"] and found["patch"] == ["vitiligo"]
    assert found["burrow"] == ["scabies"] and found["erosion"] == ["impetigo"]
    assert "ulcer" not in found and "scale" not in found


def concepts(n=200, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, 2)) < 0.4).astype(float)
    truth[::7, 0] = np.nan
    return [BenchConcept("a", truth[:, 0], ("a",)), BenchConcept("b", truth[:, 1], ("b",))], rng


def test_figures_blank_rows_are_left_out():
    both, rng = concepts()
    score = rng.normal(size=(200, 2)) + np.nan_to_num(
        np.column_stack([c.truth for c in both]), nan=9
    )
    figures = annotation_figures({"m": score}, both, [str(i) for i in range(200)], Resampling(50))
    seen = np.isfinite(both[0].truth)
    a = roc_auc_score(both[0].truth[seen], score[seen, 0])
    b = roc_auc_score(both[1].truth, score[:, 1])
    assert figures.metrics == ("a", "b", MEAN, COUNT)
    assert figures.points[0] == pytest.approx([a, b, (a + b) / 2, (a > 0.7) + (b > 0.7)])
    # what stands in the blank rows changes nothing, not even an interval
    score[~seen, 0] = -5
    again = annotation_figures({"m": score}, both, [str(i) for i in range(200)], Resampling(50))
    assert np.array_equal(again.draws, figures.draws)


def test_random_words_stay_around_one_half_and_the_sheet_shows_them():
    both, rng = concepts(400)
    noise = rng.normal(size=(400, 24))
    assert np.abs(random_aurocs(noise, both).mean(1) - 0.5).max() < 0.05
    score = np.nan_to_num(np.column_stack([c.truth for c in both]), nan=0.0) + 0.3 * noise[:, :2]
    rare = BenchConcept("rare", np.where(np.arange(400) < 4, 1.0, 0.0), ("rare",))
    assert not enough(rare.truth)
    sheets = annotation_sheets(
        "toy",
        ConceptScores(
            {"m": np.column_stack([score, noise[:, 2]])},
            {"m": noise},
            [*both, rare],
            [str(i) for i in range(400)],
        ),
        Resampling(50),
        unmatched=["hair"],
        diagnoses={"b": ["a mole", "nevus"]},
    )
    assert any(
        "terms that name a diagnosis" in n and "b: a mole, nevus" in n for n in sheets[0].notes
    )
    assert sheets[0].rows[-1][4] == "n too small"
    assert sheets[1].rows[0][2] == "2 of 2"
    assert sheets[1].rows[0][3] == "2 of 2"
    assert "terms without a column, left out (1): hair" in sheets[0].notes
    assert {r["metric"] for r in sheets[0].records} == {"a", "b"}
