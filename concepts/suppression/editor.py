"""Suppression of any latents of one SAE, in one mode, with the levels that artifact-free images give."""

from __future__ import annotations

import hashlib
from typing import TypedDict

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from dermaudit.errors import EvidenceError
from dermaudit.sae import LatentSuppressor, ThresholdSAE, TopKSAE
from dermaudit.sae.inference.suppressor import MIN_FREE, reactive_level
from dermaudit.sae.run_data import RunData

LEVELLED = ("mean", "clamp", "reactive")  # modes whose level comes from artifact-free images
_QUANTILE = 0.95
_ROWS = 2048  # encoded at a time
_KEPT = 8  # sets of rows whose codes are kept


class Levels(TypedDict, total=False):
    """The numbers that a mode works with, as LatentSuppressor takes them; {} for modes without."""

    level: torch.Tensor  # (|S|,)
    gate_level: float


class Editor:
    """Suppresses any set S of latents of one SAE in one mode.

    Arguments: `factor` of mode `scale`; `free` (m, d_sae) csr, the codes of artifact-free images,
    which the modes in LEVELLED need.
    """

    def __init__(
        self,
        sae: ThresholdSAE | TopKSAE,
        mode: str = "subtract",
        *,
        factor: float | None = None,
        free: csr_matrix | None = None,
    ) -> None:
        self.sae, self.mode, self.factor, self.free = sae, mode, factor, free
        self._codes: dict[bytes, csr_matrix] = {}

    def rows(self, latents: list[int], x: np.ndarray) -> np.ndarray:
        """Rows x (n, d) with the latents suppressed, float32; x itself where there are none."""
        if not latents:
            return x
        module, rows = self.module(latents), torch.from_numpy(x)
        if isinstance(self.sae, ThresholdSAE):
            return module.apply_to(rows).x.numpy()
        # To know one latent of a TopK all are encoded: once for all the sets that are tried.
        z = torch.from_numpy(self._encoded(x)[:, latents].toarray())
        return module.edit(rows, module.change(z))[0].numpy()

    def module(self, latents: list[int], renormalise: bool = True) -> LatentSuppressor:
        """The suppressor of these latents. Errors: EvidenceError where a level needs more images."""
        return LatentSuppressor(
            self.sae, latents, mode=self.mode, renormalise=renormalise, **self.levels(latents)
        )

    def levels(self, latents: list[int]) -> Levels:
        """Return the levels of these latents."""
        if self.mode == "scale":
            assert self.factor is not None  # check_mode: `scale` has a factor
            return {"level": torch.full((len(latents),), float(self.factor))}
        if self.mode not in LEVELLED:
            return {}
        assert self.free is not None  # free_codes: modes with a level have them
        z = self.free[:, latents].toarray()
        if self.mode == "reactive":
            return {"gate_level": reactive_level(torch.from_numpy(z))}
        level = z.mean(0) if self.mode == "mean" else np.quantile(z, _QUANTILE, axis=0)
        return {"level": torch.from_numpy(level.astype(np.float32))}

    def _encoded(self, x: np.ndarray) -> csr_matrix:
        key = hashlib.blake2b(np.ascontiguousarray(x).data, digest_size=16).digest()
        if key not in self._codes:
            if len(self._codes) == _KEPT:
                del self._codes[next(iter(self._codes))]
            parts = torch.from_numpy(x).split(_ROWS)
            coded = [csr_matrix(self.sae.encode(part).numpy()) for part in parts]
            self._codes[key] = csr_matrix(vstack(coded, "csr"))
        return self._codes[key]


def free_codes(
    data: RunData, site: str, concept: str, mode: str
) -> tuple[csr_matrix | None, str | None]:
    """(codes (m, d_sae), what they are of) of the train images known to lack the concept.

    `mean` and `clamp` take all train images where none is labelled; (None, None) for a mode that
    needs no level. Errors: EvidenceError for `reactive` with fewer than MIN_FREE of them.
    """
    if mode not in LEVELLED:
        return None, None
    rows = data.rows("train")
    truth = data.truth.get(concept)
    free = rows & (truth.values == 0) if truth is not None else np.zeros_like(rows)
    if mode == "reactive" and free.sum() < MIN_FREE:
        n = int(free.sum())
        raise EvidenceError(
            f"{concept}: {n} train images are labelled as without it, too few for the gate of mode reactive",
            f"at least {MIN_FREE} are needed: label more of them, or take another mode",
            {"n": n, "needed": MIN_FREE},
        )
    if free.any():
        return data.codes(site).csr()[free], f"{int(free.sum())} train images without {concept}"
    return data.codes(site).csr()[rows], f"all {int(rows.sum())} train images: none is labelled"
