"""A grid of recipes: `d_sae=256,512;k=8,16` and seeds. Nothing heavy is imported here."""

from __future__ import annotations

import itertools
from typing import Any

from dermaudit.errors import UserInputError

from .recipe import value_of

MOST = 64  # recipes at once: each needs the memory of its weights four times


def parse_grid(text: str) -> list[dict[str, Any]]:
    """Return the settings of every recipe of a grid; the last field varies fastest.

    UserInputError names a part that is not `field=value,value`, or an unknown field.
    """
    axes: list[tuple[str, list[Any]]] = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, values = part.partition("=")
        name = name.strip()
        listed = (
            [value_of(name, value) for value in values.split(",") if value.strip()]
            if equals
            else []
        )
        if not listed:
            raise UserInputError(
                f"--sweep {part}: expected field=value,value",
                "for example --sweep 'd_sae=256,512;k=8,16'",
            )
        if name in dict(axes) or len(set(listed)) < len(listed):
            raise UserInputError(f"--sweep names {name} or one of its values twice")
        axes.append((name, listed))
    if not axes:
        raise UserInputError("--sweep is empty", "for example --sweep 'd_sae=256,512;k=8,16'")
    names = [name for name, _ in axes]
    found = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(listed for _, listed in axes))
    ]
    if len(found) > MOST:
        raise UserInputError(
            f"--sweep asks for {len(found)} SAEs at once, at most {MOST} are fitted together",
            "sweep one field after the other",
        )
    return found


def parse_seeds(text: str) -> list[int]:
    """[0, 1, 2] of `0,1,2`. Errors: UserInputError for what is no seed, and for one given twice."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserInputError(f"--seeds {text}: expected whole numbers, for example --seeds 0,1,2")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise UserInputError(f"--seeds {text} has one seed twice")
    return seeds


def name_of(settings: dict[str, Any]) -> str:
    """`d_sae=256,k=8`: the folder of one recipe of a sweep."""

    def shown(value: Any) -> str:
        if isinstance(value, tuple):
            return "-".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ",".join(f"{name}={shown(value)}" for name, value in settings.items())
