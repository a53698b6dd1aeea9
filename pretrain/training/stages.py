"""The two stages: what is computed for a part of a batch, and the losses over the whole batch.

`encode` takes images and texts through the towers, row by row; `losses` compares rows of the whole batch.
The cut between the two lets a batch be computed in parts and by several processes and keep all its negatives
(loop.py). `source` may be set later than the rest, before training: images are read last.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermaudit.distributed import gather
from dermaudit.errors import UserInputError
from dermaudit.towers.open_clip_model import OpenClipModel

from ..data.augment import apply_views
from ..data.facts import Fact
from ..data.source import ImageSource
from ..data.text_views import TextSource
from ..losses.contrastive import AspectLoss, aspect_sentences, caption_loss, fact_weights
from ..losses.make import MakeSwitches, info_nce, make_loss, pool_patches, soft_targets
from ..losses.masked import MaskedLatent
from ..losses.masking import block_masks
from ..recipe import TrainingRecipe
from ..tokens import TokenReader, encode_texts
from .finetune import TrunkState, layer_rates


@dataclass(frozen=True)
class BatchPart:
    """Some rows of a batch: `rows` of the data, `images` uint8 (b, 3, s, s), `views` drawn for them,
    `seeds` of each row, `step_seed` of the whole batch, `progress` of the stage in 0 … 1.
    """

    rows: np.ndarray
    images: Tensor
    views: dict[str, Tensor]
    seeds: list[int]
    step_seed: int
    progress: float


Encoded = dict[str, Tensor]
Losses = dict[str, Tensor]


class TrainingStage(Protocol):
    """One stage of a training; `modules` is saved, `trained` is optimised, `source` is set before training.

    `separable`: the loss of a batch is the mean of the losses of its parts. `constant`: names of the
    encoded tensors that take no gradient. `rates`: factors of the learning rate, by id of the parameter.
    """

    name: str
    separable: bool
    constant: frozenset[str]
    source: ImageSource
    modules: dict[str, nn.Module]
    trained: list[nn.Module]
    epochs: float
    lr: float
    rates: dict[int, float]
    warmup: int
    weight_decay: float
    clip_norm: float

    def encode(self, part: BatchPart) -> Encoded:
        """Take a part of a batch through the towers, row by row."""
        ...

    def losses(self, encoded: Encoded, part: BatchPart) -> Losses:
        """Return the losses of the encoded rows, their sum under `loss`."""
        ...

    def after(self) -> None:
        """Update what is not optimised, after a step."""


class MaskedStage:
    """Stage 1: `losses` is the mean over images, so that the parts of a batch are independent."""

    name = "masked"
    separable = True
    constant: frozenset[str] = frozenset()
    source: ImageSource

    def __init__(
        self,
        recipe: TrainingRecipe,
        model: OpenClipModel,
        objective: MaskedLatent,
        source: ImageSource | None = None,
    ) -> None:
        part = recipe.masked
        if source is not None:
            self.source = source
        self.warmup = recipe.warmup if part.warmup is None else part.warmup
        self.clip_norm = recipe.clip_norm if part.clip_norm is None else part.clip_norm
        self.weight_decay = recipe.weight_decay if part.weight_decay is None else part.weight_decay
        self.epochs, self.lr, self.ema, self.mask = part.epochs, part.lr, part.ema, part.mask
        self.rates: dict[int, float] = {}
        self.recipe, self.model, self.objective = recipe, model, objective
        self.normal = make_normaliser(recipe, model.logit_scale.dtype)
        self.modules: dict[str, nn.Module] = {"model": model, "objective": objective}
        self.trained: list[nn.Module] = [model.visual, objective]

    def encode(self, part: BatchPart) -> Encoded:
        """See TrainingStage."""
        x = self.normal(_viewed(self.recipe, part, self.recipe.image_size))
        mask = block_masks(part.seeds, self.objective.reader.grid, self.mask).to(x.device)
        return {"distance": self.objective(self.model.visual, x, mask)}

    def losses(self, encoded: Encoded, part: BatchPart) -> Losses:
        """See TrainingStage."""
        return {"loss": encoded["distance"].mean()}

    def after(self) -> None:
        """See TrainingStage."""
        self.objective.update(self.model.visual, self.ema)


class ContrastiveStage:
    """Stage 2: a caption loss (CLIP, SigLIP or MAKE), the aspect losses, and what else may teach.

    `tokenize`: list of str -> ids. `knowledge`: frozen, list of str -> unit rows (KEP).
    `similarity`: (diseases, diseases), with `diseases` (n,) indices into it, -1 where unknown (O-MAKE).
    Texts, facts and diseases count rows as `source` does.
    """

    name = "contrastive"
    separable = False
    source: ImageSource
    constant: frozenset[str] = frozenset({"mask", "known", "has_raw"})

    def __init__(
        self,
        recipe: TrainingRecipe,
        model: OpenClipModel,
        tokenize: Callable[[list[str]], Tensor],
        texts: TextSource,
        facts: list[Fact],
        source: ImageSource | None = None,
        *,
        knowledge: Callable[[list[str]], Tensor] | None = None,
        similarity: Tensor | None = None,
        diseases: np.ndarray | None = None,
    ) -> None:
        part = self.part = recipe.contrastive
        if source is not None:
            self.source = source
        self.epochs, self.lr = part.epochs, part.lr
        self.rates = layer_rates(model, recipe.finetune.layer_decay)
        self.trunk = TrunkState(model, recipe.finetune, part.epochs)
        self.warmup, self.clip_norm = recipe.warmup, recipe.clip_norm
        self.weight_decay = recipe.weight_decay
        self.recipe, self.model, self.tokenize, self.texts = recipe, model, tokenize, texts
        self.facts, self.knowledge = facts, knowledge
        self.similarity, self.diseases = similarity, diseases
        self.normal = make_normaliser(recipe, model.logit_scale.dtype)
        self.aspect, self.local = AspectLoss(), AspectLoss()
        self.modules: dict[str, nn.Module] = {
            "model": model,
            "aspect": self.aspect,
            "local": self.local,
        }
        self.trained: list[nn.Module] = list(self.modules.values())
        if facts:
            self.truth = torch.from_numpy(np.stack([fact.values for fact in facts], 1))
            self.weights = fact_weights(self.truth, part.balance)
        elif part.aspect_weight or part.local_weight:
            raise UserInputError(
                "the aspect losses need columns of truth (artifact:, concept:, label), there are none",
                "--set contrastive.aspect_weight=0 --set contrastive.local_weight=0",
            )
        make = part.make
        self.switches = MakeSwitches(
            make.denominator, make.alignment, make.weights, make.mask_positives, make.sigma
        )
        self.needs_cells = bool(part.local_weight) or (part.loss == "make" and make.lambda_s > 0)
        self.reader = TokenReader(model.visual, recipe.image_size) if self.needs_cells else None

    # ---- rows through the towers

    def encode(self, part: BatchPart) -> Encoded:
        """See TrainingStage."""
        self.trunk.set_to(part.progress)
        x = self.normal(_viewed(self.recipe, part, self.recipe.side_at(part.progress)))
        visual = self.model.visual
        found: Encoded = {}
        cells = None
        if self.reader is None:
            found["images"] = _unit(self.model.encode_image(x))
        else:
            tokens = self.reader.read(visual, x)
            found["images"] = _unit(tokens.embedding)
            cells = _unit(self.reader.project(visual, tokens.cells))
            if self.part.local_weight:
                found["cells"] = cells
        rngs = [random.Random(seed) for seed in part.seeds]
        if self.part.loss == "make":
            found |= self._views(part, rngs)
            if cells is not None and self.part.make.lambda_s:
                has_raw = found["mask"][:, 0] > 0
                raw = _full(found["texts"][:, 0])
                with torch.autocast(x.device.type, enabled=False):
                    found["pooled"] = pool_patches(cells, raw, has_raw, self.switches)
        else:
            captions = [self.texts.raw(int(r), g) for r, g in zip(part.rows, rngs, strict=True)]
            found["texts"] = self._encode(captions)
            found |= self._known(captions)
        return {name: _full(value) for name, value in found.items()}

    def _views(self, part: BatchPart, rngs: list[random.Random]) -> Encoded:
        k = self.part.make.subcaptions
        views = [self.texts.views(int(r), g, k) for r, g in zip(part.rows, rngs, strict=True)]
        mask = torch.tensor([[text is not None for text in row] for row in views])
        texts = self._encode([text for row in views for text in row if text is not None])
        whole = texts.new_zeros(*mask.shape, texts.shape[-1])
        mask = mask.to(texts.device)
        whole[mask] = texts
        return {
            "texts": whole,
            "mask": mask.to(texts.dtype),
            **self._known([row[0] for row in views]),
        }

    def _known(self, raw: Sequence[str | None]) -> Encoded:
        if self.knowledge is None:
            return {}
        with torch.no_grad():
            known = self.knowledge([text or "" for text in raw])
        has = torch.tensor([float(bool(text)) for text in raw], device=known.device)
        return {"known": known, "has_raw": has}

    def _encode(self, texts: list[str]) -> Tensor:
        """Return unit rows; a text that occurs twice is encoded once."""
        unique = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(unique)}
        device = self.model.logit_scale.device
        rows = encode_texts(self.model, self.tokenize(unique).to(device))
        return rows[torch.tensor([place[text] for text in texts], device=device)]

    # ---- losses over the whole batch

    def losses(self, encoded: Encoded, part: BatchPart) -> Losses:
        """See TrainingStage."""
        parts = self.part
        found: Losses = {}
        scale = self.model.logit_scale.exp()
        images = encoded["images"]
        if parts.clip_weight:
            if parts.loss == "make":
                found |= self._make(encoded, part, scale)
            else:
                found["clip"] = parts.clip_weight * caption_loss(
                    parts.loss, images, encoded["texts"], self.model, parts.gather
                )
        if "known" in encoded:
            raw = encoded["texts"] if encoded["texts"].ndim == 2 else encoded["texts"][:, 0]
            found["knowledge"] = parts.knowledge.weight * info_nce(
                raw, encoded["known"].to(raw), encoded["has_raw"] > 0, scale
            )
        if self.facts and (parts.aspect_weight or parts.local_weight):
            present, absent = aspect_sentences(self.facts, random.Random(part.step_seed))
            # Apart from the captions: these are short, and would be padded to the longest caption.
            sides = self._encode([*present, *absent]).to(images.dtype).split(len(present))
            truth = (self.truth[torch.from_numpy(part.rows)].to(images), self.weights.to(images))
            if parts.aspect_weight:
                found["aspect"] = parts.aspect_weight * self.aspect(images, *sides, *truth)
            if parts.local_weight:
                found["local"] = parts.local_weight * self.local(encoded["cells"], *sides, *truth)
        return {"loss": sum(found.values(), scale.new_zeros(())), **found}

    def _make(self, encoded: Encoded, part: BatchPart, scale: Tensor) -> Losses:
        weights = self.part.make
        pooled = encoded.get("pooled")
        contrastive, alignment = make_loss(
            encoded["images"],
            encoded["texts"],
            encoded["mask"] > 0,
            pooled,
            scale,
            self.switches,
            self._soft(part, scale),
        )
        found = {"make": self.part.clip_weight * weights.lambda_m * contrastive}
        if pooled is not None:
            found["alignment"] = self.part.clip_weight * weights.lambda_s * alignment
        return found

    def _soft(self, part: BatchPart, scale: Tensor) -> Tensor | None:
        """Return soft targets, whose weight falls to zero along half a cosine during the stage."""
        beta = self.part.knowledge.soft * 0.5 * (1 + math.cos(math.pi * part.progress))
        if not beta or self.similarity is None or self.diseases is None:
            return None
        own = torch.from_numpy(self.diseases[part.rows]).to(scale.device)
        everyone = gather(own.float()[:, None])[:, 0].long()
        known = (own >= 0)[:, None] & (everyone >= 0)[None]
        near = self.similarity.to(scale)[own.clamp(min=0)][:, everyone.clamp(min=0)]
        return soft_targets(near.masked_fill(~known, torch.nan), beta)

    def after(self) -> None:
        """See TrainingStage."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))


def _viewed(recipe: TrainingRecipe, part: BatchPart, side: int) -> Tensor:
    return apply_views(part.images, recipe.augment, part.views, side)


def _full(x: Tensor) -> Tensor:
    """Losses compare rows in float32 at least."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_full(x), dim=-1)


def make_normaliser(
    recipe: TrainingRecipe, dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], Tensor]:
    """Pixels in 0 … 255 -> what the towers take."""
    mean, std = ([255 * v for v in values] for values in (recipe.model.mean, recipe.model.std))

    def normal(x: Tensor) -> Tensor:
        return ((x - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)).to(dtype)

    return normal
