"""The extension point for dataset layouts: the protocol and the discovery of its implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dermaudit.plugins import discover

from ..manifest.tables import RawTable


class DatasetLayout(Protocol):
    """A published or usual form of an image data set.

    `description` is one line that names the columns read; `order` decides who is asked first.
    """

    @property
    def name(self) -> str:
        """The name after `--layout`."""
        ...

    @property
    def description(self) -> str:
        """The columns that are read, in one line."""
        ...

    @property
    def order(self) -> int:
        """Layouts with a smaller number are tried first."""
        ...

    @property
    def matches(self) -> Callable[[Path], bool]:
        """Whether a path is in this layout."""
        ...

    @property
    def read(self) -> Callable[[Path], RawTable]:
        """Read a path."""
        ...


@dataclass(frozen=True)
class Layout:
    """A `DatasetLayout` made of two functions."""

    name: str
    description: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], RawTable]
    order: int = 50


def layouts() -> dict[str, DatasetLayout]:
    """Return {name: layout} of every module in this folder that defines `LAYOUT`, by `order`."""
    found = discover(__name__.rpartition(".")[0], "LAYOUT").values()
    return {one.name: one for one in sorted(found, key=lambda one: (one.order, one.name))}
