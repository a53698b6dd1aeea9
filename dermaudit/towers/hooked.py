"""HookedTower: an open_clip model with hook points, whose output stays bit for bit the same (that of a convolutional
tower to the last digits: its batch norms are folded, folded_norms.py).

The points do not replace modules but tap them with forward hooks (taps.py), so that the state
dict of `tower.model` keeps its keys. Always in eval mode; parameters are frozen, gradients still
flow to the input. Names and signatures are those of transformer-lens and sae-lens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from dermaudit.errors import UserInputError, unknown

from .folded_norms import fold_norms, unfold_norms
from .loading.cards import ModelCard, read_card, read_training_hashes
from .loading.fingerprint import tower_fingerprint
from .open_clip_model import OpenClipModel, as_open_clip
from .preprocess import ImageInput, Preprocess
from .splice import splice_saes
from .taps import Tap, register, text_taps, visual_taps

#: prompts encoded at once: 5,000 prompts of a ViT-B text tower in one batch would take gigabytes.
_TEXT_BATCH = 256


class HookedTower(HookedRootModule):
    """An image tower and a text tower under one set of hook points.

    `model`: an open_clip model (CLIP, CustomTextCLIP, or one with PanDerm's tower). `tokenizer`:
    list of strings -> (n, context_length) int64. `preprocess_cfg`: open_clip's, complete. `folder`:
    where the card and the list of training images are, if anywhere.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: Callable[[list[str]], Tensor] | None,
        preprocess_cfg: dict[str, Any],
        name: str = "unnamed",
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.model = as_open_clip(model.eval().requires_grad_(False))
        self.name = name
        self.folder = folder
        self.tokenizer = tokenizer
        self.preprocess = Preprocess(preprocess_cfg)
        self._visual_taps = visual_taps(self.model.visual)
        self._folded: list[nn.Module] = []
        if (
            self.family == "timm convolutional"
        ):  # three times as fast on a CPU, with another rounding
            visual = cast(nn.Module, self.model.visual)
            self._folded = fold_norms(visual, self._blank_images().to(self.dtype))
            visual.to(memory_format=torch.channels_last)
        self._text_taps = text_taps(model)
        self._points: dict[str, HookPoint] = {}
        self._handles: list[Any] = []
        self._counts: Counter[str] | None = None
        for tap in (*self._visual_taps.taps, *self._text_taps.taps):
            self._attach(tap)
        for site in ("visual.embedding", "visual.pooled", "text.embedding", "text.pooled"):
            self._add_point(site)
        self.setup()

    # ---- what the model is -------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the images that the model takes: that of its first kernel."""
        parameters = list(self.model.visual.parameters())
        kernels = [
            p for p in parameters if p.ndim == 4
        ]  # open_clip's fp16 keeps other weights fp32
        return (kernels or parameters)[0].dtype

    @property
    def preprocess_config(self) -> dict[str, Any]:
        """open_clip's preprocessing configuration, JSON-able."""
        return self.preprocess.config

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.preprocess.size[0]

    @property
    def family(self) -> str:
        """Kind of the image tower."""
        return self._visual_taps.family

    @property
    def n_blocks(self) -> int:
        """Number of blocks of the image tower."""
        return self._visual_taps.n_blocks

    @property
    def n_prefix_tokens(self) -> int:
        """Tokens before the patches (the class token and registers)."""
        return self._visual_taps.n_prefix_tokens

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches: token n_prefix_tokens + r * columns + c is patch (r, c)."""
        if self._visual_taps.grid is None:
            raise UserInputError(f"the image tower of '{self.name}' has no patches")
        return self._visual_taps.grid

    @property
    def d_block(self) -> int:
        """Width of the residual stream of the image tower."""
        if self._visual_taps.d_block is None:
            raise UserInputError(f"the image tower of '{self.name}' has no blocks")
        return self._visual_taps.d_block

    @cached_property
    def d_pooled(self) -> int:
        """Width of the joint embedding."""
        with torch.no_grad():
            return self.model.encode_image(self._blank_images(), normalize=False).shape[-1]

    @property
    def logit_scale(self) -> float:
        """The learned logit scale: 1 / temperature."""
        return float(self.model.logit_scale.detach().exp())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights and preprocessing (fingerprint.py); computed once."""
        return tower_fingerprint(self.model.state_dict(), self.preprocess_config)

    @cached_property
    def card(self) -> ModelCard:
        """The model card of the checkpoint; empty if there is none."""
        return read_card(self.folder)

    def training_hashes(self) -> frozenset[str]:
        """Return the first 16 hex digits of the sha256 of every training image; empty if not listed."""
        return read_training_hashes(self.folder)

    @property
    def sites(self) -> list[str]:
        """The names of the hook points, in the order of the taps."""
        return list(self._points)

    def site_width(self, site: str) -> int:
        """Return the last dimension of the activation at an image site."""
        self.check_site(site)
        if site in self._visual_taps.stages:
            return self._visual_taps.stages[site][0]
        return self.d_pooled if site in ("visual.pooled", "visual.embedding") else self.d_block

    def site_grid(self, site: str) -> tuple[int, int]:
        """Rows and columns of the cells at an image site (a convolutional stage has its own)."""
        self.check_site(site)
        if site in self._visual_taps.stages:
            step = self._visual_taps.stages[site][1]
            height, width = self.preprocess.size
            return math.ceil(height / step), math.ceil(width / step)
        return self.patch_grid

    def check_site(self, site: str) -> None:
        """Raise UserInputError, with the nearest site, if there is no such hook point."""
        if site not in self._points:
            raise unknown("site", site, self._points)

    # ---- encoding ----------------------------------------------------------------------------

    def encode_image(
        self, images: ImageInput | Sequence[ImageInput], normalize: bool = True
    ) -> Tensor:
        """Embed images: unit vectors (n, d_pooled) if `normalize`; (d_pooled,) for one image.

        Floating-point tensors (n, 3, s, s) or (3, s, s) hold prepared images and are converted to
        the model's dtype; everything else goes through `preprocess` first. Raises UserInputError for
        images of another shape or with values that are not finite.
        """
        pixels = self.preprocess.unless_prepared(images)
        if pixels.ndim == 3:
            return self.encode_image(pixels[None], normalize)[0]
        pixels = pixels.to(self.device, self.dtype)
        self._check_images(pixels)
        if not len(pixels):
            return pixels.new_empty(0, self.d_pooled)
        features = self.model.encode_image(pixels, normalize=False)
        features = self._fire("visual.embedding", features)
        if not normalize:
            return features
        return self._fire("visual.pooled", F.normalize(features, dim=-1))

    def _check_images(self, images: Tensor) -> None:
        height, width = self.preprocess.size
        # A convolutional trunk takes any size: its taps know no grid of patches.
        sizes = (height, width) if self._visual_taps.grid else images.shape[2:]
        if images.ndim != 4 or images.shape[1:] != (3, *sizes):
            raise UserInputError(
                f"the images have the shape {tuple(images.shape)}; the model '{self.name}' takes "
                f"(n, 3, {height}, {width})",
                "prepare them: tower.preprocess(images)",
            )
        finite = torch.isfinite(images).flatten(1).all(1)
        if not finite.all():
            listed = ", ".join(str(i) for i in (~finite).nonzero()[:8, 0].tolist())
            raise UserInputError(
                f"prepared images must be finite; {int((~finite).sum())} of {len(images)} hold NaN "
                f"or infinity (the first, counted from 0: {listed})"
            )

    def encode_text(self, texts: list[str] | Tensor, normalize: bool = True) -> Tensor:
        """Embed texts, strings or token ids (n, context): (n, d_pooled), unit vectors if `normalize`."""
        if isinstance(texts, Tensor):
            return self._encode_tokens(texts, normalize)
        tokens = self.tokenize(texts)
        if not len(tokens):
            return torch.empty(0, self.d_pooled, device=self.device)
        parts = [self._encode_tokens(part, normalize) for part in tokens.split(_TEXT_BATCH)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _encode_tokens(self, tokens: Tensor, normalize: bool) -> Tensor:
        features = self.model.encode_text(tokens.to(self.device), normalize=False)
        features = self._fire("text.embedding", features)
        if not normalize:
            return features
        return self._fire("text.pooled", F.normalize(features, dim=-1))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(n, context_length) int64 ids."""
        if self.tokenizer is None:
            raise UserInputError(f"the model '{self.name}' has no tokeniser")
        if isinstance(texts, str):
            texts = [texts]
        if not len(texts):
            return torch.empty(0, self.model.context_length, dtype=torch.int64)
        return self.tokenizer(list(texts))

    def forward(
        self,
        images: Tensor | None = None,
        texts: list[str] | Tensor | None = None,
        normalize: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Image embeddings, text embeddings, or both as a pair. What `run_with_cache` calls."""
        if images is None:
            if texts is None:
                raise UserInputError("give images, texts, or both")
            return self.encode_text(texts, normalize)
        if texts is None:
            return self.encode_image(images, normalize)
        return self.encode_image(images, normalize), self.encode_text(texts, normalize)

    def train(self, mode: bool = True) -> HookedTower:
        """Stay in eval mode: patch dropout would change the tokens that the hooks see."""
        return super().train(False)

    # ---- hook points -------------------------------------------------------------------------

    def setup(self) -> None:
        """Name the hook points; unlike transformer-lens this leaves all other modules untouched."""
        self.hook_dict = dict(self._points)
        self.mod_dict = dict(self._points)
        for site, point in self._points.items():
            point.name = site

    @contextmanager
    def hooks(
        self, fwd_hooks: Any = (), bwd_hooks: Any = (), *args: Any, **options: Any
    ) -> Iterator[Any]:
        """transformer-lens's `hooks`; UserInputError with the nearest name for an unknown site."""
        for name, _ in (*fwd_hooks, *bwd_hooks):
            self._check_names(name)
        with super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **options) as hooked:
            yield hooked

    def get_caching_hooks(self, names_filter: Any = None, *args: Any, **options: Any) -> Any:
        """transformer-lens's; a name that does not exist is an error and not an empty cache."""
        self._check_names(names_filter)
        return super().get_caching_hooks(names_filter, *args, **options)

    def _check_names(self, names: Any) -> None:
        if names is None or callable(names):
            return
        for name in [names] if isinstance(names, str) else names:
            if name not in self.hook_dict:
                raise unknown("site", name, self.hook_dict)

    def _add_point(self, site: str) -> None:
        parent: nn.Module = self
        *path, leaf = site.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        point = HookPoint()
        parent.add_module(leaf, point)
        self._points[site] = point

    def _attach(self, tap: Tap) -> None:
        self._add_point(tap.site)
        self._handles.append(register(tap, partial(self._fire, tap.site)))

    def _fire(self, site: str, value: Tensor) -> Tensor:
        if self._counts is not None:
            self._counts[site] += 1
        return self._points[site](value)

    @torch.no_grad()
    def assert_taps_fire(self) -> None:
        """Check with a blank image and an empty prompt that every tap fires exactly once.

        A tap that does not fire would cache nothing; one that fires twice would keep only the second
        value. Raises RuntimeError with the taps that fired never or more than once.
        """
        self._counts = Counter()
        try:
            self.encode_image(self._blank_images())
            if any(site.startswith("text.") for site in self._points):
                length = self.model.context_length
                self.encode_text(torch.ones(1, length, dtype=torch.int64))
            wrong = {s: self._counts[s] for s in self._points if self._counts[s] != 1}
        finally:
            self._counts = None
        if wrong:
            raise RuntimeError(f"taps of '{self.name}' that did not fire exactly once: {wrong}")

    def _blank_images(self) -> Tensor:
        return torch.zeros(1, 3, *self.preprocess.size, device=self.device)

    # ---- sparse autoencoders in the path -----------------------------------------------------

    @contextmanager
    def saes(
        self, saes: Sequence[Any], *, use_error_term: bool = True, positions: str = "all"
    ) -> Iterator[HookedTower]:
        """Within the block each sae-lens SAE runs at its `cfg.metadata.hook_name`; see splice.py."""
        with splice_saes(self, saes, use_error_term, positions):
            yield self

    def run_with_saes(
        self,
        *args: Any,
        saes: Sequence[Any],
        use_error_term: bool = True,
        positions: str = "all",
        **kwargs: Any,
    ) -> Any:
        """Run one forward pass with the SAEs in it; the error term is kept by default."""
        with self.saes(saes, use_error_term=use_error_term, positions=positions):
            return self(*args, **kwargs)

    # ---- copies ------------------------------------------------------------------------------

    def release(self) -> OpenClipModel:
        """Return the open_clip model without its taps, to be trained or copied; the tower ends here."""
        for handle in self._handles:
            handle.remove()
        unfold_norms(self._folded)
        return self.model

    def __deepcopy__(self, memo: dict) -> NoReturn:
        _refuse_copy()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        _refuse_copy()


def _refuse_copy() -> NoReturn:
    # A copy's taps would still call the hook points of the original: its cache would stay empty
    # without a word.
    raise TypeError(
        "a HookedTower cannot be copied or pickled: the taps of the copy would feed the original; "
        "copy tower.model and wrap it again, or call load_model(tower.name)"
    )
