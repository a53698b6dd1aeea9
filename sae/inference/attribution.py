"""Attribution maps: which pixels of an image a number of the model depends on, computed by captum.

`attribution_map` explains any differentiable score; `class_logit` and `latent_preactivation` make the
two scores that an audit asks about: the prediction, and how strongly a latent responds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from dermaudit.errors import UserInputError, unknown
from dermaudit.heads import LinearHead
from dermaudit.towers.splice import replace_activation

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower, ZeroShot

    from .model import ThresholdSAE, TopKSAE
    from .suppressor import LatentSuppressor

Score = Callable[[Tensor], Tensor]
Method = Literal["integrated_gradients", "occlusion"]
METHODS = ("integrated_gradients", "occlusion")

_BATCH = 16


@dataclass(frozen=True)
class AttributionMap:
    """`values` (height, width) float32, signed: positive where the image raises the score above that of
    the baseline. `score` and `baseline_score` are the numbers that the map connects.
    """

    values: np.ndarray
    score: float
    baseline_score: float
    method: Method

    @property
    def gap(self) -> float:
        """Sum of the map minus (score − baseline score): 0 for exact integrated gradients."""
        return float(self.values.sum(dtype=np.float64)) - (self.score - self.baseline_score)


def attribution_map(
    score: Score,
    image: Tensor,
    method: Method = "integrated_gradients",
    *,
    baseline: Tensor | None = None,
    n_steps: int = 50,
    window: int | None = None,
    stride: int | None = None,
) -> AttributionMap:
    """Explain `score`, a function of prepared images (n, 3, h, w) -> (n,), for one image (3, h, w).

    `integrated_gradients` (arXiv 1703.01365): the gradient averaged over `n_steps` points of the
    straight line from `baseline` to the image, times their difference, summed over channels. The sum of
    the map is the difference of the two scores (completeness), up to the error of `gap`.
    `occlusion` (arXiv 1311.2901): by how much the score falls when a square of `window` pixels becomes
    the baseline, averaged over the squares that cover a pixel; `window` is an eighth of the shorter side
    and `stride` half of the window by default. It needs no gradient.

    `baseline` (3, h, w) stands for "nothing is there". By default it is the image's own mean colour:
    black would look like the dark corner of a dermatoscope, white like a reflection, and both are
    artifacts that are audited. Raises UserInputError for arguments that do not fit.
    """
    if method not in METHODS:
        raise unknown("attribution method", method, METHODS)
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise UserInputError(
            f"an attribution map needs one prepared image (3, h, w), not {image.dtype} "
            f"{tuple(image.shape)}",
            "prepare it: tower.preprocess(image)",
        )
    x = image.detach()[None]
    if baseline is None:
        baseline = image.mean((1, 2), keepdim=True).expand_as(image)
    if baseline.shape != image.shape:
        raise UserInputError(
            f"the baseline has the shape {tuple(baseline.shape)}, the image {tuple(image.shape)}"
        )
    reference = baseline.detach().to(x)[None]
    if method == "occlusion":
        values = _occlusion(score, x, reference, window, stride)
    else:
        values = _integrated_gradients(score, x, reference, n_steps)
    with torch.no_grad():
        at_image, at_baseline = score(torch.cat([x, reference])).tolist()
    return AttributionMap(values.float().cpu().numpy(), at_image, at_baseline, method)


def _integrated_gradients(score: Score, x: Tensor, reference: Tensor, n_steps: int) -> Tensor:
    from captum.attr import IntegratedGradients

    if n_steps < 1:
        raise UserInputError(f"n_steps is {n_steps}; at least 1 is needed")
    values = IntegratedGradients(score).attribute(
        x, baselines=reference, n_steps=n_steps, internal_batch_size=_BATCH
    )
    return values.detach()[0].sum(0)


@torch.no_grad()
def _occlusion(
    score: Score, x: Tensor, reference: Tensor, window: int | None, stride: int | None
) -> Tensor:
    from captum.attr import Occlusion

    side = min(x.shape[2:])
    window = window or max(side // 8, 1)
    stride = stride or max(window // 2, 1)
    if not 1 <= stride <= window <= side:
        raise UserInputError(
            f"a window of {window} and a stride of {stride} pixels do not fit an image of {side} pixels",
            "choose 1 ≤ stride ≤ window ≤ side",
        )
    values = Occlusion(score).attribute(
        x,
        sliding_window_shapes=(3, window, window),
        strides=(3, stride, stride),
        baselines=reference,
        perturbations_per_eval=_BATCH,
    )
    return values[0, 0]  # a window covers all channels: they are equal


def class_logit(
    tower: HookedTower,
    head: LinearHead | ZeroShot,
    label: str,
    suppressor: LatentSuppressor | None = None,
) -> Score:
    """Return the score of a class: its logit, optionally with latents of the embedding suppressed."""
    if label not in head.classes:
        raise unknown("class", label, head.classes)
    column = head.classes.index(label)
    logits = head.tensor_logits if isinstance(head, LinearHead) else head.logits

    def score(images: Tensor) -> Tensor:
        x = tower.encode_image(images)
        return logits(x if suppressor is None else suppressor(x))[:, column]

    return score


def latent_preactivation(
    tower: HookedTower, sae: ThresholdSAE | TopKSAE, latent: int, positions: str = "patch"
) -> Score:
    """Return the score of a latent: its pre-activation at the SAE's site, the maximum over `positions`.

    Where the latent fires, this is its activation. The activation itself jumps at the threshold, and
    integrated gradients of a function with a jump do not add up to its difference.
    """
    if not 0 <= latent < sae.d_sae:
        raise UserInputError(f"latent {latent} is not within this SAE's 0 … {sae.d_sae - 1}")

    def score(images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with replace_activation(
            tower, sae.hook_name, seen.append, positions=positions, d_in=sae.d_in
        ):
            tower.encode_image(images)
        x = seen[0].to(sae.W_enc)  # its device and type
        pre = (x - sae.b_dec) @ sae.W_enc[:, latent] + sae.b_enc[latent]
        return pre if pre.ndim == 1 else pre.amax(1)

    return score
