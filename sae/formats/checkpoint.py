"""Torch files of unknown origin, opened without running code that they contain."""

from __future__ import annotations

import functools
import io
import pickletools
import warnings
from pathlib import Path
from typing import Any

import torch

from dermaudit.errors import ForeignArtifactError

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
#: File names that training programs use; they are preferred if a folder has several torch files.
NAMES = ("ae.pt", "autoencoder.pth", "sae.pt")

#: Keys of the weights in checkpoints that also have optimizer states and settings.
WRAPPERS = ("model_state_dict", "state_dict", "sae_state_dict", "model")


def torch_file(path: Path) -> Path | None:
    """Return the torch file at `path`, or the one in the folder `path`."""
    if path.is_file():
        return path if path.suffix != ".json" and path.suffix != ".safetensors" else None
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in SUFFIXES)
    return found[0] if len(found) == 1 else None


def load_checkpoint(path: Path, start: int = 0) -> Any:
    """Return what torch.save wrote into `path` from byte `start`: tensors, numbers, strings, containers.

    ForeignArtifactError if it contains pickled code, is cut off, or is not a torch file.
    """
    stat = path.stat()
    return _load(path, start, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)  # several families read the same file
def _load(path: Path, start: int, mtime: int, size: int) -> Any:
    if size <= start:
        raise ForeignArtifactError(
            f"{path} {'ends after its header' if start else 'is empty'}", "copy it again"
        )
    source: Any = path
    if start:
        with path.open("rb") as handle:
            handle.seek(start)
            source = io.BytesIO(handle.read())
    try:
        with warnings.catch_warnings():  # about pickle protocols, in damaged files
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for other files
        data = path.read_bytes()[start:]
        code = foreign_globals(data)
        if code:
            code = ["".join(c if c.isprintable() else "?" for c in name) for name in code]
            shown = ", ".join(code[:3]) + (f" and {len(code) - 3} more" if len(code) > 3 else "")
            raise ForeignArtifactError(
                f"{path} holds pickled code ({shown}), which is never run here",
                "where it was made, save the weights alone: torch.save(sae.state_dict(), FILE)",
            ) from error
        kind = "gzip-compressed" if data[:2] == b"\x1f\x8b" else "cut off, or not a torch file"
        raise ForeignArtifactError(
            f"{path} is {kind} ({_reason(error)})",
            "copy it again, or unpack it and save the weights alone: torch.save(sae.state_dict(), FILE)",
        ) from error


def clear_cache() -> None:
    """Release the file that was read last."""
    _load.cache_clear()


def read_state(path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return the torch file at `path` and its state dict. ForeignArtifactError if there is none."""
    file, state = torch_file(path), state_of(path)
    if file is None or state is None:
        raise ForeignArtifactError(f"{path} has no torch file with a state dict")
    return file, state


def state_of(path: Path) -> dict[str, torch.Tensor] | None:
    """Return the state dict of the torch file at `path`, without its wrapper; None if there is none."""
    file = torch_file(path)
    if file is None:
        return None
    found = load_checkpoint(file)
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict):
        return None
    return {
        name: value
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def foreign_globals(data: bytes) -> list[str]:
    """Return the classes and functions, other than torch's, that unpickling `data` would call.

    The opcodes are read and not executed.
    """
    if data[:4] == b"PK\x03\x04":
        try:
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
        except Exception:  # a damaged archive has no names
            return []
        # A complete module names classes of torch too; those of other packages are more informative.
        return sorted(set(unsafe), key=lambda name: (name.startswith("torch."), name))
    return sorted({name for name in _globals(data) if not name.startswith(_PLAIN)})


_PLAIN = ("torch._utils.", "torch.FloatStorage", "torch.storage.", "collections.OrderedDict")


def _globals(data: bytes) -> list[str]:
    found: list[str] = []
    strings: list[str] = []
    stream = io.BytesIO(data)
    try:
        while stream.tell() < len(data):  # the old torch format is several pickles in a row
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    found.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    found.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:
        pass  # after the pickles comes raw storage
    return found


def _reason(error: Exception) -> str:
    """Return the start of torch's message, without its advice to load the file unsafely."""
    text = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0].split(". ")[0]
    text = "".join(c if c.isprintable() else "?" for c in text)[:120]
    return (
        f"{type(error).__name__}: {text}"
        if text and "weights_only" not in text
        else type(error).__name__
    )
