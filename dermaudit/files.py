"""Files that are either whole or absent: temporary name, fsync, rename; and the hashes of files.

Every writer of the toolkit goes through `whole_file`, so that a killed or failed write never
leaves half a file under its final name, and a full disk gives one sentence (exit code 2).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dermaudit.errors import NoSpaceError, UserInputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # safetensors raises its own class, with the operating system's words inside; numpy an OSError
    # without a number: "50000 requested and 12784 written".
    text = str(error).lower()
    if isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", text):
        return True
    return any(
        word in text
        for word in (
            "no space left",
            "file too large",
            "quota exceeded",
            "os error 28",
            "os error 27",
        )
    )


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`.

    Errors: NoSpaceError when the disk or the file-size limit is full; UserInputError when the
    folder cannot be written. Whatever was at `path` before stays until the rename.
    """
    path = Path(path)
    # The host too: in containers on a shared folder process ids are often the same.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # below a place such as /proc
            raise UserInputError(
                f"cannot write {path}: the folder {path.parent} cannot be made",
                "choose a folder that you may write to",
            ) from error
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if _is_full(error):
            raise NoSpaceError(
                f"no space left to write {path}",
                "free some space (or point --run / --out to another disk) and run the same "
                "command again: what was finished is kept",
            ) from error
        if isinstance(
            error, (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
        ):
            raise UserInputError(
                f"cannot write {path}: {error.strerror}", "choose a folder that you may write to"
            ) from error
        raise
    finally:
        # Where the folder could not be made there is nothing to remove.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file as a whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Write `indented_json` as a whole or not at all."""
    write_bytes(path, indented_json(value))


def indented_json(value: Any) -> bytes:
    """Return indented JSON with sorted keys: the same value gives the same bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def write_npy(path: Path | str, array: Any) -> None:
    """Write an array as a whole npy file or not at all."""
    import numpy as np

    with whole_file(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)


def write_parquet(path: Path | str, table: Any) -> None:
    """Write a pyarrow Table; the same table gives the same bytes."""
    import pyarrow.parquet as pq

    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_safetensors(
    path: Path | str, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write torch tensors (made contiguous) as safetensors; the same content gives the same bytes."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata)
        _sort_safetensors_metadata(temporary)
        # save_file makes files that only their owner can read; runs are shared between users.
        temporary.chmod(0o644)


def _sort_safetensors_metadata(path: Path) -> None:
    """Sort the metadata keys in the header of a safetensors file, in place.

    safetensors keeps metadata in a hash map and writes its keys in random order. Sorting changes no
    length, so that the tensors stay where they are and are not read.
    """
    with path.open("r+b") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(size))
        if len(header.get("__metadata__", {})) < 2:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        if len(text) > size:
            raise ValueError(f"the sorted header of {path} does not fit in its {size} bytes")
        handle.seek(8)
        handle.write(text.ljust(size))


def read_json(path: Path | str, what: str = "file") -> Any:
    """Read JSON; UserInputError names the file when it is missing or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserInputError(f"{what} {path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserInputError(
            f"{what} {path} is not valid JSON ({error})", "restore it, or make it again"
        ) from error


def sha256_file(path: Path | str) -> str:
    """Return the sha256 of a file as hexadecimal text."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces. What hashes are taken of."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Return the sha256 of a value in canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
