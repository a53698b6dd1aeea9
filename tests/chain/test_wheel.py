"""The wheel, built and tried in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_everything_and_runs(tmp_path):
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not a checkout: there is nothing to build")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            tmp_path,
            ROOT,
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("dermaudit-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"dermaudit"}
    for needed in (
        "dermaudit/checkpoints/phantom-vit/open_clip_model.safetensors",
        "dermaudit/checkpoints/dermoscopy-small/README.md",
        "dermaudit/concepts/vocabulary/dermoscopy.toml",
        "dermaudit/pretrain/recipes/phantom.toml",
        "dermaudit/phantom/default_bias.toml",
        "dermaudit/audit/demo_bias.toml",
        "dermaudit/dashboards/app/app.py",
        "dermaudit/dashboards/exhibits/pieces.html",
        "dermaudit/dashboards/report/report.html",
        "dermaudit/dashboards/report/report.js",
    ):
        assert needed in names, needed
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies, after our own: the wheel's dermaudit is the one that is imported.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = (
        "import dermaudit, pathlib; model = dermaudit.load_model('phantom-vit'); "
        "print(pathlib.Path(dermaudit.__file__).parent.parent); print(model.d_pooled)"
    )
    done = subprocess.run(
        [venv / "bin" / "python", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[0]) == site
