"""The folder that a command writes to: when it may be used, and when work in it is continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dermaudit.errors import UserInputError
from dermaudit.files import read_json


def check_output_folder(
    out: Path,
    *,
    what: str,
    finished: str,
    unfinished: str,
    identity: dict[str, Any],
    force: bool = False,
) -> None:
    """Raise UserInputError unless `out` may be written to.

    It may if it is absent or empty, if `force` is given, or if its file `unfinished` says that the same
    command (`identity`, or a part of it) was stopped there. `finished` is the file of a whole result,
    which messages call `what`.
    """
    if out.exists() and not out.is_dir():
        raise UserInputError(f"--out {out} is a file", "choose a folder")
    if force or not out.exists():
        return
    if (out / unfinished).exists():
        recorded = read_json(out / unfinished)
        if {name: recorded.get(name) for name in identity} != identity:
            raise UserInputError(
                f"{out} holds unfinished work of another source, or with other options",
                "use --force to begin again, or another --out",
            )
        return
    held = sorted(p.name for p in out.iterdir() if not p.name.endswith(".tmp"))
    if held:
        if finished not in held:
            raise UserInputError(f"{out} already holds files ({held[0]})", "choose another --out")
        raise UserInputError(
            f"{out} already holds {what}", "use --force to replace it, or another --out"
        )
