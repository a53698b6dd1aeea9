"""Return the tensors of a weights file: safetensors, or foreign files with `weights_only=True`, never pickle."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dermaudit.errors import ForeignArtifactError, UserInputError

from .names import CONFIG_FILE, WEIGHTS


def weights_file(folder: Path) -> Path:
    """Return the weights file that stock open_clip would choose. Raises UserInputError if there is none."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p for ext in ("safetensors", "bin", "pth") for p in folder.glob(f"*.{ext}"))
    if others:
        return others[0]
    raise UserInputError(
        f"{folder} has a configuration but no weights", f"put {WEIGHTS[0]} next to {CONFIG_FILE}"
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file, in the precision of the file.

    Errors: ForeignArtifactError when it is cut off, not a weights file, or would need pickle.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ForeignArtifactError(
                f"{path} cannot be read as safetensors ({error})",
                "the file is cut off or something else: copy or download it again",
            ) from error
    try:
        # The arguments of a training script are plain attributes: no code runs for them.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many classes here, pickle's own among them
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ForeignArtifactError(
            f"{path} cannot be read as plain weights ({first})",
            "a file that needs pickle is not opened: convert it to safetensors",
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ForeignArtifactError(f"{path} holds no state dict of tensors")
    if state and all(key.startswith("module.") for key in state):
        state = {key[len("module.") :]: value for key, value in state.items()}
    return state


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the part of a state dict whose keys begin with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def few(keys: list[str]) -> str:
    """Return the first four of some keys and how many more there are, for messages."""
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
