"""Suppression of latents in closed form, error term kept, without any SAE library.

`x' = x + Σ_{j∈S} (z'_j − z_j) W_dec[j]` equals decode(z') + (x − decode(z)) because the other
latents cancel; for threshold SAEs only the |S| latents need encoding (4·d·|S| FLOPs a row).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from dermaudit.errors import UserInputError

from .model import ThresholdSAE

MODES = ("subtract", "mean", "clamp")


class Suppressed(NamedTuple):
    """x (n, d) after; z (n, |S|) codes before; fired (n,) whether any latent of S fired."""

    x: torch.Tensor
    z: torch.Tensor
    fired: torch.Tensor


class LatentSuppressor(nn.Module):
    """Suppress latents S of a threshold SAE in rows x (n, d).

    Modes: `subtract` z' = 0; `mean` z' = `level` (mean of the artifact-free images); `clamp`
    z' = min(z, `level`). Rows in which no latent of S fires come back bit for bit. `renormalise`
    rescales the rows that changed to their former length (unit rows stay unit).
    """

    def __init__(
        self,
        sae: ThresholdSAE,
        latents: Sequence[int],
        *,
        mode: str = "subtract",
        level: torch.Tensor | None = None,
        renormalise: bool = True,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise UserInputError(f"unknown suppression mode '{mode}'", f"known: {', '.join(MODES)}")
        latents = [int(j) for j in latents]
        if not latents or min(latents) < 0 or max(latents) >= sae.d_sae:
            raise UserInputError(
                f"latents {latents} are not all within this SAE's 0 … {sae.d_sae - 1}"
            )
        self.mode, self.renormalise, self.latents = mode, renormalise, latents
        if len(set(latents)) < len(latents):
            raise UserInputError(f"latents {latents} name one twice: it would be taken off twice")
        index = torch.tensor(latents)
        self.register_buffer("W_enc", sae.W_enc[:, index].contiguous())
        self.register_buffer("W_dec", sae.W_dec[index].contiguous())
        self.register_buffer("b_enc", sae.b_enc[index].clone())
        self.register_buffer("threshold", sae.threshold[index].clone())
        self.register_buffer("b_dec", sae.b_dec.clone())
        level = torch.zeros(len(latents)) if level is None else level.float()
        self.register_buffer("level", level)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes (n, |S|) of the suppressed latents alone."""
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        return torch.relu(pre) * (pre > self.threshold)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_to(x).x

    @torch.no_grad()
    def apply_to(self, x: torch.Tensor) -> Suppressed:
        """Suppress in x (n, d) and say what fired."""
        z = self.encode(x)
        if self.mode == "subtract":
            delta = -z
        elif self.mode == "mean":
            delta = torch.where(z > 0, self.level - z, 0.0)
        else:
            delta = torch.minimum(self.level - z, torch.zeros(())) * (z > 0)
        edited = x + delta @ self.W_dec
        if self.renormalise:
            length = edited.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # nothing left: stays 0
            edited = edited * (x.norm(dim=-1, keepdim=True) / length)
        # Selecting, not adding zero: x + 0.0 and a re-normalised unit row are not the same bits.
        fired = (delta != 0).any(-1)
        return Suppressed(torch.where(fired[..., None], edited, x), z, fired)
