"""The JSONL logs that `dermaudit pretrain` writes: found by file, folder or model, read, checked.

A log may be that of a training which is still running: a last line that is half written is left out.
Older logs lack keys; what is not there is unknown, never 0. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from dermaudit.errors import DermauditError, UserInputError
from dermaudit.towers.loading.names import resolve

FINISHED, RUNNING = "training_log.jsonl", "log.jsonl"
#: Keys that place a line in the training; every other number of a line is a part of its loss.
PLACE = ("step", "epoch", "images", "seconds", "lr", "images_per_s", "failed")
_WORK = ".training"
_HINT = (
    f"give the {FINISHED} of a checkpoint, or the {RUNNING} of .<out>{_WORK} while it is trained"
)
Entry = dict[str, float | None]


@dataclass(frozen=True)
class StageLog:
    """One stage of a training: its lines in order, {key: number, None where not finite}."""

    name: str
    entries: list[Entry]

    def column(self, key: str) -> list[float | None]:
        """Return the values of a key over the lines; None where a line does not have it."""
        return [entry.get(key) for entry in self.entries]

    def last(self, key: str) -> float | None:
        """Return the value of a key in the last line."""
        return self.entries[-1].get(key)

    def knows(self, key: str) -> bool:
        """Return whether every line has a value of the key."""
        return all(value is not None for value in self.column(key))

    @cached_property
    def parts(self) -> list[str]:
        """The parts of the loss that any line has, in the order of their first appearance."""
        keys = dict.fromkeys(key for entry in self.entries for key in entry)
        return [key for key in keys if key not in PLACE and key != "loss"]

    @cached_property
    def sums_up(self) -> bool:
        """Whether the parts add up to the loss: older trainings logged them without weights."""
        for entry in self.entries:
            found = [value for p in self.parts if (value := entry.get(p)) is not None]
            loss = entry["loss"]
            if found and loss is not None and abs(sum(found) - loss) > 1e-3 * max(1.0, abs(loss)):
                return False
        return True

    @cached_property
    def failed(self) -> int | None:
        """Images that could not be read: each line counts those since the line before it."""
        known = [value for value in self.column("failed") if value is not None]
        return int(sum(known)) if known else None

    @cached_property
    def seconds(self) -> float | None:
        """Time that was spent: a resumed training starts its clock again, so its parts are added.

        A part has begun where `seconds` falls, or where seconds * images_per_s, the images of this
        part, are fewer than all images by those of the line before.
        """
        clock = [value for value in self.column("seconds") if value is not None]
        if len(clock) < len(self.entries):
            return None
        spent, begun = 0.0, 0.0
        for (before, entry), (earlier, now) in zip(
            pairwise(self.entries), pairwise(clock), strict=True
        ):
            fresh = now < earlier
            rate, images = entry.get("images_per_s"), entry.get("images")
            done = before.get("images")
            if rate is not None and images is not None and done is not None:
                start = images - rate * now
                fresh = fresh or abs(start - done) < abs(start - begun)
            if fresh:
                spent += earlier
                begun = done or 0.0
        return spent + clock[-1]


@dataclass(frozen=True)
class TrainingLog:
    """A log: `name` of the training, `stages` in order; `cut` if a half-written line was left out."""

    name: str
    path: Path
    stages: list[StageLog]
    cut: bool = False

    def stage(self, name: str) -> StageLog | None:
        """Return a stage by its name, None if the log does not have it."""
        return next((stage for stage in self.stages if stage.name == name), None)


def find_logs(path: Path) -> list[Path]:
    """Return the logs that `path` means: a file, those in a folder, that of a training with this --out.

    Errors: UserInputError for a path that is not there and for a folder without a log.
    """
    if path.is_file():
        return [path]
    # absolute() gives `.` and `..` a name; links are kept, since the name is shown.
    named = path.absolute()
    work = named.with_name(f".{named.name}{_WORK}") / RUNNING
    inside = [path / FINISHED] if (path / FINISHED).is_file() else [path / RUNNING]
    found = [p for p in (*inside, work) if p.is_file()]
    if found:
        return found
    if work.parent.is_dir() or (path.name.endswith(_WORK) and path.is_dir()):
        raise UserInputError(
            f"the training in {work.parent if work.parent.is_dir() else path} has not logged yet",
            "it logs at the end of an epoch, or at each checkpoint_every",
        )
    if path.is_dir():
        raise UserInputError(f"{path} holds no {FINISHED} and no {RUNNING}", _HINT)
    raise UserInputError(f"there is no training log {path}", _HINT)


def log_of_model(model: str) -> list[Path]:
    """Return the logs in the folder of a run's model. UserInputError with the reason if there is none."""
    only = "only models trained by dermaudit pretrain have one; name another log with --log"
    try:
        folder = resolve(model).folder
        if folder is not None:
            return find_logs(folder)
        why = "its weights are not in a folder"
    except UserInputError as error:
        why = error.message
    raise UserInputError(f"the run's model {model} has no training log: {why}", only)


