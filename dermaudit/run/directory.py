"""The run directory: one audit on disk (docs/formats.md)."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from pathlib import Path
from typing import Any

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.files import read_json

from .records import RunRecords, now

FORMAT_VERSION = 1
_PACKAGES = ("torch", "open_clip_torch", "sae-lens", "transformer-lens", "numpy", "scikit-learn")


class Run(RunRecords):
    """One audit on disk. `path` is its folder, `meta` the content of run.json, `files` its paths."""

    @classmethod
    def create(
        cls, path: Path | str, *, seed: int = 0, threads: int = 1, force: bool = False
    ) -> Run:
        """Open the run at `path` for writing, or start it. `force` forgets all its stages."""
        path = Path(path)
        if (path / "run.json").exists():
            run = open_run(path)
            with run.writing():
                if force:
                    run.meta["stages"] = {}
                run.meta.update(seed=seed, threads=threads)
                run.save()
            return run
        if path.is_dir() and any(p for p in path.iterdir() if not p.name.endswith(".tmp")):
            raise UserInputError(
                f"{path} is not empty and is not a run (it has no run.json)",
                "choose another folder with --run",
            )
        meta = {
            "format_version": FORMAT_VERSION,
            "name": path.name,
            "seed": seed,
            "threads": threads,
            "created": now(),
            "versions": _versions(),
            "model": None,
            "data": None,
            "stages": {},
            "commands": [],
        }
        run = cls(path, meta)
        run.save()
        return run

    def seed(self, given: int | None = None) -> int:
        """Return the given seed, by default the seed of the run."""
        return int(self.meta.get("seed", 0)) if given is None else given

    def image_file(self, image: str) -> Path:
        """Return the path of an image of the run. UserInputError if it is not there."""
        path = self.data_root() / image
        if not path.is_file():
            raise UserInputError(
                f"the image {path} of the run {self.path} does not exist",
                "if the run or its data was moved: "
                f"dermaudit data locate FOLDER --run {shlex.quote(str(self.path))}",
            )
        return path

    # ---- a function of a higher layer, loaded by name

    def suppress(self, concept: str, model: Any, **options: Any) -> Any:
        """Context manager: the model with a concept suppressed (see concepts/inference/suppressed_model.py).

        `with run.suppress("ruler", model) as m: m.predict(images)`
        """
        from dermaudit.cli.commands import load_function

        suppressed = load_function("dermaudit.concepts.inference.suppressed_model:suppressed")
        return suppressed(self, concept, model, **options)

    def check_model(self, fingerprint: str) -> None:
        """ForeignArtifactError unless `fingerprint` is the model this run was made with."""
        mine = (self.meta.get("model") or {}).get("fingerprint")
        if mine and mine != fingerprint:
            raise ForeignArtifactError(
                f"the run {self.path} was made with another model "
                f"({self.meta['model']['name']}, {mine[:12]}…), not with {fingerprint[:12]}…",
                "load the model that the run names, or start a new run",
            )


def open_run(path: Path | str) -> Run:
    """Open a run for reading. UserInputError when there is none at `path`."""
    path = Path(path)
    if not (path / "run.json").is_file():
        raise UserInputError(
            f"{path} is not a run (no run.json in it)",
            f"make one with: dermaudit audit IMAGES --model NAME --run {shlex.quote(str(path))}",
        )
    meta = read_json(path / "run.json", "run")
    if not isinstance(meta, dict) or meta.get("format_version") != FORMAT_VERSION:
        raise ForeignArtifactError(
            f"{path / 'run.json'} has format_version {meta.get('format_version') if isinstance(meta, dict) else '?'}"
            f", this dermaudit reads {FORMAT_VERSION}",
            "make the run again with this version",
        )
    return Run(path, meta)


def newest_run(root: Path | str = "runs") -> Path:
    """Return the run below `root` that was written last: the default of commands that read a run."""
    found = sorted(Path(root).glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserInputError(
            f"no run found in {root}/", "name one with --run, or make one: dermaudit demo"
        )
    return found[-1].parent


def _versions() -> dict[str, str]:
    from dermaudit import __version__

    versions = {"dermaudit": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions
