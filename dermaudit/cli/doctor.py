"""`dermaudit doctor`: versions, device, disk, and what is broken, each with its fix.

Packages are looked at without importing them (metadata and `find_spec`), except torch, which alone
knows the device; `--deep` imports them all and reads every weight of the bundled checkpoints.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.console import say, table
from dermaudit.errors import DermauditError

# distribution -> the module it is imported as.
_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip_torch": "open_clip",
    "sae-lens": "sae_lens",
    "transformer-lens": "transformer_lens",
    "captum": "captum",
    "streamlit": "streamlit",
    "plotly": "plotly",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "pyarrow": "pyarrow",
    "duckdb": "duckdb",
    "safetensors": "safetensors",
    "Pillow": "PIL",
    "imagehash": "imagehash",
    "pydantic": "pydantic",
    "typer": "typer",
    "rich": "rich",
}
_LOW_DISK_GB = 2.0


@dataclass(frozen=True)
class Problem:
    """Something broken, and how to fix it."""

    what: str
    fix: str


def doctor(
    deep: Annotated[bool, typer.Option(help="import every package, read every weight")] = False,
    runs: Annotated[Path, typer.Option(help="the folder of the runs")] = Path("runs"),
) -> dict[str, Any]:
    """Print versions, device, disk, data, checkpoints, the newest run, and what is broken."""
    from dermaudit import __version__

    problems: list[Problem] = []
    packages = _packages(deep, problems)
    device = _device(problems)
    disk = _disk(problems)
    data = _data(problems)
    checkpoints = _checkpoints(deep, problems)
    run = _newest_run(runs, problems)
    say(f"dermaudit {__version__}, Python {platform.python_version()}, {platform.platform()}")
    say(f"device: {device['device'] or 'no torch'}, {device['threads'] or '?'} threads")
    say(f"disk: {disk:.1f} GB free here")
    say(f"DERMAUDIT_DATA: {data or 'not set: tests on real data are skipped'}")
    table("Packages", ("package", "version"), [(k, v or "absent") for k, v in packages.items()])
    table(
        "Bundled checkpoints",
        ("name", "state", "parameters"),
        [(c["name"], c["state"], c["parameters"] or "") for c in checkpoints],
    )
    if run:
        stages = [(name, "intact" if ok else "broken") for name, ok in run["stages"].items()]
        stages += [(command, "not made yet") for command in run["missing"]]
        table(f"Newest run: {run['path']}", ("stage", "state"), stages)
    else:
        say(f"\nNo run in {runs}/ yet: dermaudit demo makes one.")
    say(f"\n{len(problems)} problem{'s' * (len(problems) != 1)}")
    for problem in problems:
        say(f"  - {problem.what}\n    {problem.fix}")
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        **device,
        "free_disk_gb": disk,
        "data": data,
        "checkpoints": checkpoints,
        "run": run,
        "problems": [asdict(problem) for problem in problems],
    }


def _packages(deep: bool, problems: list[Problem]) -> dict[str, str | None]:
    """{distribution: version or None}; with `deep` a package that does not import is a problem."""
    needed = _requirements()
    found: dict[str, str | None] = {}
    for name, module in _PACKAGES.items():
        wanted = needed.get(_canonical(name), "")
        install = f'run: pip install "{name}{wanted}"'
        try:
            found[name] = importlib.metadata.version(name)
            present = importlib.util.find_spec(module) is not None
        except importlib.metadata.PackageNotFoundError:
            found[name], present = None, False
        if not present:
            problems.append(Problem(f"the package {name} is not installed", install))
            continue
        if not _satisfies(found[name] or "", wanted):
            problems.append(
                Problem(f"{name} {found[name]} is installed, dermaudit needs {wanted}", install)
            )
        if deep:
            try:
                importlib.import_module(module)
            except Exception as error:
                said = str(error).split("\n")[0]
                problems.append(
                    Problem(f"{name} cannot be imported ({type(error).__name__}: {said})", install)
                )
    return found


def _requirements() -> dict[str, str]:
    """{canonical name: version specifier} that this installation of dermaudit asks for."""
    try:
        lines = importlib.metadata.requires("dermaudit") or []
    except importlib.metadata.PackageNotFoundError:
        return {}  # a checkout on the path, not installed
    found = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)\s*([^;\[]*)", line)
        if match and "extra ==" not in line:
            found[_canonical(match[1])] = match[2].strip()
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _satisfies(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # packaging is no dependency of dermaudit, though many packages bring it
    return SpecifierSet(wanted).contains(version, prereleases=True)


def _device(problems: list[Problem]) -> dict[str, Any]:
    try:
        import torch
    except Exception as error:
        said = str(error).split("\n")[0]
        problems.append(
            Problem(f"torch cannot be loaded ({said})", "run: pip install --force-reinstall torch")
        )
        return {"device": None, "device_name": None, "threads": None}
    cuda = torch.cuda.is_available()
    return {
        "device": "cuda" if cuda else "cpu",
        "device_name": torch.cuda.get_device_name(0) if cuda else None,
        "threads": torch.get_num_threads(),
    }


def _disk(problems: list[Problem]) -> float:
    free = round(shutil.disk_usage(Path.cwd()).free / 1e9, 2)
    if free < _LOW_DISK_GB:
        problems.append(
            Problem(f"only {free} GB of disk is free here", "free some, or point --run elsewhere")
        )
    return free


def _data(problems: list[Problem]) -> str | None:
    value = os.environ.get("DERMAUDIT_DATA")
    if not value:
        return None
    if not (Path(value) / "dermoscopy" / "metadata.csv").is_file():
        problems.append(
            Problem(
                f"DERMAUDIT_DATA is {value}, but there is no dermoscopy/metadata.csv in it",
                "point it at the folder that holds dermoscopy/, or unset it",
            )
        )
    return value


# ---- checkpoints


def _checkpoints(deep: bool, problems: list[Problem]) -> list[dict[str, Any]]:
    from dermaudit.towers.loading.names import BUNDLED, bundled_folder, bundled_names

    found = []
    for name in sorted({*BUNDLED, *bundled_names()}):
        folder = bundled_folder() / name
        parameters, fault = 0, None
        try:
            parameters = _read_checkpoint(folder, deep)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # The last three: a header that is JSON but not one of safetensors.
            fault = str(error)
        present = folder.is_dir()
        if not present and name not in BUNDLED:
            continue
        state = "intact" if fault is None else "broken" if present else "absent"
        found.append({"name": name, "state": state, "parameters": parameters or None})
        if fault is not None:
            problems.append(
                Problem(
                    f"the bundled checkpoint {name} is {state}: {fault}"
                    if present
                    else f"the bundled checkpoint {name} is absent",
                    f"reinstall dermaudit, or train it again: dermaudit pretrain {BUNDLED.get(name, name)} "
                    f"--data DATA --out checkpoints/{name}",
                )
            )
    return found


def _read_checkpoint(folder: Path, deep: bool) -> int:
    """Number of parameters. OSError or ValueError says what is missing or cut off."""
    for name in ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{name} is not valid JSON") from error
    weights = folder / "open_clip_model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights.name} is missing")
    parameters = sum(_tensor_sizes(weights))
    if deep:
        _check_finite(weights)
    return parameters


def _tensor_sizes(path: Path) -> Iterator[int]:
    """Elements of each tensor of a safetensors file, its header and length checked. No torch."""
    with path.open("rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= path.stat().st_size - 8:
            raise ValueError(f"{path.name} is cut off or not a safetensors file")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    size, whole = path.stat().st_size, 8 + length + end
    if size != whole:
        raise ValueError(f"{path.name} is cut off: {size} of {whole} bytes")
    for entry in header.values():
        count = 1
        for side in entry["shape"]:
            count *= side
        yield count


def _check_finite(path: Path) -> None:
    from safetensors.torch import load_file

    for name, tensor in load_file(path).items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{path.name}: the weight {name} is not finite")


# ---- runs


def _newest_run(root: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """The newest run and whether each stage is intact: there, unaltered, not stale."""
    from dermaudit.run.directory import newest_run, open_run

    if not any(root.glob("*/run.json")):
        return None
    try:
        run = open_run(newest_run(root))
    except DermauditError as error:
        problems.append(Problem(error.message, error.hint or "remove it, or make it again"))
        return None
    intact = {}
    for record in run.meta["stages"]:
        try:
            run.require(record)
            intact[record] = True
        except DermauditError as error:
            intact[record] = False
            problems.append(Problem(error.message, error.hint or run.remake_command(record)))
    missing = [stage.command for stage in run.missing_stages()]
    return {"path": str(run.path), "stages": intact, "missing": missing}
