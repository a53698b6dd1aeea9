"""The records of a run: which stage made which file from which inputs (docs/formats.md).

A stage is recorded in `run.json` with the hashes of its inputs (other stages, columns of the images,
options) and of every file it wrote. A stage whose inputs and files are unchanged is not done again.
Reading verifies a stage together with everything it was made from, and refuses what has changed.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

from dermaudit.errors import AlteredArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import read_json, sha256_file, sha256_json, write_json

from .hashes import FileHashes
from .lock import run_lock
from .paths import RunFiles
from .stages import Record, Stage, stage_of, stages

#: The arguments of the `dermaudit` command that runs now; () when Python code uses the package.
COMMAND: ContextVar[tuple[str, ...]] = ContextVar("COMMAND", default=())

#: What a stage reports of its result: a JSON object, kept in run.json.
Summary = TypeVar("Summary", bound=Mapping[str, Any])
Made = tuple[list[Path], Summary]  # the files that a stage wrote, and its summary


class StageRecord(TypedDict):
    """What run.json holds of a finished stage. File names are relative to the run."""

    inputs: str  # sha256 of the options, the upstream stages and the columns
    outputs: dict[str, str]  # {file: sha256}
    upstream: dict[str, str]  # {stage: sha256 of its outputs}
    columns: NotRequired[dict[str, str]]  # {column of images.parquet: sha256 of its values}
    seconds: float
    summary: dict[str, Any]


class RunRecords:
    """The stages of one run: verified reading, and writing under a lock. `meta` is run.json."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.meta = meta
        self.files = RunFiles(path)
        self._hashes = FileHashes(path)

    def save(self) -> None:
        """Write run.json."""
        write_json(self.path / "run.json", self.meta)

    def file(self, *parts: str) -> Path:
        """Return a path below the folder of the run."""
        return self.path.joinpath(*parts)

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl (never hashed; the only place with times beside run.json)."""
        line = json.dumps({"time": now(), "event": event, **fields}, default=str)
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")

    # ---- verified reading

    def is_done(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Return whether `stage` was made from exactly these inputs and its files are unchanged."""
        record = self.meta["stages"].get(stage)
        return bool(
            record
            and record["inputs"] == sha256_json(inputs)
            and self._changed_file(record["outputs"]) is None
        )

    def require(self, stage: str) -> StageRecord:
        """Return the record of a finished stage, verified with every stage that it was made from.

        Raises UserInputError if the run lacks the stage; StaleArtifactError if a file of the stage, or
        of a stage it was made from, was changed or removed, or if such a stage, or a column of the
        images that it was made from, changed later.
        """
        if stage not in self.meta["stages"]:
            raise UserInputError(
                f"the run {self.path} has no {stage} stage yet",
                f"run: {self.remake_command(stage, force=False)}",
            )
        waiting, verified = [stage], set()
        while waiting:
            name = waiting.pop()
            if name not in verified:
                verified.add(name)
                record = self._verified(name)
                waiting += record["upstream"]
        self._hashes.save()
        return self.meta["stages"][stage]

    def _verified(self, stage: str) -> StageRecord:
        """Return the record of one stage after comparing its files and its inputs with run.json."""
        record: StageRecord = self.meta["stages"][stage]
        again = f"run: {self.remake_command(stage)}"
        changed = self._changed_file(record["outputs"])
        if changed:
            expected = record["outputs"][changed][:12]
            raise AlteredArtifactError(
                f"{self.path / changed} is missing or was altered after the {stage} stage "
                f"(run.json expects sha256 {expected}…)",
                again,
            )
        for upstream, digest in record["upstream"].items():
            now = self.meta["stages"].get(upstream)
            if now is None or _digest(now["outputs"]) != digest:
                raise StaleArtifactError(
                    f"the {stage} stage of {self.path} is stale: {upstream} was made again after it",
                    again,
                )
        columns = record.get("columns") or {}
        if columns != self.column_digests(columns):
            now = self.column_digests(columns)
            name = next(name for name, digest in columns.items() if now[name] != digest)
            raise StaleArtifactError(
                f"the {stage} stage of {self.path} is stale: the column {name} of images.parquet "
                "changed after it",
                again,
            )
        return record

    def current_stages(self, besides: str) -> list[str]:
        """Return the stages, `besides` left out, that are not stale.

        Raises AlteredArtifactError for a file that was changed or removed.
        """
        current = []
        for stage in self.meta["stages"].keys() - {besides}:
            try:
                self.require(stage)
            except AlteredArtifactError:
                raise
            except StaleArtifactError:
                continue
            current.append(stage)
        return sorted(current)

    def column_digests(self, columns: Iterable[str]) -> dict[str, str]:
        """Return {column of images.parquet: sha256 of its values}; "absent" for one it lacks."""
        columns = list(columns)
        if not columns:
            return {}
        import pyarrow.parquet as pq

        table = pq.ParquetFile(self.files.images).read()
        return {
            name: sha256_json([None if v is None else str(v) for v in table[name].to_pylist()])
            if name in table.column_names
            else "absent"
            for name in columns
        }

    def remake_command(self, record: str, force: bool = True) -> str:
        """Return the command line that makes a record of this run, or makes it again. It can be pasted."""
        kind, _, key = record.partition(":")
        run = shlex.quote(str(self.path))
        again = " --force" if force else ""
        if kind in ("images", "embed"):
            data, model = self.meta.get("data") or {}, self.meta.get("model") or {}
            if "manifest" not in data or "name" not in model:
                return f"dermaudit audit IMAGES --model NAME --run {run}"
            manifest = shlex.quote(os.path.relpath(self.data_root() / data["manifest"]))
            return f"dermaudit embed {manifest} --model {model['name']} --run {run}{again}"
        try:
            stage = stage_of(record)
        except KeyError:  # a record of a later version
            return f"dermaudit doctor --runs {shlex.quote(str(self.path.parent))}"
        words = ["dermaudit", stage.command]
        if key and stage.key_flag is not None:
            words += [stage.key_flag, shlex.quote(key)]
        # Flags without which the stage cannot be made again are in its summary.
        made = self.meta["stages"].get(record, {}).get("summary", {})
        words += [str(made.get("flags", "")), "--run", run]
        return " ".join(word for word in words if word) + again

    def _changed_file(self, outputs: dict[str, str]) -> str | None:
        """Return the first of these files whose sha256 is not the recorded one."""
        return next((n for n, digest in outputs.items() if self._hashes.digest(n) != digest), None)

    # ---- writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of the run, with the stages as they are on disk now."""
        command = _command_line()
        with run_lock(self.path, command):
            if (self.path / "run.json").is_file():
                on_disk = read_json(self.path / "run.json", "run")
                self.meta["stages"] = on_disk["stages"]
                self.meta["commands"] = on_disk.get("commands", [])
            yield

    def record(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        outputs: Iterable[Path],
        *,
        upstream: Iterable[str] = (),
        columns: Iterable[str] = (),
        seconds: float = 0.0,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        """Enter a finished stage; its output files, upstream stages and columns are hashed."""
        done: StageRecord = {
            "inputs": sha256_json(inputs),
            "outputs": {
                path.relative_to(self.path).as_posix(): sha256_file(path) for path in outputs
            },
            "upstream": {
                name: _digest(self.meta["stages"][name]["outputs"])
                for name in upstream
                if name in self.meta["stages"]
            },
            "columns": self.column_digests(columns),
            "seconds": round(seconds, 3),
            "summary": dict(summary or {}),
        }
        self.meta["stages"][stage] = done
        command = _command_line()
        commands = self.meta["commands"]
        if command and (not commands or commands[-1]["argv"] != command):
            commands.append({"argv": command, "started": now()})
        self.save()
        self.log("stage", stage=stage, seconds=round(seconds, 3))

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[], Made[Summary]],
        *,
        upstream: Iterable[str] = (),
        columns: Iterable[str] = (),
        force: bool = False,
        lock: bool = True,
    ) -> Summary:
        """Do a stage unless it is done: `make` writes files and returns (their paths, a summary).

        `upstream` names the stages whose files `make` reads, `columns` the columns of images.parquet.
        All of them are verified first, and their hashes are part of the inputs, so that the stage is
        made again when one of them changed. `lock=False` is for a stage that several processes make
        together. Raises UserInputError for an upstream stage that the run lacks, StaleArtifactError
        for one that was altered, LockedRunError while another process writes to the run.
        """
        with self.writing() if lock else nullcontext():
            upstream = list(upstream)
            full = dict(inputs)
            for up in upstream:
                self.require(up)
                full[f"upstream:{up}"] = _digest(self.meta["stages"][up]["outputs"])
            columns = self.column_digests(columns)
            full |= {f"column:{column}": digest for column, digest in columns.items()}
            if not force and self.is_done(name, full):
                return self.meta["stages"][name]["summary"]
            started = time.monotonic()
            outputs, summary = make()
            self.record(
                name,
                full,
                outputs,
                upstream=upstream,
                columns=columns,
                seconds=time.monotonic() - started,
                summary=summary,
            )
            return summary

    def perform(
        self,
        record: Record,
        inputs: Mapping[str, Any],
        make: Callable[[], Made[Summary]],
        *,
        key: str = "",
        reads: Iterable[str] | None = None,
        force: bool = False,
        lock: bool = True,
    ) -> Summary:
        """Make a declared record unless it is done (see `stage`), from the stages and columns that its
        declaration names; `reads` instead where only the stage can tell which of them it reads.

        Raises ValueError if `make` writes a file that the declaration does not name.
        """

        def declared_files() -> Made[Summary]:
            outputs, summary = make()
            for path in outputs:
                name = path.relative_to(self.path).as_posix()
                if not any(fnmatch(name, p.replace("{key}", key)) for p in record.writes):
                    raise ValueError(
                        f"the {record.name} stage wrote {name}, which it does not declare"
                    )
            return outputs, summary

        return self.stage(
            record.key(key),
            inputs,
            declared_files,
            upstream=self.reads_of(record, key) if reads is None else reads,
            columns=self._columns_of(record),
            force=force,
            lock=lock,
        )

    def reads_of(self, record: Record, key: str = "") -> list[str]:
        """Return the records of this run that `record` is made from, those that are missing included."""
        found: list[str] = []
        for pattern in record.reads:
            name = pattern.replace("{key}", key)
            if name.endswith("?"):
                found += [
                    n for n in self.meta["stages"] if fnmatch(n, name[:-1]) and n != record.key(key)
                ]
            elif name.endswith(":*"):
                found += self.finished(name[:-2])
            else:
                found.append(name)
        return found

    def finished(self, kind: str) -> list[str]:
        """Return the records of one kind, such as "fit:visual.pooled", verified. UserInputError if the
        run has none.
        """
        records = [name for name in self.meta["stages"] if name.partition(":")[0] == kind]
        if not records:
            self.require(kind)
        for name in records:
            self.require(name)
        return records

    def missing_stages(self) -> list[Stage[Any]]:
        """Return the stages of which the run has no record, in their order."""
        kinds = {name.partition(":")[0] for name in self.meta["stages"]}
        return [s for s in stages() if not kinds.intersection(record.name for record in s.records)]

    def state_of(self, stage: Stage[Any]) -> str:
        """Return "done", "to do", or why the records of a stage cannot be used: "stale", "altered"."""
        kinds = {record.name for record in stage.records}
        names = [name for name in self.meta["stages"] if name.partition(":")[0] in kinds]
        states = {self.state_of_record(name) for name in names}
        return (
            next((state for state in ("altered", "stale") if state in states), "done")
            if names
            else "to do"
        )

    def state_of_record(self, name: str) -> str:
        """Return "done", "stale" or "altered"."""
        try:
            self.require(name)
        except AlteredArtifactError:
            return "altered"
        except StaleArtifactError:
            return "stale"
        return "done"

    def _columns_of(self, record: Record) -> list[str]:
        """Return the columns of images.parquet that a record is made from; a pattern stands for those
        that the table has.
        """
        patterns = [column for column in record.columns if "*" in column]
        plain = [column for column in record.columns if "*" not in column]
        if not patterns:
            return plain
        import pyarrow.parquet as pq

        names = pq.read_schema(self.files.images).names
        return plain + [n for n in names if any(fnmatch(n, pattern) for pattern in patterns)]

    def data_root(self) -> Path:
        """Return the folder of the manifest. run.json keeps it relative to the run, so that a run and
        its data can be moved together; runs of earlier versions kept it relative to where they were
        made.
        """
        root = (self.meta.get("data") or {}).get("root", ".")
        from_run = self.path / root
        return Path(root) if not from_run.exists() and Path(root).exists() else from_run


def _digest(outputs: dict[str, str]) -> str:
    return sha256_json(outputs)


def _command_line() -> list[str]:
    argv = COMMAND.get()
    return ["dermaudit", *argv] if argv else []


def now() -> str:
    """Return the present time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
