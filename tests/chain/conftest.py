"""One small demo for all tests of the whole chain: rendered, audited, in a real subprocess."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

N = 1600  # leaves 30 test images in every group of the artifacts that the model sees well


@dataclass(frozen=True)
class Demo:
    """`run` and `data` folders of a finished demo, and the object that `--json` printed."""

    run: Path
    data: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def demo(cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Demo:
    root = tmp_path_factory.mktemp("chain")
    done = cli(
        "demo", "--run", root / "demo", "--n", N, "--threads", 1, "--json", cwd=root, timeout=900
    )
    assert done.rc == 0, done.stderr[-2000:]
    return Demo(root / "demo", root / "demo-data", done.json())
