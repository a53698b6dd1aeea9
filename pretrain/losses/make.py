"""MAKE: multi-aspect contrastive learning and fine-grained alignment (arXiv 2505.09372).

Each image i has N text views (raw caption, ontology caption, visual-concept caption, K sub-captions), of
which a mask M[i, k] says which are there; one that is not is in no numerator and no denominator. With
unit embeddings v_i of images, t_ik of views, p_in of patches, and the learned scale s = 1/τ:

- **Contrastive over views** (MKCL): for every view (i, k) cross-entropy both ways, averaged.
- **Sub-captions with patches** (SLRA): patches of image i, weighed by their similarity to its raw caption,
  are pooled to e_i, which sub-captions are contrasted with.
- **Diagnosis weights**: a sub-caption counts by how near it is to the image's ontology caption.

The published formula (as in the report of DermFM-Zero, arXiv 2602.10624) and the published code differ in
three places; each is a switch, and the formula is the default:

- `denominator`. Formula, "view": all images, the same view. Code, "all": image → text over all texts of the
  batch, text → image over all images.
- `alignment`. Formula, "text_to_image": each sub-caption against the pooled patches of all images, patch
  weights z / Σz. Code, "image_to_text": each image's pooled patches against all texts, weights cut at `sigma`
  and of unit length.
- `weights`. Formula, "ratio": t_id · t_ij over its maximum among the image's sub-captions, both ways. Code,
  "softmax": the softmax of the same before the ratio, and text → image is not weighted.

`weights="none"` turns them off (DermFM-Zero-Open). The code's index errors are not offered. Sums are divided
by the sum of the weights, in the formula too, so that learning rates do not depend on the number of views.
Under several processes each computes its own rows against the gathered batch (distributed.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dermaudit.distributed import gather, n_processes, rank, total

RAW, ONTOLOGY, CONCEPT, N_FULL = 0, 1, 2, 3
_EPS = 1e-6


@dataclass(frozen=True)
class MakeSwitches:
    """The three places where formula and code differ, and whether an image's other views are left out
    of the denominator of one ("all" only: with "view" they never are in it).
    """

    denominator: Literal["view", "all"] = "view"
    alignment: Literal["text_to_image", "image_to_text"] = "text_to_image"
    weights: Literal["ratio", "softmax", "none"] = "ratio"
    mask_positives: bool = False
    sigma: float = 0.3


class MakeLosses(NamedTuple):
    """Scalars: multi-aspect contrastive, and sub-captions with patches."""

    contrastive: Tensor
    alignment: Tensor


def make_loss(
    images: Tensor,
    texts: Tensor,
    mask: Tensor,
    pooled: Tensor | None,
    scale: Tensor,
    switches: MakeSwitches = MakeSwitches(),
    soft: Tensor | None = None,
) -> MakeLosses:
    """Both losses of this process' rows, so that their mean over processes is that of the batch.

    images (b, d) and texts (b, N, d), N ≥ 3, unit rows; mask bool (b, N); pooled (b, d) from pool_patches
    (None: no alignment, its loss is 0); scale scalar. soft (b, B): rows of target probabilities over the
    images of the whole batch in place of one-hot ones (O-MAKE, arXiv 2512.03445; "view" only).
    ValueError for shapes that do not fit or soft targets with "all".
    """
    if texts.ndim != 3 or texts.shape[1] < N_FULL or mask.shape != texts.shape[:2]:
        raise ValueError(f"texts {tuple(texts.shape)} and mask {tuple(mask.shape)} are no views")
    if soft is not None and switches.denominator != "view":
        raise ValueError('soft targets need denominator = "view"')
    weight = diagnosis_weights(texts.detach(), mask, switches.weights)
    own = _Rows(images, texts, mask, rank() * len(images))
    whole = _Rows(gather(images), gather(texts), _gather_bool(mask), own.first)
    if switches.denominator == "view":
        contrastive = _per_view(own, whole, weight, scale, switches, soft)
    else:
        contrastive = _over_all(own, whole, weight, scale, switches)
    if pooled is None:
        alignment = contrastive.new_zeros(())
    elif switches.alignment == "text_to_image":
        alignment = _subcaptions_to_images(pooled, own, weight, scale)
    else:
        counted = weight * mask
        alignment = _images_to_texts(pooled, whole, counted, scale, switches.mask_positives)
    return MakeLosses(contrastive, alignment)


class _Rows(NamedTuple):
    """Rows of this process, b of them, or of the whole batch, B; `first`: this process' first in it."""

    images: Tensor  # (b, d)
    texts: Tensor  # (b, N, d)
    mask: Tensor  # (b, N)
    first: int


