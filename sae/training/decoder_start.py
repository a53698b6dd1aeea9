"""Where the decoder rows of an SAE begin, and how far they may go from there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dermaudit.files import sha256_bytes

_FIRST_STEPS = 200  # of the shares of archetypes, before the SAE learns


@dataclass(frozen=True)
class DecoderStart:
    """Directions (c, d) of unit length from which the first c latents start, each of which stays within the
    cosine `within` of its own: 1 keeps it as it is, −1 lets it go anywhere (arXiv 2602.14111: frozen and
    soft-frozen decoders).

    With `points` (p, d) it stays within that cosine of the nearest sum of points with positive shares instead: a
    relaxed archetypal dictionary (arXiv 2502.12892), in the form of directions, since lengths are free.
    """

    directions: np.ndarray
    within: float = -1.0
    points: np.ndarray | None = None

    def sha256(self) -> str:
        """Return a hash of the start, for checkpoints."""
        points = b"" if self.points is None else self.points.tobytes()
        return sha256_bytes(self.directions.tobytes() + np.float64(self.within).tobytes() + points)


class DecoderBounds:
    """Keeps the first decoder rows of one SAE where its start allows them."""

    def __init__(self, start: DecoderStart, like: Tensor) -> None:
        self.within = min(start.within, 1.0)
        self.directions = torch.from_numpy(start.directions).to(like)
        self.hull = None if start.points is None else _Hull(start.points, self.directions)

    @torch.no_grad()
    def keep(self, decoder: Tensor) -> None:
        """Turn rows of `decoder` (h, d) that have left their cone back to its edge; lengths stay."""
        if self.within <= -1:
            return
        rows = decoder[: len(self.directions)]
        own = self.directions if self.hull is None else self.hull.nearest(rows)
        length = rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        cosine = (rows * own).sum(1, keepdim=True) / length
        away = normalize(rows / length - cosine * own, dim=1)
        edge = (self.within * own + (1 - self.within**2) ** 0.5 * away) * length
        rows.copy_(torch.where(cosine < self.within, edge, rows))


class _Hull:
    """Sums of points with positive shares, one for each row, that follow the rows step by step."""

    def __init__(self, points: np.ndarray, rows: Tensor) -> None:
        self.points = normalize(torch.from_numpy(points).to(rows), dim=1)
        self.gram = self.points @ self.points.t()
        self.rate = 1 / float(torch.linalg.matrix_norm(self.gram, ord=2))
        self.shares = (rows @ self.points.t()).clamp_min(0)
        for _ in range(_FIRST_STEPS):
            self._approach(rows)

    def nearest(self, rows: Tensor) -> Tensor:
        """Return the unit vectors (h, d) of the sums, after a step of theirs towards the directions of rows (h, d)."""
        self._approach(normalize(rows, dim=1))
        return normalize(self.shares @ self.points, dim=1)

    def _approach(self, rows: Tensor) -> None:
        """Take a projected gradient step of the squared distance."""
        gradient = self.shares @ self.gram - rows @ self.points.t()
        self.shares = (self.shares - self.rate * gradient).clamp_min(0)
