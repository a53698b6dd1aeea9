"""One small demo for all tests of the whole chain: rendered, audited, in a real subprocess."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

N = 1600  # leaves 30 test images in every group of the artifacts that the model sees well


@dataclass(frozen=True)
class Demo:
    """`run` and `data` folders of a finished demo, and the object that `--json` printed."""

    run: Path
    data: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def demo(cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The finished demo. It takes a minute, so parallel workers make it once and share it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "chain"
    root.mkdir(exist_ok=True)
    result = root / "result.json"
    with FileLock(root / "lock"):
        if not result.is_file():
            flags = ("--run", root / "demo", "--n", N, "--threads", 1, "--json")
            done = cli("demo", *flags, cwd=root, timeout=900)
            assert done.rc == 0, done.stderr[-2000:]
            result.write_text(done.stdout)
    return Demo(root / "demo", root / "demo-data", json.loads(result.read_text()))
