"""A training recipe: a TOML file, validated; every field can be set with `--set a.b=value`."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from dermaudit.errors import UserInputError, closest, unknown

from .starts import split_start

_BUNDLED = Path(__file__).parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """The towers a training starts from.

    `init`: a model that load_model opens, with its tokenizer and preprocessing; or fresh towers in
    open_clip's words (`embed_dim`, `vision_cfg`, `text_cfg` without the vocabulary). `vision_cfg` may
    hold `panderm = "base" | "large"`, `text_cfg` may name a Hugging Face text tower (`hf_model_name`: a
    folder or a hub id). `vision_init`: weights of the image tower alone. `start`: a pretrained image trunk
    (`timm:<name>`, `open_clip:<arch>/<tag>`, `package:<name>`), which decides architecture and normalisation.
    """

    init: str = ""
    start: str = ""
    vision_init: str = ""
    embed_dim: int = Field(default=512, gt=0)
    vision_cfg: dict[str, Any] = {}
    text_cfg: dict[str, Any] = {}
    vocab_size: int = Field(default=2000, gt=100)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _whole(self) -> ModelSection:
        if self.init:
            if self.vision_cfg or self.text_cfg or self.vision_init or self.start:
                raise ValueError(
                    "init names a whole model: leave out vision_cfg, text_cfg, vision_init, start"
                )
            return self
        if self.start:
            kind, _ = split_start(self.start)
            if "timm_model_name" in self.vision_cfg or "panderm" in self.vision_cfg:
                raise ValueError("start names the architecture: leave it out of vision_cfg")
            if self.vision_init and kind != "timm":
                raise ValueError(f"vision_init is the file of a timm trunk; {self.start} has one")
        for cfg, key in ((self.vision_cfg, "image_size"), (self.text_cfg, "context_length")):
            if not isinstance(cfg.get(key), int) or cfg[key] < 1:
                raise ValueError(f"{key} must be a whole number above 0")
        if self.vision_cfg.get("panderm", "base") not in ("base", "large"):
            raise ValueError("vision_cfg.panderm must be base or large")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self


class FinetuneSection(_Section):
    """How stage 2 trains the image tower of a start.

    `layer_decay`: the learning rate of a layer is that of the next one times this number (BEiT, arXiv 2106.08254).
    `frozen`: epochs in which the trunk stays as it is, so that the new layers do not spoil it. `keep_norm`: batch
    norm keeps its statistics. `sizes`: [[share of the stage, side in pixels], …], the input grows at these places up
    to the image size (for towers that take any size).
    """

    layer_decay: float = Field(default=1.0, gt=0, le=1)
    frozen: float = Field(default=0.0, ge=0)
    keep_norm: bool = False
    sizes: tuple[tuple[float, int], ...] = ()

    @model_validator(mode="after")
    def _ascending(self) -> FinetuneSection:
        places = [place for place, _ in self.sizes]
        if places and (places[0] != 0 or places != sorted(set(places)) or places[-1] >= 1):
            raise ValueError("sizes must begin at 0 and ascend below 1: [[0, 160], [0.5, 224]]")
        if any(side < 32 for _, side in self.sizes):
            raise ValueError("sizes below 32 pixels show nothing")
        return self


class AugmentSection(_Section):
    """Random views of a training image. `rotate` in radians; `scale`, `shift` and `crop` as shares (crop:
    of the area, cut from an image decoded larger); `colour` is a gain of each channel; `jitter_p` and
    `grayscale` are chances.
    """

    flip: bool = True
    rotate: float = 0.25
    scale: tuple[float, float] = (0.85, 1.05)
    shift: float = 0.05
    crop: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.0
    colour: float = 0.08
    jitter_p: float = Field(default=1.0, ge=0, le=1)
    grayscale: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _shares(self) -> AugmentSection:
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError("crop must be two shares, 0 < low <= high <= 1")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale must be two numbers, 0 < low <= high")
        return self


class MaskedSection(_Section):
    """Stage 1, masked latent modelling: the share of cells masked (in blocks), who is predicted, the
    depth of the latent regressor, and the weights of class token, visible and masked cells. `warmup`,
    `weight_decay` and `clip_norm` are those of the recipe where they are left out.
    """

    epochs: float = Field(default=0.0, ge=0)
    mask: float = Field(default=0.5, gt=0, lt=1)
    teacher: str = "ema"  # "ema" of the student, or any model name that load_model takes
    ema: float = Field(default=0.996, ge=0, lt=1)
    depth: int = Field(default=1, ge=1)
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lr: float = Field(default=5e-4, gt=0)
    warmup: int | None = Field(default=None, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _weighs(self) -> MaskedSection:
        if min(self.weights) < 0 or not sum(self.weights):
            raise ValueError("weights must be three numbers of 0 or more, not all 0")
        return self


class MakeSection(_Section):
    """MAKE's loss (make.py): weights of its two parts, the switches, and `subcaptions` a batch row."""

    lambda_m: float = Field(default=1.0, ge=0)
    lambda_s: float = Field(default=0.5, ge=0)
    subcaptions: int = Field(default=8, ge=0)
    denominator: Literal["view", "all"] = "view"
    alignment: Literal["text_to_image", "image_to_text"] = "text_to_image"
    weights: Literal["ratio", "softmax", "none"] = "ratio"
    mask_positives: bool = False
    sigma: float = 0.3


