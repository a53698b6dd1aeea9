"""Where a fit is, in one file: weights, Adam, counters, the best so far, and the place in the data.

Nothing random is kept, because nothing random has a state: orders are drawn from (seed, epoch), first
weights from the seed, resampled latents from (seed, step). The weights of one step never stand beside
the optimizer of another: the file is written whole or not at all.
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


def save_state(folder: Path, trainees: list[SAEInTraining], facts: dict[str, Any]) -> None:
    """Write `folder`/state.safetensors. Errors: NoSpaceError; what was there before stays."""
    tensors: dict[str, Tensor] = {}
    for i, trainee in enumerate(trainees):
        # Clones: two names for one tensor are refused by safetensors.
        tensors |= {f"{i}.{name}": value.clone() for name, value in trainee.tensors().items()}
    progress = {
        "format_version": FORMAT_VERSION,
        "key": sha256_json(facts),
        "facts": facts,
        "trainees": [trainee.progress() for trainee in trainees],
    }
    write_safetensors(folder / STATE_FILE, tensors, {"progress": json.dumps(progress)})


def restore_state(folder: Path, trainees: list[SAEInTraining], facts: dict[str, Any]) -> bool:
    """Bring the trainees to where the fit in `folder` was; False when nothing was saved.

    Errors: ForeignArtifactError when it was a fit of another recipe, other rows, another number of
    processes or threads (their sums round differently), or when the file is cut off.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return False
    metadata, tensors = _open(path)
    try:
        progress = json.loads(metadata["progress"])
        fits = progress["format_version"] == FORMAT_VERSION
        if fits and progress["key"] == sha256_json(facts):
            for i, (trainee, kept) in enumerate(zip(trainees, progress["trainees"], strict=True)):
                own = {
                    name.partition(".")[2]: v
                    for name, v in tensors.items()
                    if name.startswith(f"{i}.")
                }
                trainee.restore(own, kept)
            return True
        differs = _differs(progress["facts"], facts)
    except (KeyError, ValueError, TypeError) as error:
        raise ForeignArtifactError(
            f"{path} is no checkpoint of a fit ({error})", "begin again without --resume"
        ) from error
    raise ForeignArtifactError(
        f"{path} is the checkpoint of another fit{differs}",
        "resume with the same recipe, rows, threads and processes, or begin again without --resume",
    )


def _differs(was: dict[str, Any], now: dict[str, Any]) -> str:
    """ ": lr was 0.001, is 0.01" for the first thing that differs."""
    was, now = _flat(was), _flat(now)
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            return f": {name} was {str(was.get(name))[:40]}, is {str(now.get(name))[:40]}"
    return ""


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with the recipes' fields among them: `lr`, or `recipe 2: lr` where there are several."""
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
            f"{path} cannot be read ({error})", "begin again without --resume"
        ) from error
