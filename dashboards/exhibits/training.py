"""The exhibits of training logs: what was trained, losses, learning rate and speed of each stage."""

from __future__ import annotations

from collections.abc import Sequence

from . import curves
from .tables import NOTHING, Exhibit, Table, word
from .training_log import StageLog, TrainingLog

_ACROSS = {"images": "images seen", "epoch": "epochs", "line": "lines of the log"}


def stage_names(logs: list[TrainingLog]) -> list[str]:
    """Return the stages of all logs, in the order of training."""
    return list(dict.fromkeys(stage.name for log in logs for stage in log.stages))


def in_words(log: TrainingLog) -> str:
    """Return how far a training came: images, minutes, failed images, or "not logged"."""
    images = _total([stage.last("images") for stage in log.stages])
    seconds = _total([stage.seconds for stage in log.stages])
    failed = _total([stage.failed for stage in log.stages])
    epochs = [
        f"{stage.last('epoch'):.4g} {stage.name}"
        for stage in log.stages
        if stage.last("epoch") is not None
    ]
    parts = [
        "epochs: " + (", ".join(epochs) or "not logged"),
        "images seen: " + ("not logged" if images is None else f"n = {_count(images)}"),
        "minutes: " + ("not logged" if seconds is None else f"{seconds / 60:.1f}"),
        "failed images: " + ("not logged" if failed is None else _count(failed)),
    ]
    return "; ".join(parts)


def stages(logs: list[TrainingLog]) -> Exhibit:
    """Return what was trained, a row for each stage of each log."""
    rows = [
        (
            log.name,
            stage.name,
            stage.last("epoch"),
            _whole(stage.last("images")),
            _per_epoch(stage),
            None if stage.seconds is None else stage.seconds / 60,
            stage.last("images_per_s"),
            stage.failed,
            stage.entries[0]["loss"],
            stage.last("loss"),
        )
        for log in logs
        for stage in log.stages
    ]
    header = ("training", "stage", "epochs", "images seen", "images an epoch", "minutes")
    return Exhibit(
        "Trainings",
        "Images seen counts an image once for each time it was shown; minutes add up the parts of a "
        "training that was resumed; failed: images that could not be read. First and last loss are "
        "means over the steps of the first and the last line, on training images: they say nothing of "
        f"other images. {NOTHING}: not logged.",
        Table((*header, "images/s", "failed", "first loss", "last loss"), rows, digits=2),
        notes=[
            f"the last line of {log.name} is half written and is left out"
            for log in logs
            if log.cut
        ],
    )


def losses(logs: list[TrainingLog], stage: str) -> Exhibit:
    """Return the loss of a stage and its parts, a panel each, a line for each log."""
    found = _with(logs, stage)
    parts = list(dict.fromkeys(part for _, log in found for part in log.parts))
    titles = {"loss": "loss (total)" if parts else "loss", **{p: p for p in parts}}
    notes = [
        f"the parts of {name} do not add up to its loss: they were logged without their weights"
        for name, log in found
        if log.parts and not log.sums_up
    ]
    return _exhibit(
        f"{stage}: losses",
        "Means over the training steps since the line before"
        + (", each part with its weight in the total" if parts and not notes else "")
        + ". On training images: a loss that falls here may still rise on others. Losses of "
        "different recipes are not on one scale.",
        found,
        titles,
        notes,
        [log.name for log in logs],
    )


def pace(logs: list[TrainingLog], stage: str) -> Exhibit:
    """Return learning rate and images/s of a stage; EvidenceError where no log has them."""
    from dermaudit.errors import EvidenceError

    found = _with(logs, stage)
    titles = {"lr": "learning rate", "images_per_s": "images/s"}
    titles = {
        key: title
        for key, title in titles.items()
        if any(value is not None for _, log in found for value in log.column(key))
    }
    if not titles:
        raise EvidenceError(
            "these logs hold neither learning rate nor images/s (older versions did not log them)"
        )
    return _exhibit(
        f"{stage}: learning rate and speed",
        "Learning rate at the last step of each line. Images/s: the mean since the training was "
        "started or, if it was, resumed; all processes together.",
        found,
        titles,
        [],
        [log.name for log in logs],
        from_zero=True,
    )


def _exhibit(
    title: str,
    caption: str,
    found: list[tuple[str, StageLog]],
    titles: dict[str, str],
    notes: list[str],
    names: list[str],
    *,
    from_zero: bool = False,
) -> Exhibit:
    across = _across([log for _, log in found])
    at = {name: _places(log, across) for name, log in found}
    panels = [
        (words, {name: (at[name], log.column(key)) for name, log in found if _has(log, key)})
        for key, words in titles.items()
    ]
    rows = [
        (name, x, *(entry.get(key) for key in titles))
        for name, log in found
        for x, entry in zip(at[name], log.entries, strict=True)
    ]
    ends = "; ".join(f"{name}: {_ends(log, titles)}" for name, log in found)
    if across != "images":
        caption += f" Against {_ACROSS[across]}: not every log counts images."
    return Exhibit(
        title,
        caption,
        Table(("training", _ACROSS[across], *titles.values()), rows, digits=6),
        curves.curves(panels, names, axis=_ACROSS[across], from_zero=from_zero),
        f"Lines against {_ACROSS[across]}. {ends}.",
        notes,
    )


def _has(log: StageLog, key: str) -> bool:
    """Return whether any line has the key."""
    return any(value is not None for value in log.column(key))


def _with(logs: list[TrainingLog], stage: str) -> list[tuple[str, StageLog]]:
    found = [(log.name, log.stage(stage)) for log in logs]
    return [(name, log) for name, log in found if log is not None]


def _across(logs: Sequence[StageLog]) -> str:
    """Return the key that all lines of all logs can be drawn against."""
    return next((k for k in ("images", "epoch") if all(log.knows(k) for log in logs)), "line")


def _places(log: StageLog, across: str) -> list[float]:
    if across == "line":
        return [float(i + 1) for i in range(len(log.entries))]
    return [float(value or 0) for value in log.column(across)]


def _ends(log: StageLog, titles: dict[str, str]) -> str:
    parts = []
    for key, words in titles.items():
        values = [value for value in log.column(key) if value is not None]
        if values:
            parts.append(f"{words} from {values[0]:.4g} to {values[-1]:.4g}")
    return ", ".join(parts)


def _per_epoch(stage: StageLog) -> int | None:
    images, epoch = stage.last("images"), stage.last("epoch")
    return round(images / epoch) if images and epoch else None


def _total(values: Sequence[float | None]) -> float | None:
    """Return the sum, None where one of the values is unknown."""
    return (
        None if any(value is None for value in values) else sum(v for v in values if v is not None)
    )


def _count(value: float) -> str:
    return word(round(value))


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