def diagnosis_weights(texts: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Weights (b, N) in [0, 1]: 1 for full captions, and everywhere in a row without ontology caption.

    Cosines below zero count as zero; a row whose sub-captions are all at or below zero keeps 1.
    """
    weight = torch.ones(mask.shape, dtype=texts.dtype, device=texts.device)
    subs = mask[:, N_FULL:]
    if kind == "none" or not subs.shape[1]:
        return weight
    near = torch.einsum("bd,bkd->bk", texts[:, ONTOLOGY], texts[:, N_FULL:])
    if kind == "softmax":
        near = near.masked_fill(~subs, -torch.inf).softmax(1).nan_to_num(0.0)
    near = near.clamp(min=0).masked_fill(~subs, 0.0)
    top = near.amax(1, keepdim=True)
    known = mask[:, ONTOLOGY, None] & (top > 0)
    weight[:, N_FULL:] = torch.where(known & subs, near / top.clamp(min=_EPS), 1.0)
    return weight


def pool_patches(patches: Tensor, raw: Tensor, has_raw: Tensor, switches: MakeSwitches) -> Tensor:
    """One vector an image (b, d): patches (b, c, d) weighed by their cosine with its raw caption (b, d).

    Negative cosines weigh nothing: the formula's z / Σz has no meaning where they sum to zero. An image
    without raw caption, or with no patch that looks like it, has the mean of its patches.
    """
    z = torch.einsum("bcd,bd->bc", patches, raw)
    if switches.alignment == "text_to_image":
        z = z.clamp(min=0)
        z = z / z.sum(1, keepdim=True).clamp(min=_EPS)
    else:
        z = F.normalize(z * (z >= switches.sigma), dim=1)
    looks = has_raw & (z > 0).any(1)
    z = torch.where(looks[:, None], z, 1 / patches.shape[1])
    return torch.einsum("bc,bcd->bd", z, patches)


def _per_view(
    own: _Rows,
    whole: _Rows,
    weight: Tensor,
    scale: Tensor,
    switches: MakeSwitches,
    soft: Tensor | None,
) -> Tensor:
    """Return the loss of each view against the same view of all images, both ways."""
    # (view, own image, whole batch)
    to_texts = scale * torch.einsum("id,jkd->kij", own.images, whole.texts)
    transposed = n_processes() == 1  # then they are the same products
    to_images = (
        to_texts.mT if transposed else scale * torch.einsum("ikd,jd->kij", own.texts, whole.images)
    )
    # An absent caption is no negative; an image always is one.
    absent = _absent(whole.mask, len(own.images), own.first)
    to_texts = to_texts.masked_fill(absent, -torch.inf)
    to_text, to_image = (
        _cross_entropy(logits, own.first, soft).T for logits in (to_texts, to_images)
    )
    return _both_ways(to_text, to_image, weight * own.mask, own.mask, switches)


def _both_ways(
    to_text: Tensor, to_image: Tensor, weight: Tensor, mask: Tensor, switches: MakeSwitches
) -> Tensor:
    """(image → text + text → image) / 2 from (b, N) losses; the code weighs the first alone."""
    back = mask.to(weight.dtype) if switches.weights == "softmax" else weight
    return (_weighted_mean(to_text, weight) + _weighted_mean(to_image, back)) / 2


def _absent(mask: Tensor, b: int, offset: int) -> Tensor:
    """Return (N, b, B): which texts are absent. A row's own stays, so that its log-softmax is finite; it is
    left out by its weight.
    """
    own = torch.eye(len(mask), dtype=torch.bool, device=mask.device)[offset : offset + b]
    return ~mask.T[:, None, :] & ~own


def _cross_entropy(logits: Tensor, offset: int, soft: Tensor | None) -> Tensor:
    """Return losses (views, b) of logits (views, b, B); soft targets are cut to what is not masked."""
    log_p = logits.log_softmax(-1)
    b = logits.shape[1]
    if soft is None:
        own = torch.arange(b, device=logits.device)
        return -log_p[:, own, own + offset]
    seen = torch.isfinite(logits)
    target = soft * seen
    target = target / target.sum(-1, keepdim=True).clamp(min=_EPS)
    return -(target * log_p.masked_fill(~seen, 0.0)).sum(-1)


def _over_all(
    own: _Rows, whole: _Rows, weight: Tensor, scale: Tensor, switches: MakeSwitches
) -> Tensor:
    """Return the loss of each image against all texts of the batch, and of each text against all images."""
    to_texts = scale * own.images @ whole.texts.flatten(0, 1).T
    to_text = _negative_log(to_texts, whole, switches.mask_positives)
    rows = torch.arange(len(own.images), device=own.images.device)
    logits = scale * torch.einsum("ikd,jd->ikj", own.texts, whole.images)
    to_image = -logits.log_softmax(-1)[rows, :, rows + own.first]
    return _both_ways(to_text, to_image, weight * own.mask, own.mask, switches)


def _negative_log(logits: Tensor, whole: _Rows, mask_positives: bool) -> Tensor:
    """−log p of each image's own views among all present texts: logits (b, B·N) -> (b, N)."""
    b, n = len(logits), whole.mask.shape[1]
    logits = logits.masked_fill(~whole.mask.flatten()[None], -torch.inf)
    rows = torch.arange(b, device=logits.device)
    own = logits.view(b, -1, n)[rows, rows + whole.first]  # (b, N)
    own = own.masked_fill(~whole.mask[rows + whole.first], 0.0)  # left out by its weight
    if not mask_positives:
        return logits.logsumexp(1, keepdim=True) - own
    others = logits.view(b, -1, n).clone()
    others[rows, rows + whole.first] = -torch.inf
    # The denominator of view k: all other images' texts, and view k itself.
    return torch.logaddexp(others.flatten(1).logsumexp(1, keepdim=True), own) - own


def _subcaptions_to_images(pooled: Tensor, own: _Rows, weight: Tensor, scale: Tensor) -> Tensor:
    """Return the loss of each sub-caption against the pooled patches of all images."""
    subs = slice(N_FULL, None)
    logits = scale * torch.einsum("ikd,jd->ikj", own.texts[:, subs], gather(pooled))
    rows = torch.arange(len(pooled), device=pooled.device)
    loss = -logits.log_softmax(-1)[rows, :, rows + own.first]
    return _weighted_mean(loss, (weight * own.mask)[:, subs])


def _images_to_texts(
    pooled: Tensor, whole: _Rows, weight: Tensor, scale: Tensor, mask_positives: bool
) -> Tensor:
    """Return the loss of each image's pooled patches against all texts; all its views but the raw
    caption are targets.
    """
    loss = _negative_log(scale * pooled @ whole.texts.flatten(0, 1).T, whole, mask_positives)
    return _weighted_mean(loss[:, ONTOLOGY:], weight[:, ONTOLOGY:])


def _weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Σ w·loss / Σ w over the whole batch, as this process' part of a mean over processes."""
    norm = total(weight.sum()).clamp(min=_EPS)
    return (loss * weight).sum() * n_processes() / norm


def _gather_bool(mask: Tensor) -> Tensor:
    return gather(mask.float()).bool() if n_processes() > 1 else mask


def info_nce(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit rows a, b (n, d) over the rows that are `valid` (n,): what KEP distils a
    frozen knowledge encoder's view of the raw captions with (arXiv 2602.10624, report).
    """
    offset, valid_all = rank() * len(a), _gather_bool(valid)
    dead = _absent(valid_all[:, None], len(a), offset)
    to_b, to_a = (
        _cross_entropy(
            (scale * one @ gather(other).T)[None].masked_fill(dead, -torch.inf), offset, None
        )
        for one, other in ((a, b), (b, a))
    )
    return _weighted_mean((to_b + to_a)[0] / 2, valid.to(a.dtype))


def soft_targets(similarity: Tensor, blend: float, temperature: float = 0.07) -> Tensor:
    """Rows of targets (b, B) from ontology similarities (b, B), nan where a disease is unknown:
    (1 − β) one-hot + β softmax(similarity / 0.07) (O-MAKE, arXiv 2512.03445). An image of unknown disease
    keeps its one-hot row and has no neighbours.
    """
    b = len(similarity)
    own = torch.zeros_like(similarity)
    rows = torch.arange(b, device=similarity.device)
    own[rows, rows + rank() * b] = 1.0
    near = (similarity.nan_to_num(-torch.inf) / temperature).softmax(1)
    known = similarity[rows, rows + rank() * b].isfinite()
    return torch.where(known[:, None], (1 - blend) * own + blend * near.nan_to_num(0.0), own)
