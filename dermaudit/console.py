"""What people read while a command runs: progress bars and short tables, on stderr only.

stdout is left to results. `--quiet` (DERMAUDIT_QUIET) silences it; bars need a terminal, elsewhere
a line is printed every ten seconds so that a log shows life.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def quiet() -> bool:
    """Whether messages for people are left out."""
    return bool(os.environ.get("DERMAUDIT_QUIET"))


def say(text: str = "") -> None:
    """Print a message for people on stderr."""
    if not quiet():
        print(text, file=sys.stderr, flush=True)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns; numbers are formatted by the caller."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    say(f"\n{title}")
    for i, row in enumerate(cells):
        say(
            "  "
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
        if i == 0:
            say("  " + "  ".join("-" * width for width in widths))


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on stderr (count, rate, time left)."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if quiet():
        yield from items
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
            yield from bar.track(items, total=total, description=what)
        return
    last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"  {what}: {done}{f' of {total}' if total else ''}")
    say(f"  {what}: {done} done")


class Meter:
    """A progress bar over `total` units (`unit`) of which `done` are done already, with their rate and the time
    left; a context manager. Without a terminal: a line every ten seconds.
    """

    def __init__(
        self, what: str, total: int, done: int = 0, *, unit: str = "images", shown: bool = True
    ) -> None:
        self.what, self.total, self.done, self.first = what, total, done, done
        self.unit, self.shown = unit, shown and not quiet()
        self._bar = None

    def __enter__(self) -> Meter:
        self._started = self._last = time.monotonic()
        if self.shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                "{task.description}",
                BarColumn(),
                "{task.percentage:>3.0f} %",
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(
                self.what, total=self.total, completed=self.done, note=""
            )
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, n: int, note: str = "") -> None:
        """Add `n` finished units, and show `note` beside the rate."""
        self.done += n
        if not self.shown:
            return
        now = time.monotonic()
        rate = max(self.done - self.first, 1e-9) / max(now - self._started, 1e-9)
        said = f"{rate:.0f} {self.unit}/s  {note}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=said)
        elif now - self._last > 10:
            self._last = now
            left = (self.total - self.done) / rate / 60
            say(f"  {self.what}: {self.done} of {self.total}  {said}  {left:.1f} min left")

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            say(line)
