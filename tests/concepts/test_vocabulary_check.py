"""`vocabulary check`: faults, notes, exit codes."""

from __future__ import annotations

import pytest

from dermaudit.concepts.vocabulary.check import findings
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary

GOOD = '[concepts.ruler]\ntype = "artifact"\nterms = ["ruler"]\nopposites = ["no ruler"]\n'


def test_the_bundled_vocabulary_has_no_fault():
    assert [one for one in findings(Vocabulary.load()) if one.kind == "fault"] == []


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ('[concepts.scale]\ntype = "clinical"\nterms = ["Ruler"]\n', "'Ruler' is a term of ruler too"),
        ('[concepts.plaque]\ntype = "clinical"\nterms = ["psoriasis plaque"]\n', "names a diagnosis (psoriasis)"),
        ('[concepts.ink]\ntype = "artifact"\nterms = ["<b>ink</b>"]\n', "contains markup"),
        ('[distractors]\nwords = ["ruler"]\n', "'ruler' is a term of ruler"),
    ],
)  # fmt: skip
def test_a_fault_is_a_sentence_and_exit_code_2(main, tmp_path, more, what):
    path = tmp_path / "words.toml"
    path.write_text(GOOD + more)
    done = main("vocabulary", "check", path)
    assert done.rc == 2 and "words.toml has 1 fault;" in done.stderr and what in done.stderr


def test_notes_do_not_fail(main, tmp_path):
    path = tmp_path / "words.toml"
    path.write_text(
        GOOD + '[concepts.ink]\ntype = "artifact"\nterms = ["ink", "Ink", "stylo violet à peau"]\n'
    )
    done = main("vocabulary", "check", path, "--json")
    assert done.rc == 0, done.stderr
    told = " ".join(one["what"] for one in done.json()["findings"])
    assert "no opposites" in told and "stands twice" in told and "not English" in told
    assert done.json()["concepts"] == {"artifact": 2} and done.json()["name"] == "words"


def test_a_diagnosis_may_name_itself(tmp_path):
    path = tmp_path / "v.toml"
    path.write_text(GOOD + '[concepts.mel]\ntype = "diagnosis"\nterms = ["melanoma"]\n')
    assert findings(Vocabulary.load(path)) == []