class KnowledgeSection(_Section):
    """What else may teach the text tower: a frozen knowledge encoder (`encoder`: a model name, the folder of a
    sentence encoder, or `package:all-minilm-l6-v2`; KEP), and soft targets from distances in an `ontology` file
    (O-MAKE; `soft` is β at the start).
    """

    encoder: str = ""
    weight: float = Field(default=0.4, ge=0)
    ontology: str = ""
    soft: float = Field(default=0.0, ge=0, le=1)


class ContrastiveSection(_Section):
    """Stage 2: a contrastive loss on captions (`clip` and `siglip` are open_clip's, `make` is make.py's), the
    aspect loss on the embedding, and the aspect loss on single cells (`local_weight`).

    `gather`: each process its own rows against all (`local`), or all rows everywhere (`full`; clip only).
    `captions`: generated from facts, or the text `columns` of the manifest. `balance`: 0, each image counts alike
    in the aspect losses; 1, the images with a word and those without it count alike in sum, for each word.
    """

    epochs: float = Field(default=10.0, ge=0)
    loss: Literal["clip", "siglip", "make"] = "clip"
    gather: Literal["local", "full"] = "local"
    captions: Literal["facts", "columns"] = "facts"
    make: MakeSection = MakeSection()
    knowledge: KnowledgeSection = KnowledgeSection()
    clip_weight: float = Field(default=0.5, ge=0)
    aspect_weight: float = Field(default=1.0, ge=0)
    local_weight: float = Field(default=0.0, ge=0)
    balance: float = Field(default=0.0, ge=0, le=1)
    keep: float = Field(default=0.7, ge=0, le=1)
    deny: float = Field(default=0.15, ge=0, le=1)
    lr: float = Field(default=1e-3, gt=0)
    columns: tuple[str, ...] = ()  # further manifest columns whose values captions may contain

    @model_validator(mode="after")
    def _fits(self) -> ContrastiveSection:
        if self.knowledge.soft and (self.loss != "make" or self.make.denominator != "view"):
            raise ValueError('knowledge.soft needs loss = "make" with make.denominator = "view"')
        if self.knowledge.soft and not self.knowledge.ontology:
            raise ValueError("knowledge.soft needs knowledge.ontology, a file")
        if self.gather == "full" and self.loss != "clip":
            raise ValueError('gather = "full" is there for loss = "clip" alone')
        captions = self.clip_weight and (
            self.loss != "make" or self.make.lambda_m or self.make.lambda_s
        )
        if not (captions or self.aspect_weight or self.local_weight):
            raise ValueError("all weights are 0: nothing would be learned")
        return self


