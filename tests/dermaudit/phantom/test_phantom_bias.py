"""The bias table: frequencies, rules, and the errors of a bad file."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from scipy.stats import binom

from dermaudit.errors import UserInputError
from dermaudit.phantom import ARTIFACTS, CONCEPTS, load_bias_table, sample
from dermaudit.phantom.bias import BASE_COLORS


def scenes(table, n, seed=2000):
    return [sample(seed, index, table) for index in range(n)]


def within(count, n, p, cells):
    """Is a count compatible with p, at one in a thousand over all cells?"""
    tail = 0.0005 / cells
    return binom.ppf(tail, n, p) <= count <= binom.ppf(1 - tail, n, p)


def test_frequencies_follow_the_table(ruler_table):
    table = ruler_table(0.9, 0.1)
    drawn = scenes(table, 1500)
    cells = 7 * (len(CONCEPTS) + len(ARTIFACTS) + 1)
    by_diagnosis = Counter(scene.diagnosis for scene in drawn)
    for diagnosis, n in by_diagnosis.items():
        assert within(n, len(drawn), table.diagnosis[diagnosis], cells)
        own = [scene for scene in drawn if scene.diagnosis == diagnosis]
        for name in CONCEPTS:
            count = sum(scene.concepts[name] for scene in own)
            assert within(count, n, table.concept[diagnosis][name], cells), (diagnosis, name)
        for name in ARTIFACTS:
            count = sum(scene.artifacts[name] for scene in own)
            assert within(count, n, table.artifact[diagnosis][name], cells), (diagnosis, name)


def test_rules_of_a_lesion_always_hold():
    for scene in scenes(load_bias_table(), 300):
        seen = scene.concepts
        assert any(seen[name] for name in BASE_COLORS)
        assert not (seen["pigment_network_typical"] and seen["pigment_network_atypical"])
        assert seen["color_white"] or not seen["regression"]
        assert seen["color_blue_gray"] or not seen["blue_whitish_veil"]


def test_default_row_then_own_row(tmp_path, ruler_table):
    path = tmp_path / "trap.toml"
    path.write_text("[artifact.mel]\nruler = 0.9\n[artifact.default]\nruler = 0.1\n")
    table = load_bias_table(path)
    assert table.artifact["mel"]["ruler"] == 0.9
    assert table.artifact["nv"]["ruler"] == 0.1
    assert table.artifact["nv"]["ink"] == load_bias_table().artifact["nv"]["ink"]
    path = tmp_path / "trap.json"
    path.write_text(json.dumps({"artifact": {"default": {"ruler": 0.1}, "mel": {"ruler": 0.9}}}))
    assert load_bias_table(path) == table == ruler_table(0.9, 0.1)


def test_a_prior_is_given_whole():
    table = load_bias_table().changed({"diagnosis": {"mel": 3, "nv": 1}})
    assert table.diagnosis["mel"] == 0.75 and table.diagnosis["bcc"] == 0
    assert {scene.diagnosis for scene in scenes(table, 40)} == {"mel", "nv"}


BAD = {
    "[artifact.mel]\nrular = 0.9": r"\[artifact.mel\]: unknown artifact 'rular'.*'ruler'",
    "[artifact.melanomas]\nruler = 0.9": r"\[artifact\]: unknown diagnosis 'melanomas'",
    "[artifact.mel]\nruler = 1.5": r"\[artifact.mel\]: ruler = 1.5 is not a probability",
    "[artifact.mel]\nruler = 'often'": r"\[artifact.mel\]: ruler = 'often' is not a probability",
    "[artifact.mel]\nruler = true": r"ruler = True is not a probability",
    "[artifact.mel]\nruler = nan": r"ruler = nan is not a probability",
    "[artefact.mel]\nruler = 0.5": r"unknown section 'artefact'.*'artifact'",
    "artifact = 3": r"\[artifact\]: expected a table",
    "[artifact]\nmel = 3": r"\[artifact.mel\]: expected a table",
    "[diagnosis]\nmel = 0": r"\[diagnosis\]: the weights sum to 0",
    "[diagnosis]\nmel = -1": r"\[diagnosis\]: mel = -1 is not a weight",
    "[concept.df]\ncolor_light_brown = 0.1": r"\[concept.df\].*less than 1",
    "[concept.mel]\nregression = 0.9": r"\[concept.mel\]: color_white = 0.4 is below regression",
    "[concept.mel]\npigment_network_typical = 0.9": r"\[concept.mel\].*more than 1",
    "[artifact.mel": "is not valid TOML",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_table_names_the_row_and_the_key(tmp_path, text):
    path = tmp_path / "bias.toml"
    path.write_text(text)
    with pytest.raises(UserInputError, match=BAD[text]) as caught:
        load_bias_table(path)
    assert str(path) in caught.value.message


def test_a_missing_table():
    with pytest.raises(UserInputError, match=r"nowhere.toml cannot be read"):
        load_bias_table("nowhere.toml")
