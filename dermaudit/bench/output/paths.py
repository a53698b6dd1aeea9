"""Output paths of a benchmark: before any work, no file exists yet and the folder can be written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.files import whole_file

from ..inputs.saved_predictions import CLASSES_SUFFIX
from .render import SUFFIX, check_format


class _Tried(Exception):
    """Ends a trial write, so that nothing gets its final name."""


def check_place(path: Path, force: bool) -> None:
    """Raise UserInputError for a file that exists (without --force), or a folder that cannot be written.

    Leaves nothing behind.
    """
    try:
        _check(path, force)
    except OSError as error:  # a name too long, a disk that is read only
        raise UserInputError(
            f"cannot write {path}: {error.strerror}", "choose a folder that you may write to"
        ) from error


def _check(path: Path, force: bool) -> None:
    if path.is_dir():
        raise UserInputError(f"--out {path} is a folder", "give the name of a file in it")
    if path.exists() and not force:
        raise UserInputError(
            f"{path} is there already", "use --force to replace it, or another --out"
        )
    for folder in path.parents:
        if folder.is_file():
            raise UserInputError(f"cannot write {path}: {folder} is a file", "give a folder there")
    new = [folder for folder in path.parents if not folder.exists()]
    try:
        # Permissions are not enough: root may write everywhere, but not below /proc.
        with suppress(_Tried), whole_file(path) as temporary:
            temporary.touch()
            raise _Tried
    finally:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()


def planned_files(
    out: Path | None, bench: str, form: str, dataset: str, names: Sequence[str], force: bool
) -> Path | None:
    """Return the path of the table below --out; None without --out.

    `names`: models whose predictions are written too. Errors: UserInputError for an unknown format, a file
    that exists (without --force), and a folder that cannot be written.
    """
    check_format(form)
    if out is None:
        if form == "parquet":
            raise UserInputError("--format parquet needs a folder", "give --out DIR")
        return None
    table = out / f"{bench}{SUFFIX[form]}"
    # The numbers in predictions mean what the file of classes says: another one must not replace it.
    classes = [out / f"{dataset}{CLASSES_SUFFIX}"] if names else []
    for path in (table, *(out / dataset / f"{name}.csv" for name in names), *classes):
        check_place(path, force)
    return table
