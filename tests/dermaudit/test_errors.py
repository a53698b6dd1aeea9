"""The error family: exit codes, and the nearest name offered."""

from __future__ import annotations

import pytest

from dermaudit import errors


@pytest.mark.parametrize(
    ("kind", "exit_code", "code"),
    [
        (errors.DermauditError, 1, "fault"),
        (errors.UserInputError, 2, "bad_input"),
        (errors.StaleArtifactError, 2, "stale"),
        (errors.ForeignArtifactError, 2, "foreign"),
        (errors.NoSpaceError, 2, "no_space"),
        (errors.EvidenceError, 3, "no_evidence"),
    ],
)
def test_exit_codes_are_those_of_the_design(kind, exit_code, code):
    error = kind("what", "mend")
    assert error.exit_code == exit_code
    assert error.as_json() | {"code": code, "message": "what", "hint": "mend"} == error.as_json()


def test_evidence_carries_the_numbers_that_fell_short():
    error = errors.EvidenceError("too few images", numbers={"n": 12, "needed": 30})
    assert error.as_json()["numbers"] == {"n": 12, "needed": 30}


@pytest.mark.parametrize(
    ("word", "near"),
    [("rular", "ruler"), ("RULER", "ruler"), ("inc", "ink"), ("xylophone", None), ("", None)],
)
def test_closest(word, near):
    assert errors.closest(word, ["ruler", "ink", "hair"]) == near


def test_unknown_offers_the_nearest_and_lists_the_rest():
    error = errors.unknown("concept", "rular", ["ruler", "ink"])
    assert error.message == "unknown concept 'rular': did you mean 'ruler'?"
    assert error.hint == "known: ruler, ink"
    assert errors.unknown("concept", "x", []).hint == "known: none"
    assert errors.unknown("concept", "x", map(str, range(30))).hint.endswith("23, …")
