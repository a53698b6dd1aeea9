"""The naming method of docs/snippets/extending_namer.md works as the page describes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from concept_world import D, H, basis

from dermaudit.concepts.naming import methods
from dermaudit.concepts.naming.methods.registry import (
    NamingEvidence,
    naming_method,
    naming_methods,
)
from dermaudit.concepts.vocabulary.vocabulary import Concept, Vocabulary
from dermaudit.errors import UserInputError

PAGE = Path(__file__).parents[2] / "docs" / "snippets" / "extending_namer.md"


def test_new_file_adds_a_naming_method(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert code is not None
    (tmp_path / "nearest_word_example.py").write_text(code.group(1))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    naming_methods.cache_clear()
    method = naming_method("nearest_word")
    codes = np.eye(6)[np.arange(60) % 6]
    codes[:, 5] = 0
    pooled = codes @ basis()[:6] + basis()[H]
    words = tuple(Concept(f"w{i}", "artifact", (f"w{i}",)) for i in range(6))
    vocabulary = Vocabulary("toy", words, ("{}",), ())
    names = method(NamingEvidence(codes, pooled, basis()[:6], np.zeros((0, D)), vocabulary))
    assert names.word.tolist() == [0, 1, 2, 3, 4, -1]
    naming_methods.cache_clear()


def test_unknown_naming_method_offers_the_nearest():
    with pytest.raises(UserInputError, match="unknown naming method 'permutations'.*'permutation'"):
        naming_method("permutations")
