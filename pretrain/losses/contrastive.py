"""Stage 2: open_clip's contrastive loss on captions, and a sigmoid loss on single aspects.

Equal captions of two images are false negatives of the softmax; the aspect loss has none:
each (image, fact) pair is known to be true or false, or is left out. For image i and fact f,
BCE(s · v_i·(t_f⁺ − t_f⁻), y_if), t⁺ and t⁻ the text embeddings of a sentence that affirms the fact and
of one that denies it (sigmoid pairs as in SigLIP, arXiv 2303.15343; aspects as in MAKE, 2505.09372).

The same loss on patch tokens aligns single cells with sentences (MAKE's fine-grained alignment): what
the score of an image is a soft maximum over its cells, because a ruler fills few of them.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import nn

from dermaudit.distributed import n_processes, rank, total
from dermaudit.towers.open_clip_model import OpenClipModel

from ..data.facts import Fact, absent_sentence


class AspectLoss(nn.Module):
    """`log_scale` is the learned temperature of the aspect logits, exp-parametrised, at most 100."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(
        self,
        images: torch.Tensor,
        affirmed: torch.Tensor,
        denied: torch.Tensor,
        truth: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss. Unit rows: images (n, d), or tokens (n, cells, d); affirmed and denied (f, d).

        truth (n, f) is 1, 0, or nan where it is not known; `weights` (2, f) those of absent and of present facts.
        """
        known = torch.isfinite(truth)
        scale = self.log_scale.clamp(max=4.6).exp()
        aspects = images @ (affirmed - denied).T
        if images.ndim == 3:
            aspects = soft_maximum(aspects, dim=1)
        loss = F.binary_cross_entropy_with_logits(
            scale * aspects, torch.nan_to_num(truth), reduction="none"
        )
        loss = loss * torch.where(truth > 0.5, weights[1], weights[0])
        return (loss * known).sum() * n_processes() / total(known.sum()).clamp(min=1)


def fact_weights(truth: torch.Tensor, balance: float) -> torch.Tensor:
    """Return weights (2, f) of absent and of present facts in truth (n, f): (1 / twice their share of the known
    values) to the power of `balance`, scaled so that the mean weight of a known value of each fact is 1.
    """
    known = torch.isfinite(truth).sum(0).clamp(min=1)
    present = torch.nansum(truth, 0) / known
    shares = torch.stack([1 - present, present])
    weights = torch.where(shares > 0, (2 * shares.clamp(min=1e-6)) ** -balance, 0.0)
    return weights / (shares * weights).sum(0).clamp(min=1e-6)


def soft_maximum(x: torch.Tensor, dim: int, sharpness: float = 8.0) -> torch.Tensor:
    """log-mean-exp: between the mean (sharpness 0) and the maximum (∞) along `dim`. Unlike the
    maximum it sends a gradient to every cell, so that every cell is trained from the start.
    """
    return (torch.logsumexp(sharpness * x, dim) - math.log(x.shape[dim])) / sharpness


def aspect_sentences(facts: list[Fact], rng: random.Random) -> tuple[list[str], list[str]]:
    """One wording of presence and one of absence for every fact."""
    return [rng.choice(fact.wordings) for fact in facts], [
        absent_sentence(fact, rng) for fact in facts
    ]


def caption_loss(
    kind: str,
    images: torch.Tensor,
    texts: torch.Tensor,
    model: OpenClipModel,
    gathered: str = "local",
) -> torch.Tensor:
    """open_clip's ClipLoss or SigLipLoss on unit rows (n, d) of this process; its mean over processes is
    the loss of the whole batch. `gathered`: "local" rows against all, or "full", all rows everywhere.
    """
    from open_clip.loss import ClipLoss, SigLipLoss

    if kind == "siglip":
        loss = SigLipLoss(rank=rank(), world_size=n_processes(), dist_impl="gather")
        return loss(images, texts, model.logit_scale.exp(), model.logit_bias)
    loss = ClipLoss(
        local_loss=gathered == "local",
        gather_with_grad=True,
        rank=rank(),
        world_size=n_processes(),
    )
    return loss(images, texts, model.logit_scale.exp())