def read_log(path: Path) -> TrainingLog:
    """Read a log. UserInputError names the file and the line that is not one of a training log."""
    try:
        with path.open("rb") as handle:
            # A file of weights is refused before all of it is read.
            head = handle.read(64).lstrip()
            if head and not head.startswith(b"{"):
                raise UserInputError(f"{path} is not a training log", _HINT)
            handle.seek(0)
            lines = handle.read().split(b"\n")
    except OSError as error:
        raise UserInputError(f"{path} cannot be read ({error.strerror})", _HINT) from error
    stages: dict[str, list[Entry]] = {}
    cut = False
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw.decode("utf-8"))
        except ValueError as error:
            # The writer ends each line: what has no end is still being written.
            if number == len(lines) and raw.lstrip().startswith(b"{"):
                cut = True
                continue
            raise UserInputError(f"{path}, line {number}: not JSON ({error})", _HINT) from error
        name, entry = _checked(line, f"{path}, line {number}")
        stages.setdefault(name, []).append(entry)
    if not stages:
        raise UserInputError(
            f"{path} has no whole line yet" if cut else f"{path} is empty",
            "a training logs at the end of an epoch, or at each checkpoint_every",
        )
    return TrainingLog(
        _name(path), path, [StageLog(name, entries) for name, entries in stages.items()], cut
    )


def read_logs(paths: list[Path]) -> tuple[list[TrainingLog], list[DermauditError]]:
    """Return every log that can be read, under different names, and the errors of the others."""
    logs, wrong = [], []
    for path in paths:
        try:
            logs += [read_log(found) for found in find_logs(path)]
        except DermauditError as error:
            wrong.append(error)
    once = {log.path.resolve(): log for log in logs}
    names = [log.name for log in once.values()]
    return [
        log
        if names.count(log.name) == 1
        else TrainingLog(f"{log.name} ({log.path})", log.path, log.stages, log.cut)
        for log in once.values()
    ], wrong


def _checked(line: Any, where: str) -> tuple[str, Entry]:
    if not isinstance(line, dict):
        raise UserInputError(f"{where}: not a JSON object", _HINT)
    stage = line.get("stage")
    if not isinstance(stage, str) or not stage:
        raise UserInputError(f"{where}: no line of a training log, it names no stage", _HINT)
    entry: Entry = {}
    for key, value in line.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            entry[key] = float(value) if math.isfinite(value) else None
        elif key in (*PLACE, "loss") and value is not None:
            raise UserInputError(f"{where}: {key} is not a number ({value!r})", _HINT)
    if "loss" not in entry:
        raise UserInputError(f"{where}: no line of a training log, it has no loss", _HINT)
    return stage, entry


def _name(path: Path) -> str:
    """Return the name of the folder, or of the file if it is not named like a log."""
    folder = path.absolute().parent.name
    if path.name not in (FINISHED, RUNNING):
        return path.stem
    if folder.startswith(".") and folder.endswith(_WORK):
        return f"{folder[1:].removesuffix(_WORK)} (not finished)"
    return folder
