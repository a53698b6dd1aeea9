"""A head behind an edit of its embeddings, and random latents to compare an edit with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dermaudit.heads import LinearHead, probe_score
from dermaudit.sae import LatentSuppressor, ThresholdSAE

from .cross_fit import TrainingRows

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class EditedHead:
    """`head` on rows that `edit` changes first: (n, d) → (n, d). `suppressor`: the latents that the edit
    suppresses, where it is one of latents.
    """

    head: LinearHead
    edit: Callable[[np.ndarray], np.ndarray]
    suppressor: LatentSuppressor | None = None

    @classmethod
    def of_suppressor(cls, head: LinearHead, suppressor: LatentSuppressor) -> EditedHead:
        """Return the head behind a suppressor of float32 rows."""
        return cls(head, lambda x: suppressor.apply_to(_tensor(x)).x.numpy(), suppressor)

    def score(self, x: np.ndarray) -> np.ndarray:
        """Return the logit (n,) of edited rows x (n, d)."""
        return probe_score(self.head, self.edit(x))

    def unchanged(self, x: np.ndarray) -> np.ndarray:
        """Return which rows (n,) the edit leaves bit for bit."""
        return (self.edit(x) == x).all(1)


def random_suppressor(
    rows: TrainingRows, suppressor: LatentSuppressor, generator: np.random.Generator
) -> LatentSuppressor:
    """Return a suppressor of as many random latents. Each fires as often on the training rows as its
    counterpart, and changes the rows where it fires by the same length on average.
    """
    x = rows.data.x[rows.train]
    z = suppressor.apply_to(_tensor(x)).z.numpy()
    size = suppressor.W_dec.norm(dim=1).numpy()
    sd = x.std(0) + 1e-8
    latents = [
        _random_latent(x, sd, z[:, j] * size[j], generator)
        for j in range(z.shape[1])
        if (z[:, j] > 0).any()
    ]
    encoders, biases, thresholds, decoders = (
        torch.tensor(np.array(values), dtype=torch.float32) for values in zip(*latents, strict=True)
    )
    control = ThresholdSAE(
        W_enc=encoders.T.contiguous(),
        W_dec=decoders,
        b_enc=biases,
        b_dec=torch.zeros(x.shape[1]),
        threshold=thresholds,
        metadata={},
    )
    return LatentSuppressor(control, range(len(latents)))


def _random_latent(
    x: Float[np.ndarray, "n d"],
    sd: Float[np.ndarray, " d"],
    change: Float[np.ndarray, " n"],
    generator: np.random.Generator,
) -> tuple[np.ndarray, float, float, np.ndarray]:
    """Return encoder, bias, threshold and decoder; `change` (n,): the length by which the rows change."""
    fires = change > 0
    encoder = generator.standard_normal(x.shape[1]) / sd
    decoder = generator.standard_normal(x.shape[1]) * sd
    pre = x @ encoder
    threshold = float(np.quantile(pre, 1 - fires.mean()))
    over = pre > threshold
    if not over.any():  # a latent that fires everywhere, or rows that are all alike
        over = pre >= threshold
    level = float(pre[~over].mean()) if (~over).any() else float(pre.min())
    scale = change[fires].mean() / max(float((pre[over] - level).mean()), 1e-12)
    return (
        encoder * scale,
        -level * scale,
        (threshold - level) * scale,
        decoder / np.linalg.norm(decoder),
    )


def _tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))
