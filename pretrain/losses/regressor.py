"""The latent regressor of stage 1: from visible latents to those of masked cells (CAE, arXiv 2202.03026)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermaudit.towers.loading.panderm import sin_cos_positions


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and an MLP, both scaled (LayerScale). Positions are added to queries and
    keys, not to values.
    """

    def __init__(self, d: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_kv, self.norm_mlp = (nn.LayerNorm(d) for _ in range(3))
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.gamma_1 = nn.Parameter(torch.full((d,), scale))
        self.gamma_2 = nn.Parameter(torch.full((d,), scale))

    def forward(
        self, query: Tensor, context: Tensor, at_query: Tensor, at_context: Tensor
    ) -> Tensor:
        """Return the updated query (n, m, d) for a context (n, c, d); positions have the same shapes."""
        kv = self.norm_kv(context)
        q = self._split(self.q(self.norm_q(query) + at_query))
        k, v = self._split(self.k(kv + at_context)), self._split(self.v(kv))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        query = query + self.gamma_1 * self.out(mixed)
        return query + self.gamma_2 * self.mlp(self.norm_mlp(query))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LatentRegressor(nn.Module):
    """Visible latents (n, v, d) and where they are -> latents of the masked cells (n, m, d).

    Queries start from one learned mask token; keys and values are the visible latents together with
    the queries, which are updated from block to block.
    """

    positions: Tensor

    def __init__(self, d: int, side: int, depth: int, scale: float = 0.1) -> None:
        super().__init__()
        heads = next(h for h in (max(1, d // 64), 8, 6, 4, 3, 2, 1) if d % h == 0)
        self.mask_token = nn.Parameter(torch.empty(d).normal_(std=0.02))
        self.blocks = nn.ModuleList(CrossBlock(d, heads, scale) for _ in range(depth))
        quarter = 4 * -(-d // 4)  # sin-cos positions come in fours
        self.register_buffer("positions", sin_cos_positions(side, quarter)[0, 1:, :d].clone())

    def forward(self, visible: Tensor, at_visible: Tensor, at_masked: Tensor) -> Tensor:
        """`at_visible` (n, v), `at_masked` (n, m): cells, row-major."""
        query = self.mask_token.expand(*at_masked.shape, -1)
        where, where_query = self.positions[at_visible], self.positions[at_masked]
        for block in self.blocks:
            context = torch.cat([visible, query], dim=1)
            query = block(query, context, where_query, torch.cat([where, where_query], dim=1))
        return query