class TrainingRecipe(_Section):
    """The whole recipe. `batch` images a step over all processes, in `accumulate` parts of which each
    process computes one at a time (all of the batch stay negatives of each other); `warmup` steps;
    `weight_ema` of the weights that are kept (0: the last ones are). `precision` bf16 needs a GPU.
    `checkpoint_every` steps (0: at each epoch's end). `data`: images decoded once into memory, or
    streamed; auto streams what would take more than 4 GiB.
    """

    format_version: Literal[1] = 1
    name: str
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    batch: int = Field(default=64, gt=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["float32", "bf16"] = "float32"
    grad_checkpointing: bool = False
    checkpoint_every: int = Field(default=0, ge=0)
    data: Literal["auto", "memory", "stream"] = "auto"
    optimizer: Literal["adamw", "muon"] = "adamw"
    eps: float = Field(default=1e-6, gt=0)
    warmup: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    weight_ema: float = Field(default=0.998, ge=0, lt=1)
    model: ModelSection
    augment: AugmentSection = AugmentSection()
    masked: MaskedSection = MaskedSection()
    contrastive: ContrastiveSection = ContrastiveSection()
    finetune: FinetuneSection = FinetuneSection()

    @model_validator(mode="after")
    def _parts(self) -> TrainingRecipe:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} cannot be cut into {self.accumulate} equal parts")
        if not (self.masked.epochs or self.contrastive.epochs):
            raise ValueError(
                "masked.epochs and contrastive.epochs are both 0: nothing would be done"
            )
        sizes = self.finetune.sizes
        if sizes and (self.model.init or sizes[-1][1] != self.image_size):
            raise ValueError("the last of finetune.sizes must be vision_cfg.image_size")
        if self.masked.epochs and self.model.vision_cfg.get("patch_dropout"):
            raise ValueError("stage 1 takes cells out itself: leave out vision_cfg.patch_dropout")
        return self

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels; known once the model is, where it has `init`."""
        return int(self.model.vision_cfg["image_size"])

    def side_at(self, progress: float) -> int:
        """Return the side of the input at a place of stage 2, 0 … 1."""
        sides = [side for place, side in self.finetune.sizes if place <= progress]
        return sides[-1] if sides else self.image_size

    @property
    def decode_size(self) -> int:
        """Side at which images are decoded: larger where crops will be cut from them, so that the
        smallest crop has the detail of an input.
        """
        return math.ceil(self.image_size / math.sqrt(self.augment.crop[0]))


def load_recipe(name: str | Path, overrides: list[str] | None = None) -> TrainingRecipe:
    """Read a bundled recipe by name, or a TOML file, with `key=value` overrides (values in TOML).

    UserInputError names the file, the key and the fix of each fault.
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
        return TrainingRecipe.model_validate(raw)
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
            # A key of another section is named with its section.
            sections = [
                f"{part}.{near}" for part in _SECTIONS if near in _SECTIONS[part].model_fields
            ]
            hint = (
                f"'{near}'" if near != fault["loc"][-1] or not sections else " or ".join(sections)
            )
            lines.append(f"unknown key '{where}'" + (f": did you mean {hint}?" if near else ""))
        else:
            got = "" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{where or 'recipe'}: {message}{got}")
    return lines


_SECTIONS = {
    "model": ModelSection,
    "augment": AugmentSection,
    "masked": MaskedSection,
    "contrastive": ContrastiveSection,
    "contrastive.make": MakeSection,
    "contrastive.knowledge": KnowledgeSection,
}


def _all_fields() -> list[str]:
    return [name for part in (TrainingRecipe, *_SECTIONS.values()) for name in part.model_fields]
