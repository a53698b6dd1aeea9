"""Captions split into sentences, and the concepts that a text mentions or denies."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermaudit.data.captions.concept_words import ConceptWords
from dermaudit.data.captions.sentences import sentences
from dermaudit.errors import UserInputError


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "A 2.5 cm plaque on the left arm. It is scaly.",
            ["A 2.5 cm plaque on the left arm.", "It is scaly."],
        ),
        (
            "The lesion (e.g. a nevus) is brown. See Fig. 2 for details.",
            ["The lesion (e.g. a nevus) is brown.", "See Fig. 2 for details."],
        ),
        (
            "Dr. Smith saw psoriasis vs. eczema in approx. 2 weeks.",
            ["Dr. Smith saw psoriasis vs. eczema in approx. 2 weeks."],
        ),
        (
            "It was given t.i.d. for 2 weeks. She improved.",
            ["It was given t.i.d. for 2 weeks.", "She improved."],
        ),
        (
            "erythematous papules on the face. no scale is seen. itchy!",
            ["erythematous papules on the face.", "no scale is seen.", "itchy!"],
        ),
        ("It measured 4 mm. Biopsy showed BCC.", ["It measured 4 mm.", "Biopsy showed BCC."]),
        ("S. aureus was grown. Is it impetigo?", ["S. aureus was grown.", "Is it impetigo?"]),
        ("A red patch.A white one.", ["A red patch.", "A white one."]),
        ("Red... Itchy!!!", ["Red...", "Itchy!!!"]),
        ("no end", ["no end"]),
        ("Twice. Twice.", ["Twice."]),
        ("Of two\n lines. And more.", ["Of two lines.", "And more."]),
        ("...", []),
        ("2. 3.", []),
        ("", []),
        ("  \n", []),
    ],
)
def test_sentences_abbreviations_and_decimals_end_none(caption, expected):
    assert sentences(caption) == expected


@given(st.text(st.sampled_from("abAB .,!?2é\n"), max_size=60))
def test_sentences_are_parts_of_the_caption_in_order(caption):
    """Nothing is added, and nothing that has a word is lost, except repetitions."""
    bare = re.sub(r"\s", "", caption)
    at = 0
    for sentence in sentences(caption):
        part = re.sub(r"\s", "", sentence)
        at = bare.index(part, at) + len(part)
    for word in re.findall(r"[abABé]{2,}", caption):
        assert any(word in sentence for sentence in sentences(caption))


@pytest.fixture
def words() -> ConceptWords:
    return ConceptWords(
        {
            "scale": ["scale", "scaly"],
            "network": ["network"],
            "pigment network": ["pigment network"],
            "atypical network": ["atypical pigment network"],
            "patch": ["patch"],
            "bulla": ["bullae"],
            "papule": ["papule"],
            "crust": ["crust"],
            "red": ["red"],
            "pityriasis": ["pityriasis"],
            "blue-white veil": ["blue white veil"],
        }
    )


@pytest.mark.parametrize(
    ("text", "mentioned", "denied"),
    [
        ("An atypical pigment network.", ["atypical network"], []),
        ("Pigment networks; a network.", ["pigment network", "network"], []),
        ("scaly patches, SCALES", ["scale", "patch"], []),
        ("infrared, patchy, escaled", [], []),
        ("blue-white veil, Pityriasis' papules", ["blue-white veil", "pityriasis", "papule"], []),
        ("no scale is seen", [], ["scale"]),
        ("no scale, crust, or papules; red", ["red"], ["scale", "crust", "papule"]),
        ("no scale, red papules", ["red", "papule"], ["scale"]),
        ("without scale but with crust", ["crust"], ["scale"]),
        ("non-scaly red patch", ["red", "patch"], ["scale"]),
        ("Scale is not seen. Red.", ["red"], ["scale"]),
        ("Red, crust is absent", ["red"], ["crust"]),
        ("not only scaly", ["scale"], []),
        ("No scale here. Scale there.", ["scale"], []),
        ("absence of crust", [], ["crust"]),
        ("pigment. Network", ["network"], []),
        ("", [], []),
    ],
)
def test_find_longest_whole_words_and_what_is_denied(words, text, mentioned, denied):
    assert words.find(text) == (mentioned, denied)


@given(
    st.lists(st.sampled_from(["scale", "pigment", "network", "atypical", "red", "x"]), max_size=9)
)
def test_find_equals_a_plain_search_of_the_longest_first(mentioned):
    vocabulary = ConceptWords(
        {
            t: [t]
            for t in (
                "network",
                "pigment network",
                "atypical pigment network",
                "scale",
                "red",
                "red scale",
            )
        }
    )
    left, expected = " ".join(mentioned) + " ", []
    while left:  # an independent reading: at each word the longest term that begins there
        starts = [t for t in vocabulary.concepts if left.startswith(t + " ")]
        term = max(starts, key=len, default=None)
        expected += [term] if term else []
        left = left[len(term) + 1 :] if term else left.partition(" ")[2]
    assert vocabulary.find(" ".join(mentioned)).present == list(dict.fromkeys(expected))


def test_the_bundled_vocabulary_has_no_term_of_two_concepts():
    words = ConceptWords.load()
    seen: dict[str, str] = {}
    for concept, terms in words.concepts.items():
        assert concept in words.find(f"it has {terms[0]}").present
        for term in terms:
            assert seen.setdefault(term, concept) == concept, term
    assert {"scale", "papule", "ruler", "pigment network"} <= set(words.concepts)


def test_load_json_list_and_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["scale", "red_patch"]))
    (tmp_path / "b.txt").write_text("# words\nscale\n\nred patch\n")
    (tmp_path / "c.json").write_text(json.dumps({"red_patch": ["red patch", "ruby patch"]}))
    for name in ("a.json", "b.txt", "c.json"):
        assert "red patch" in ConceptWords.load(tmp_path / name).find("A red patch").present


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "3", "is not an object of terms"),
        ("a.json", '{"scale": "scaly"}', "the terms of 'scale' are not a list of words"),
        ("a.json", '{"scale": []}', "the terms of 'scale'"),
        ("a.json", "[1]", "the terms of '1'"),
        ("a.json", "{}", "has no term"),
        ("a.txt", "\n# only\n", "has no term"),
        ("a.txt", "scale\n???\n", "the terms of '???'"),
    ],
)
def test_load_reports_what_is_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserInputError, match="vocabulary ") as caught:
        ConceptWords.load(tmp_path / name)
    assert message in caught.value.message and name in caught.value.message


def test_load_missing_and_other_encodings(tmp_path):
    with pytest.raises(UserInputError, match="does not exist"):
        ConceptWords.load(tmp_path / "none.txt")
    (tmp_path / "l.txt").write_bytes("café au lait".encode("latin-1"))
    with pytest.raises(UserInputError, match="is not UTF-8 text"):
        ConceptWords.load(tmp_path / "l.txt")


@pytest.mark.data
def test_the_published_terms(data_dir):
    words = ConceptWords.load(data_dir / "peer-data" / "make" / "ConceptTerms.json")
    assert len(words.concepts) == 64
    assert words.find("hyperpigmented, with whiteheads").present == [
        "brown(hyperpigmentation)",
        "comedo",
    ]
