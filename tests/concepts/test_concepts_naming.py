"""Vocabularies, text vectors, and names: planted latents get their word, the rest stay unnamed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from concept_world import D, H, TextTower, basis
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from dermaudit.concepts.naming.methods.permutation import NAMER
from dermaudit.concepts.naming.methods.registry import Names, NamingEvidence
from dermaudit.concepts.naming.scores import benjamini_hochberg
from dermaudit.concepts.vocabulary.vocabulary import Concept, Vocabulary
from dermaudit.errors import UserInputError

WORDS = ["ruler", "ink", "hair", "veil", "streaks", "milia"]


def words(n_distractors: int = 20) -> Vocabulary:
    return Vocabulary(
        "toy",
        tuple(Concept(w, "artifact", (w,)) for w in WORDS),
        ("{}",),
        tuple(f"d{i}" for i in range(n_distractors)),
    )


def name_latents(*given, seed: int = 0) -> Names:
    """Names by permutation from codes, embeddings, vectors, distractors and the vocabulary."""
    return NAMER.run(NamingEvidence(*given, seed=seed))


def planted(n: int = 800, seed: int = 0):
    """codes (n, 12) and pooled (n, D): latents 0–5 write direction 0–5, 6–9 write nothing, 10 is
    dead, 11 fires on three images."""
    rng = np.random.default_rng(seed)
    codes = (rng.random((n, 12)) < 0.15) * (0.5 + rng.random((n, 12)))
    codes[:, 10:] = 0
    codes[[5, 50, 500], 11] = 1.0
    pooled = codes[:, :6] @ basis()[:6] + basis()[H] + 0.1 * rng.normal(size=(n, D))
    return codes, pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def vectors() -> tuple[np.ndarray, np.ndarray]:
    noise = 0.05 * np.random.default_rng(9).normal(size=(6, D))
    concepts = basis()[:6] + noise
    distractors = np.random.default_rng(8).normal(size=(20, D))
    distractors -= 0.8 * distractors @ basis()[:6].T @ basis()[:6]  # they see the concepts dimly
    return (
        concepts / np.linalg.norm(concepts, axis=1, keepdims=True),
        distractors / np.linalg.norm(distractors, axis=1, keepdims=True),
    )


def test_planted_latents_get_their_word_and_no_other_does():
    codes, pooled = planted()
    names = name_latents(codes, pooled, *vectors(), words())
    assert list(names.word[:6]) == list(range(6))
    assert list(names.word[6:]) == [-1] * 6
    assert names.reason[:6] == [None] * 6
    assert set(names.reason[6:10]) <= {
        "no word beats its null",
        "a word that names nothing in these images scores best",
    }
    assert (names.q[:6] <= 0.05).all()
    assert [json.loads(r)[0][0] for r in names.rivals[:6]] == WORDS


def test_dead_and_rare_latents_are_unnamed():
    codes, pooled = planted()
    names = name_latents(codes, pooled, *vectors(), words())
    assert names.reason[10] == "dead" and names.reason[11] == "fires on 3 images only"
    assert np.isnan(names.z[10:]).all() and names.rivals[10:] == ["[]", "[]"]


def test_score_by_hand():
    # s(n, t) = Σ w z: two images, one latent that fires on the first only.
    codes = np.array([[3.0, 1], [0, 1], [0, 1]] * 10)
    pooled = np.tile(np.eye(3), (10, 1))
    vocabulary = Vocabulary("v", (Concept("x", "artifact", ("x",)),), ("{}",), ())
    names = name_latents(codes, pooled, np.eye(3)[:1], np.zeros((0, 3)), vocabulary)
    column = pooled[:, 0]
    assert names.z[0] == pytest.approx((1 - column.mean()) / column.std())
    assert names.z[1] == pytest.approx(0, abs=1e-12)  # fires everywhere alike: says nothing


def test_permuted_activations_nothing_is_named():
    rng = np.random.default_rng(3)
    codes, pooled = planted()
    codes = np.concatenate([codes[:, :6]] * 6, axis=1)
    assert (name_latents(codes, pooled, *vectors(), words()).word >= 0).all()
    for column in range(36):
        codes[:, column] = codes[rng.permutation(len(codes)), column]
    names = name_latents(codes, pooled, *vectors(), words())
    assert (names.word >= 0).sum() <= 1
    assert names.named_under_permutation <= 2


def test_distractor_a_latent_won_by_one_is_unnamed():
    codes, pooled = planted()
    concepts, distractors = vectors()
    distractors[4] = basis()[2]  # a nonsense word that lies exactly on latent 2
    names = name_latents(codes, pooled, concepts, distractors, words())
    assert names.word[2] == -1 and "names nothing" in names.reason[2]
    assert json.loads(names.rivals[2])[0][0] == "(d4)"


def test_names_same_seed_same_names():
    codes, pooled = planted()
    one, again = (name_latents(codes, pooled, *vectors(), words(), seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.p_null, again.p_null)
    np.testing.assert_array_equal(one.z, again.z)


def test_synonyms_two_planted_wordings_give_one_concept():
    # The latents stand for different wordings ("ruler", "measuring scale") of the same concept.
    tower = TextTower({"ruler": basis()[0], "measuring scale": basis()[1], "ink": basis()[2]})
    vocabulary = Vocabulary(
        "toy",
        (
            Concept("ink", "artifact", ("ink",)),
            Concept("ruler", "artifact", ("a ruler", "a measuring scale"), ("no ruler",)),
        ),
        ("{}", "an image with {}"),
        ("banana", "river", "guitar"),
    )
    codes, pooled = planted()
    names = name_latents(codes[:, :3], pooled, *vocabulary.text_vectors(tower), vocabulary)
    assert [vocabulary.concepts[w].id for w in names.word] == ["ruler", "ruler", "ink"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_benjamini_hochberg_equals_scipy(p):
    np.testing.assert_allclose(
        benjamini_hochberg(np.array(p)), false_discovery_control(p), atol=1e-12
    )


def test_benjamini_hochberg_empty():
    assert len(benjamini_hochberg(np.array([]))) == 0


# ---- vocabularies


def test_bundled_every_id_finds_itself():
    vocabulary = Vocabulary.load()
    assert {"ruler", "ink", "hair", "gel_bubble", "dark_corner"} <= {
        c.id for c in vocabulary.concepts
    }
    for concept in vocabulary.concepts:
        assert vocabulary.concept(concept.id) is concept
        assert vocabulary.concept(concept.terms[-1].upper()).terms  # synonyms, in any case
    assert vocabulary.concept("calibration scale").id == "ruler"
    ids = [c.id for c in vocabulary.concepts]
    assert len(set(ids)) == len(ids)
    # Random words must be able to fill a bottleneck as wide as the vocabulary's.
    assert len(vocabulary.distractors) >= sum(c.type != "diagnosis" for c in vocabulary.concepts)


def test_concept_the_nearest_is_offered():
    with pytest.raises(UserInputError, match="unknown concept 'rular': did you mean 'ruler'?"):
        Vocabulary.load().concept("rular")
    with pytest.raises(UserInputError, match="did you mean 'dermoscopy'?"):
        Vocabulary.load("dermoscpy")


GOOD = '[concepts.ruler]\ntype = "artifact"\nterms = ["ruler"]\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no concepts"),
        ("concepts = 3", "is not a vocabulary"),
        ('[concepts]\nruler = "a ruler"', "concept 'ruler' is not a table"),
        ('[concepts.ruler]\ntype = "artifact"', "concept 'ruler' has no terms"),
        ('[concepts.ruler]\ntype = "artifact"\nterms = [1]', "concept 'ruler' has no terms"),
        ('[concepts.ruler]\ntype = "artefact"\nterms = ["ruler"]', "has type 'artefact'"),
        (GOOD + 'mistaken_for = ["ink"]', "'ruler' is mistaken for 'ink', which is no concept"),
        (GOOD + 'opposites = "no ruler"', "opposites of concept 'ruler' is not a list"),
        ('templates = ["an image"]\n' + GOOD, "every template needs {}"),
        ("templates = []\n" + GOOD, "templates and distractors.words are lists"),
        (GOOD + '[distractors]\nwords = "banana"', "templates and distractors.words are lists"),
        ("[concepts", "cannot be read"),
    ],
)
def test_bad_file_a_sentence_that_names_it(tmp_path, text, sentence):
    path = tmp_path / "v.toml"
    path.write_text(text)
    with pytest.raises(UserInputError) as refused:
        Vocabulary.load(path)
    assert "v.toml" in refused.value.message and sentence in refused.value.message


def test_bad_file_absent_a_folder_a_list(tmp_path):
    with pytest.raises(UserInputError, match=r"none\.toml does not exist"):
        Vocabulary.load(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserInputError, match="cannot be read"):
        Vocabulary.load(tmp_path / "folder.toml")
    (tmp_path / "v.json").write_text("[1]")
    with pytest.raises(UserInputError, match="is not a vocabulary"):
        Vocabulary.load(tmp_path / "v.json")


def test_json_and_toml_the_same_vocabulary(tmp_path):
    (tmp_path / "v.toml").write_text(GOOD)
    (tmp_path / "v.json").write_text(
        json.dumps({"concepts": {"ruler": {"type": "artifact", "terms": ["ruler"]}}})
    )
    one, other = (Vocabulary.load(tmp_path / name) for name in ("v.toml", "v.json"))
    assert one == other and one.sha256() == other.sha256()
    assert one.sha256() != Vocabulary.load().sha256()


def test_text_vectors_a_concept_does_not_depend_on_the_others():
    tower = TextTower({w: basis()[i] for i, w in enumerate(WORDS)})
    whole = words()
    part = Vocabulary("part", whole.concepts[3:5], whole.templates, whole.distractors[:2])
    all_vectors, all_words = whole.text_vectors(tower)
    some_vectors, some_words = part.text_vectors(tower)
    np.testing.assert_array_equal(some_vectors, all_vectors[3:5])
    np.testing.assert_array_equal(some_words, all_words[:2])
    np.testing.assert_allclose(np.linalg.norm(all_vectors, axis=1), 1, atol=1e-6)
    assert (all_vectors @ basis()[:6].T).argmax(1).tolist() == list(range(6))
