"""A training recipe: a TOML file, validated; every field can be set with `--set a.b=value`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from dermaudit.errors import UserInputError, closest, unknown

_BUNDLED = Path(__file__).parent / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(_Part):
    """The towers, in open_clip's words (`vision_cfg`, `text_cfg` without the vocabulary)."""

    embed_dim: int = Field(gt=0)
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]
    vocab_size: int = Field(2000, gt=100)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @field_validator("vision_cfg", "text_cfg")
    @classmethod
    def _whole(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        key = "image_size" if info.field_name == "vision_cfg" else "context_length"
        if not isinstance(value.get(key), int) or value[key] < 1:
            raise ValueError(f"{key} must be a whole number above 0")
        return value


class AugmentPart(_Part):
    """Random views of a training image. `rotate` in radians, `scale` and `shift` as shares."""

    flip: bool = True
    rotate: float = 0.25
    scale: tuple[float, float] = (0.85, 1.05)
    shift: float = 0.05
    brightness: float = 0.2
    contrast: float = 0.2
    colour: float = 0.08


class MaskedPart(_Part):
    """Stage 1, masked latent prediction: the share of cells masked, and who is predicted."""

    epochs: float = Field(0.0, ge=0)
    mask: float = Field(0.5, gt=0, lt=1)
    teacher: str = "ema"  # "ema" of the student, or any model name that load_model takes
    ema: float = 0.996
    lr: float = 5e-4


class ContrastivePart(_Part):
    """Stage 2: open_clip's ClipLoss (or SigLipLoss) on captions, the aspect loss on the embedding, and
    the aspect loss on single cells (`local_weight`)."""

    epochs: float = Field(10.0, gt=0)
    loss: Literal["clip", "siglip"] = "clip"
    clip_weight: float = 0.5
    aspect_weight: float = 1.0
    local_weight: float = Field(0.0, ge=0)
    keep: float = Field(0.7, ge=0, le=1)
    deny: float = Field(0.15, ge=0, le=1)
    lr: float = 1e-3
    columns: tuple[str, ...] = ()  # further manifest columns whose values captions may say


class Recipe(_Part):
    """The whole recipe. `batch` images a step, `warmup` steps, `ema` of the weights that are kept."""

    format_version: Literal[1] = 1
    name: str
    seed: int = 0
    batch: int = Field(64, gt=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup: int = 50
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    weight_ema: float = Field(0.998, ge=0, lt=1)
    model: ModelPart
    augment: AugmentPart = AugmentPart()
    masked: MaskedPart = MaskedPart()
    contrastive: ContrastivePart = ContrastivePart()

    @property
    def image_size(self) -> int:
        return int(self.model.vision_cfg["image_size"])


def load_recipe(name: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A bundled recipe by name, or a TOML file, with `key=value` overrides (values in TOML).

    UserInputError names the file, the key and the mend for each thing that is wrong.
    """
    path = Path(name)
    if path.suffix != ".toml":
        bundled = {file.stem: file for file in _BUNDLED.glob("*.toml") if file.stem != "wordings"}
        if str(name) not in bundled:
            raise unknown("recipe", str(name), bundled)
        path = bundled[str(name)]
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserInputError(f"recipe {path} does not exist") from error
    except OSError as error:
        raise UserInputError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserInputError(f"recipe {path} is not valid TOML: {error}") from error
    for text in overrides or []:
        _override(raw, text)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserInputError(f"recipe {path}: " + "; ".join(_sentences(error))) from error


def _override(raw: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserInputError(
            f"--set {text}: expected key=value", "for example --set contrastive.epochs=5"
        )
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *path, last = key.strip().split(".")
    target = raw
    for part in path:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise UserInputError(f"--set {text}: '{part}' is a value, it has no fields")
    target[last] = parsed


def _sentences(error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            near = closest(str(fault["loc"][-1]), _all_fields())
            lines.append(f"unknown key '{where}'" + (f": did you mean '{near}'?" if near else ""))
        else:
            lines.append(f"{where}: {fault['msg']} (got {fault['input']!r})")
    return lines


def _all_fields() -> list[str]:
    parts = (Recipe, ModelPart, AugmentPart, MaskedPart, ContrastivePart)
    return [name for part in parts for name in part.model_fields]
