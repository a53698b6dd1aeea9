"""Bottlenecks: exactly NEC features, nothing read off the test labels, diagnosis words kept out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from concept_world import Data

from dermaudit.concepts.bottlenecks.bottleneck import compare, sparse_head
from dermaudit.concepts.vocabulary.vocabulary import Concept, Vocabulary
from dermaudit.errors import EvidenceError

N, D = 900, 16
SPLITS = np.array(["train", "val", "test"], dtype=object)[np.arange(N) % 3]
GROUPS = np.array([f"g{i // 3}" for i in range(N)], dtype=object)


@pytest.fixture(scope="module")
def made():
    """Features 0–2 carry the label; latents are the features, cut at zero."""
    rng = np.random.default_rng(0)
    y = (rng.random(N) < 0.4).astype(float)
    x = rng.normal(size=(N, D))
    x[:, :3] += 1.2 * y[:, None]
    x = x.astype(np.float32)
    labels = np.where(y == 1, "mel", "nv").astype(object)
    return x, y, Data(x, np.maximum(x, 0), SPLITS, GROUPS, labels=labels)


@pytest.fixture(scope="module")
def vocabulary():
    clinical = [Concept(f"c{i}", "clinical", (f"c{i}",)) for i in range(8)]
    diagnosis = [Concept("melanoma", "diagnosis", ("melanoma",))]
    return Vocabulary("v", (*diagnosis, *clinical), ("{}",), tuple(f"d{i}" for i in range(30)))


@pytest.fixture(scope="module")
def rows(made, vocabulary):
    vectors = np.eye(D)[3:12]  # the concepts see features without the label …
    vectors[0] = np.eye(D)[:3].sum(0)  # … the diagnosis word sees all of it
    distractors = np.random.default_rng(1).normal(size=(30, D))
    return {r.kind: r for r in compare(made[2], vocabulary, vectors, distractors)}


def test_compare_exactly_nec_concepts_of_every_kind(rows):
    assert set(rows) == {"sae", "vocabulary", "random", "probe"}
    for kind in ("sae", "vocabulary", "random"):
        assert len(json.loads(rows[kind].concepts)) == 5 == rows[kind].nec
    assert rows["probe"].nec is None


def test_compare_diagnosis_words_never_enter(rows):
    assert set(json.loads(rows["vocabulary"].concepts)) <= {f"c{i}" for i in range(8)}
    assert rows["vocabulary"].auroc < 0.6  # with the word "melanoma" it would be near the probe
    assert rows["probe"].auroc > 0.85


def test_compare_the_sae_row_finds_the_planted_latents(rows):
    used = json.loads(rows["sae"].concepts)
    assert {f"visual.pooled/{j}" for j in range(3)} <= set(used)
    assert all(used[f"visual.pooled/{j}"] > 0 for j in range(3))
    assert rows["sae"].auroc > 0.8 and rows["sae"].lo < rows["sae"].auroc < rows["sae"].hi


def test_compare_counts_are_those_of_test(rows, made):
    test = SPLITS == "test"
    assert all((r.n, r.n_pos) == (test.sum(), made[1][test].sum()) for r in rows.values())


@pytest.mark.parametrize("nec", [1, 3, 5, 16])
def test_sparse_head_exactly_nec_and_blind_to_test_labels(made, nec):
    x, y, _ = made
    train, test = np.flatnonzero(SPLITS == "train"), np.flatnonzero(SPLITS == "test")
    score, weights = sparse_head(x, y, train, test, GROUPS, nec=nec, seed=0)
    assert len(weights) == nec == len({j for j, _ in weights})
    if nec >= 3:
        assert {0, 1, 2} <= {j for j, _ in weights}
    other = y.copy()
    other[test] = 1 - other[test]
    again, same = sparse_head(x, other, train, test, GROUPS, nec=nec, seed=0)
    np.testing.assert_array_equal(score, again)
    assert weights == same


def test_sparse_head_the_score_is_the_weights_on_standardised_features(made):
    x, y, _ = made
    train, test = np.flatnonzero(SPLITS == "train"), np.flatnonzero(SPLITS == "test")
    score, weights = sparse_head(x, y, train, test, GROUPS, nec=3, seed=0)
    z = (x - x[train].mean(0)) / x[train].std(0)
    by_hand = sum(w * z[test, j] for j, w in weights)
    np.testing.assert_allclose(score - score[0], by_hand - by_hand[0], atol=1e-3)


def test_sparse_head_constant_features_are_not_used(made):
    x, y, _ = made
    x = x.copy()
    x[:, 5:] = 2.0
    train, test = np.flatnonzero(SPLITS == "train"), np.flatnonzero(SPLITS == "test")
    _, weights = sparse_head(x, y, train, test, GROUPS, nec=5, seed=0)
    assert {j for j, _ in weights} == set(range(5))


def test_compare_too_few_images(made, vocabulary):
    data = made[2]
    labels = np.where(np.arange(N) < 60, data.labels, "").astype(object)
    few = Data(data.pooled, np.maximum(data.pooled, 0), SPLITS, GROUPS, labels=labels)
    with pytest.raises(
        EvidenceError, match="too few images for the bottlenecks of 'mel'"
    ) as refused:
        compare(few, vocabulary, np.eye(D)[:9], np.zeros((0, D)))
    assert refused.value.numbers["n"] == 20
