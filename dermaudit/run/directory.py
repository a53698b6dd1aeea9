"""The run directory: what was made from what, whole or absent, resumable (docs/formats.md).

A stage is recorded in `run.json` with the hash of its inputs and of every file it wrote. A stage
whose inputs are unchanged and whose files are intact is not done again; one whose inputs changed is
stale: refused by whoever reads it, made again with `force`.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dermaudit.errors import ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import read_json, sha256_file, sha256_json, write_json

FORMAT_VERSION = 1
_PACKAGES = ("torch", "open_clip_torch", "sae-lens", "transformer-lens", "numpy", "scikit-learn")


class Run:
    """One audit on disk. `path` is its folder, `meta` the content of run.json."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.meta = meta

    @classmethod
    def create(
        cls, path: Path | str, *, seed: int = 0, threads: int = 1, force: bool = False
    ) -> Run:
        """Open the run at `path` for writing, or start it. `force` forgets all its stages."""
        path = Path(path)
        if (path / "run.json").exists():
            run = open_run(path)
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
            "created": _now(),
            "versions": _versions(),
            "model": None,
            "data": None,
            "stages": {},
            "commands": [],
        }
        run = cls(path, meta)
        run.save()
        return run

    def save(self) -> None:
        write_json(self.path / "run.json", self.meta)

    def file(self, *parts: str) -> Path:
        return self.path.joinpath(*parts)

    def note_command(self, argv: Iterable[str]) -> None:
        """Keep the command line that wrote to this run."""
        self.meta["commands"].append({"argv": list(argv), "started": _now()})
        self.save()

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl (never hashed; the only place with times beside run.json)."""
        line = json.dumps({"time": _now(), "event": event, **fields}, default=str)
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")

    # ---- stages

    def is_done(self, stage: str, inputs: dict[str, Any]) -> bool:
        """True when `stage` was made from exactly these inputs and its files are intact."""
        record = self.meta["stages"].get(stage)
        return bool(
            record
            and record["inputs"] == sha256_json(inputs)
            and not self._damaged(record["outputs"])
        )

    def require(self, stage: str, verb: str) -> dict[str, Any]:
        """The record of a finished stage, checked: StaleArtifactError when it is absent, altered,
        or made from inputs that have changed since. `verb` is the command that makes it."""
        record = self.meta["stages"].get(stage)
        again = f"run: dermaudit {verb} --run {self.path}"
        if record is None:
            raise UserInputError(f"the run {self.path} has no {stage} yet", again)
        damaged = self._damaged(record["outputs"])
        if damaged:
            raise StaleArtifactError(
                f"{self.path / damaged} is missing or was altered after the {stage} stage", again
            )
        for upstream, digest in record["upstream"].items():
            now = self.meta["stages"].get(upstream)
            if now is None or _digest(now["outputs"]) != digest:
                raise StaleArtifactError(
                    f"the {stage} stage of {self.path} is stale: {upstream} was made again after it",
                    again,
                )
        return record

    def record(
        self,
        stage: str,
        inputs: dict[str, Any],
        outputs: Iterable[Path],
        *,
        upstream: Iterable[str] = (),
        seconds: float = 0.0,
        summary: dict[str, Any] | None = None,
    ) -> None:
        """Enter a finished stage; its output files are hashed."""
        self.meta["stages"][stage] = {
            "inputs": sha256_json(inputs),
            "outputs": {
                path.relative_to(self.path).as_posix(): sha256_file(path) for path in outputs
            },
            "upstream": {
                name: _digest(self.meta["stages"][name]["outputs"])
                for name in upstream
                if name in self.meta["stages"]
            },
            "seconds": round(seconds, 3),
            "summary": summary or {},
        }
        self.save()
        self.log("stage", stage=stage, seconds=round(seconds, 3))

    def stage(
        self,
        name: str,
        inputs: dict[str, Any],
        make: Callable[[], tuple[list[Path], dict[str, Any]]],
        *,
        upstream: Iterable[str] = (),
        force: bool = False,
    ) -> dict[str, Any]:
        """Do a stage unless it is done: `make` writes files and returns (their paths, a summary).

        The hash of every upstream stage's outputs is part of the inputs, so a stage is made again
        when what it stands on changed. Returns the summary.
        """
        upstream = list(upstream)
        full = dict(inputs)
        for up in upstream:
            if up in self.meta["stages"]:
                full[f"upstream:{up}"] = _digest(self.meta["stages"][up]["outputs"])
        if not force and self.is_done(name, full):
            return self.meta["stages"][name]["summary"]
        started = time.monotonic()
        outputs, summary = make()
        self.record(
            name,
            full,
            outputs,
            upstream=upstream,
            seconds=time.monotonic() - started,
            summary=summary,
        )
        return summary

    def _damaged(self, outputs: dict[str, str]) -> str | None:
        for name, digest in outputs.items():
            path = self.path / name
            if not path.is_file() or sha256_file(path) != digest:
                return name
        return None

    # ---- what the ground floor offers from above (design §2: looked up, never imported)

    def suppress(self, concept: str, model: Any, **options: Any) -> Any:
        """Context manager: the model with a concept suppressed (see concepts/suppression/suppressed_model.py).

        `with run.suppress("ruler", model) as m: m.predict(images)`
        """
        from dermaudit.cli.commands import load_function

        return load_function("dermaudit.concepts.suppression.suppressed_model:suppressed")(
            self, concept, model, **options
        )

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
            "make one with: dermaudit audit IMAGES --model NAME --run " + str(path),
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
    """The run below `root` written last. What reading verbs default to."""
    found = sorted(Path(root).glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserInputError(
            f"no run found in {root}/", "name one with --run, or make one: dermaudit demo"
        )
    return found[-1].parent


def _digest(outputs: dict[str, str]) -> str:
    return sha256_json(outputs)


def _versions() -> dict[str, str]:
    from dermaudit import __version__

    versions = {"dermaudit": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def peak_rss_gb() -> float:
    """Peak resident memory of this process and its finished children, in GB."""
    import resource

    kb = max(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    )
    return round(kb * (1 if os.uname().sysname == "Darwin" else 1024) / 1e9, 3)
