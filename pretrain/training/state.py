"""Where a training is: weights, optimizer, average and position in one file; seeds that need no state.

Everything random is drawn from generators seeded by (recipe's seed, stage, step), so a position is all
that a resumed run needs to draw what an unbroken one draws.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dermaudit.errors import ForeignArtifactError
from dermaudit.files import sha256_json, write_safetensors

STATE_FILE = "state.safetensors"


@dataclass
class Position:
    """`step` steps of `stage` are done, after `seconds` of training in all."""

    stage: str
    step: int = 0
    seconds: float = 0.0


@dataclass
class TrainingState:
    """What a checkpoint of the training holds: every tensor that is needed to continue."""

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    position: Position
    average: dict[str, Tensor] = field(default_factory=dict)

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, in the optimizer's order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor under a name that is unique in the file."""
        found = {
            f"{part}.{name}": value
            for part, module in self.modules.items()
            for name, value in module.state_dict().items()
        }
        found.update({f"average.{name}": value for name, value in self.average.items()})
        for i, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{i}.{name}"] = torch.as_tensor(value)
        return found


def seed_of(seed: int, *words: Any) -> int:
    """48 bits from a recipe's seed and what the draw is for."""
    return int(sha256_json([seed, *words])[:12], 16)


def save_state(state: TrainingState, folder: Path, identity: dict[str, Any]) -> None:
    """Write one file, atomically: weights and optimizer are always of the same step."""
    progress = {**identity, **asdict(state.position)}
    write_safetensors(
        folder / STATE_FILE,
        {name: _own(value) for name, value in state.tensors().items()},
        {"progress": json.dumps(progress)},
    )


def _own(value: Tensor) -> Tensor:
    """On the CPU, in memory of its own: tied weights share theirs, which safetensors refuses to write."""
    value = value.detach()
    return value.clone() if value.device.type == "cpu" else value.cpu()


def read_position(folder: Path, identity: dict[str, Any]) -> Position | None:
    """Where the training in `folder` was stopped; None when nothing was saved yet.

    Errors: ForeignArtifactError when it is a training of another recipe, other images, or another
    number of processes (their sums round differently), or when the file is cut off.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    progress = json.loads(_open(path, tensors=False)[0].get("progress", "{}"))
    if progress.get("key") != identity["key"]:
        differs = _differs(progress.get("facts", {}), identity.get("facts", {}))
        raise ForeignArtifactError(
            f"{path} belongs to another recipe or other images{differs}",
            "resume with the same ones (only learning rates, warm-up and clipping may change), or begin "
            "again: --force without --resume",
        )
    if progress["processes"] != identity["processes"]:
        raise ForeignArtifactError(
            f"{path} was written by {progress['processes']} processes, this is a run of "
            f"{identity['processes']}",
            f"resume with torchrun --nproc-per-node {progress['processes']}, or begin again without "
            "--resume",
        )
    return Position(progress["stage"], progress["step"], progress["seconds"])


def _differs(was: dict[str, Any], now: dict[str, Any]) -> str:
    """Return ": contrastive.keep was 0.7, is 0.5" for the first value that differs."""
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            shown = [str(side.get(name))[:40] for side in (was, now)]
            return f": {name} was {shown[0]}, is {shown[1]}"
    return ""


def restore(state: TrainingState, folder: Path, position: Position) -> None:
    """Put what `folder` holds into `state`."""
    tensors = _open(folder / STATE_FILE)[1]
    for part, module in state.modules.items():
        module.load_state_dict(_below(tensors, f"{part}."))
    device = state.parameters[0].device
    # A fused AdamW counts its steps on the device, Muon on the CPU.
    fused = isinstance(state.optimizer, torch.optim.AdamW)
    state.average = {k: v.to(device) for k, v in _below(tensors, "average.").items()}
    for i, parameter in enumerate(state.parameters):
        values = _below(tensors, f"optimizer.{i}.")
        if values:
            state.optimizer.state[parameter] = {
                k: v.to(device) if fused or k != "step" else v for k, v in values.items()
            }
    state.position = position


def _open(path: Path, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            names = handle.keys() if tensors else ()
            return handle.metadata() or {}, {name: handle.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ForeignArtifactError(
            f"{path} cannot be read ({error})", "begin again without --resume"
        ) from error


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
