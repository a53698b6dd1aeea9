"""The page of docs/snippets/extending_page.md works as a new file in the folder of the pages."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
from streamlit.testing.v1 import AppTest

from dermaudit.dashboards import pages
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.pages.page import find_pages

SNIPPET = Path(__file__).parents[2] / "docs" / "snippets" / "extending_page.md"


def test_a_new_file_adds_a_page(whole_run, tmp_path, monkeypatch) -> None:
    before = [page.path for page in find_pages()]
    code = re.search(r"```python\n(.*?)```", SNIPPET.read_text(encoding="utf-8"), re.S)
    assert code is not None
    (tmp_path / "mistakes.py").write_text(code[1], encoding="utf-8")
    monkeypatch.setattr(pages, "__path__", [*pages.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    try:
        found = [page.path for page in find_pages()]
        assert set(found) - set(before) == {"mistakes"}
        assert found.index("mistakes") == before.index("training") + 1  # by its order in the menu
        monkeypatch.setenv("DERMAUDIT_RUN", str(whole_run))
        at = AppTest.from_string(
            "from dermaudit.dashboards.pages import mistakes, page\npage.open_page(mistakes.PAGE)\n",
            default_timeout=60,
        ).run()
        assert not at.exception and at.title[0].value == "Mistakes"
        view = RunView.open(whole_run)
        head = view.head()
        predicted = np.array(head.classes)[head.probs(view.pooled).argmax(1)]
        words = "\n".join(element.proto.body for element in at.get("html"))
        wrong = int((predicted != view.labels).sum())
        assert f"{wrong} of {view.n} images have another label" in words
        assert words.count("data:image/webp") == min(24, wrong) > 0
    finally:
        sys.modules.pop(f"{pages.__name__}.mistakes", None)
