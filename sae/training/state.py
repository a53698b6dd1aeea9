"""The checkpoint of a fit, in one file: weights, Adam, counters, best weights, position in the data.

Random generators need no state: orders depend on (seed, epoch), first weights on the seed, resampled
latents on (seed, step). The file is written completely or not at all, so that weights and optimizer
always belong to the same step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaudit.errors import ForeignArtifactError
from dermaudit.files import sha256_json, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

    from .sae_in_training import SAEInTraining

STATE_FILE = "state.safetensors"
FORMAT_VERSION = 1


def save_state(folder: Path, models: list[SAEInTraining], facts: dict[str, Any]) -> None:
    """Write `folder`/state.safetensors. NoSpaceError leaves the old file unchanged."""
    tensors: dict[str, Tensor] = {}
    for i, model in enumerate(models):
        # Clones, because safetensors refuses two names for one tensor.
        tensors |= {f"{i}.{name}": value.clone() for name, value in model.tensors().items()}
    progress = {
        "format_version": FORMAT_VERSION,
        "key": sha256_json(facts),
        "facts": facts,
        "trainees": [model.progress() for model in models],
    }
    write_safetensors(folder / STATE_FILE, tensors, {"progress": json.dumps(progress)})


def restore_state(folder: Path, models: list[SAEInTraining], facts: dict[str, Any]) -> bool:
    """Restore the models from the checkpoint in `folder`; return False if there is none.

    ForeignArtifactError if it belongs to another recipe, other rows, or another number of processes or
    threads (their sums round differently), or if the file is cut off.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return False
    metadata, tensors = _open(path)
    try:
        progress = json.loads(metadata["progress"])
        fits = progress["format_version"] == FORMAT_VERSION
        if fits and progress["key"] == sha256_json(facts):
            for i, (model, kept) in enumerate(zip(models, progress["trainees"], strict=True)):
                own = {
                    name.partition(".")[2]: v
                    for name, v in tensors.items()
                    if name.startswith(f"{i}.")
                }
                model.restore(own, kept)
            return True
        differs = _differs(progress["facts"], facts)
    except (KeyError, ValueError, TypeError) as error:
        raise ForeignArtifactError(
            f"{path} is not the checkpoint of a fit ({error})", "start again without --resume"
        ) from error
    raise ForeignArtifactError(
        f"{path} is the checkpoint of another fit{differs}",
        "resume with the same recipe, rows, threads and processes, or start again without --resume",
    )


def _differs(was: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the first difference, for example ": lr was 0.001, is 0.01"."""
    was, now = _flat(was), _flat(now)
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            return f": {name} was {str(was.get(name))[:40]}, is {str(now.get(name))[:40]}"
    return ""


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts with the fields of the recipes: `lr`, or `recipe 2: lr` if there are several."""
    flat = {name: value for name, value in facts.items() if name != "recipes"}
    recipes = facts.get("recipes", [])
    flat["number of recipes"] = len(recipes)
    for i, recipe in enumerate(recipes):
        flat |= {f"recipe {i + 1}: {k}" if len(recipes) > 1 else k: v for k, v in recipe.items()}
    return flat


def _open(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            return handle.metadata() or {}, {
                name: handle.get_tensor(name)
                for name in handle.keys()  # noqa: SIM118
            }
    except (SafetensorError, OSError) as error:
        raise ForeignArtifactError(
            f"{path} cannot be read ({error})", "start again without --resume"
        ) from error
