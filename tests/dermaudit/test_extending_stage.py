"""The stage of docs/snippets/extending_stage.md works as the page describes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from dermaudit.files import read_json, write_parquet
from dermaudit.run import stages as registry
from dermaudit.run.directory import Run

PAGE = Path(__file__).parents[2] / "docs" / "snippets" / "extending_stage.md"


@pytest.fixture
def counting(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert code is not None
    (tmp_path / "counting_example.py").write_text(code.group(1))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.stages()  # declares the stages of the package
    monkeypatch.setattr(registry, "_declared", dict(registry._declared))
    modules = (*registry.STAGE_MODULES, "counting_example")
    monkeypatch.setattr(registry, "STAGE_MODULES", modules)
    registry.stages.cache_clear()
    yield
    sys.modules.pop("counting_example")
    registry.stages.cache_clear()


def test_a_declared_stage_is_a_command_that_is_verified(counting, main, tmp_path):
    run = Run.create(tmp_path / "run")
    table = pa.table(
        {"image": ["a", "b", "c"], "split": ["test"] * 3, "label": ["nv", "mel", "nv"]}
    )
    write_parquet(run.files.images, table)
    run.record("images", {}, [run.files.images])
    done = main("count", "--run", run.path, "--json")
    assert done.rc == 0 and done.json() == {"schema_version": 1, "mel": 1, "nv": 2}
    assert read_json(run.path / "counts.json") == {"mel": 1, "nv": 2}
    assert "count" in main("--help").stdout
    refused = main("count", "--run", run.path, "--split", "tests")
    assert refused.rc == 2 and "did you mean 'test'" in refused.stderr
    (run.path / "counts.json").write_text("{}")
    assert main("count", "--run", run.path).rc == 0, "an altered file is made again"
    assert read_json(run.path / "counts.json") == {"mel": 1, "nv": 2}
