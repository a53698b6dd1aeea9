"""Runs to look at: whole, without labels, and a copy to damage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from toy_run import make_run

from dermaudit.run.directory import open_run


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run. Tests that change it take `own_run`."""
    return make_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def unlabelled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("bare"), labels=False, licence=None)


@pytest.fixture(scope="session")
def topk_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run whose SAEs are per-sample TopK."""
    return make_run(tmp_path_factory.mktemp("topk"), k=4)


@pytest.fixture
def own_run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the complete run, to be damaged."""
    shutil.copytree(whole_run.parent, tmp_path / "copy")
    run = open_run(tmp_path / "copy" / "run")
    run.meta["data"]["root"] = os.path.relpath(tmp_path / "copy" / "data")
    run.save()
    return run.path
