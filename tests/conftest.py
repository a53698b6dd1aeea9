"""What many tests need: the real command line, real data when it is there, small image folders."""

from __future__ import annotations

import json
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch: the workers share the cores

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shape_checks
from filelock import FileLock
from hypothesis import settings
from PIL import Image

# The same examples in every run: a test that fails, fails again, and not only in CI.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


def pytest_sessionstart() -> None:
    """Compare arguments with the shapes in the signatures of the numeric core."""
    shape_checks.install()


@dataclass(frozen=True)
class Finished:
    """A command that ended: `rc`, `stdout`, `stderr`."""

    rc: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        """The one object on stdout; fails when there is none or more than one."""
        return json.loads(self.stdout)


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a subprocess: one thread, no failpoint left over from elsewhere, and the
    same dermaudit as this process has, installed or not."""
    import dermaudit

    kept = {k: v for k, v in os.environ.items() if not k.startswith("DERMAUDIT_")}
    root = str(Path(dermaudit.__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **(extra or {})}


@pytest.fixture(scope="session")
def run_python() -> Callable[..., Finished]:
    """`run_python(*argv, cwd=..., env=..., file_limit_kb=...)`: Python in a real subprocess.

    `file_limit_kb` is `ulimit -f`: a file that grows over it meets a full disk (EFBIG).
    """

    def run(
        *argv: str | Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        file_limit_kb: int | None = None,
        stdin: str | None = None,
        timeout: float = 120,
    ) -> Finished:
        command = [sys.executable, *map(str, argv)]
        if file_limit_kb is not None:
            command = ["bash", "-c", f'ulimit -f {file_limit_kb}; exec "$@"', "bash", *command]
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment(env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def cli(run_python: Callable[..., Finished]) -> Callable[..., Finished]:
    """`cli("data", "check", folder, "--json")`: the dermaudit command in a real subprocess."""

    def run(*argv: str | Path, **options: Any) -> Finished:
        return run_python("-m", "dermaudit", *argv, **options)

    return run


@pytest.fixture
def main(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Finished]:
    """The same as `cli` in this process: `main(*argv, cwd=..., env=...)`. Saves a start of Python
    where a test asks for many endings; the kills and limits need `cli`."""
    from dermaudit.cli import main as run_main

    def run(
        *argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> Finished:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            # main sets it for --quiet; so it is put back.
            patch.setenv("DERMAUDIT_QUIET", "")
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            if cwd is not None:
                patch.chdir(cwd)
            rc = run_main([str(arg) for arg in argv])
        return Finished(rc, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """$DERMAUDIT_DATA, the folder of real data; the test is skipped where it is absent."""
    value = os.environ.get("DERMAUDIT_DATA")
    if not value:
        pytest.skip("DERMAUDIT_DATA is not set: no real data here")
    if not (Path(value) / "dermoscopy" / "metadata.csv").is_file():
        pytest.skip("no dermoscopy/metadata.csv in DERMAUDIT_DATA")
    return Path(value).absolute()


def picture(seed: int, side: int = 48) -> Image.Image:
    """Random colours at every scale, as in a photograph: two seeds are never near duplicates."""
    rng = np.random.default_rng(seed)
    pixels = np.full((side, side, 3), 128.0)
    for grid in (3, 6, 12, 24):
        coarse = rng.integers(0, 256, (grid, grid, 3), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        pixels += (np.asarray(fine) - 128.0) * 2 / grid
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """`image_folder("a.png", "mel/b.jpg", name="images")`: a folder with those images below it."""

    def make(*names: str, name: str = "images", side: int = 48) -> Path:
        root = tmp_path / name
        for seed, image in enumerate(names):
            path = root / image
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(seed, side).save(path)
        return root

    return make


DEMO_IMAGES = 1600  # leaves 30 test images in every group of the artifacts that the model sees well


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
            flags = ("--run", root / "demo", "--n", DEMO_IMAGES, "--threads", 1, "--json")
            done = cli("demo", *flags, cwd=root, timeout=900)
            assert done.rc == 0, done.stderr[-2000:]
            result.write_text(done.stdout)
    return Demo(root / "demo", root / "demo-data", json.loads(result.read_text()))
