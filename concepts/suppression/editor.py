"""Suppression of any latents of one SAE, in one mode, with the levels that artifact-free images give."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from dermaudit.sae import LatentSuppressor, ThresholdSAE, TopKSAE
from dermaudit.sae.inference.suppressor import reactive_level

from ..evidence.cross_fit import TrainingRows

LEVELLED = ("mean", "clamp", "reactive")  # modes whose level comes from artifact-free images
_QUANTILE = 0.95
_ROWS = 2048  # encoded at a time
_KEPT = 8  # sets of rows whose codes are kept


class Levels(TypedDict, total=False):
    """The numbers that a mode works with, as LatentSuppressor takes them; {} for modes without."""

    level: torch.Tensor  # (|S|,)
    gate_level: float


@dataclass(frozen=True)
class Edit:
    """What is done to a latent that fires: a mode of LatentSuppressor, and the `factor` of mode `scale`."""

    mode: str = "subtract"
    factor: float | None = None


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
        z = torch.from_numpy(self.codes(x)[:, latents].toarray())
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
        assert self.free is not None  # editor_of: modes with a level have them
        z = self.free[:, latents].toarray()
        if self.mode == "reactive":
            return {"gate_level": reactive_level(torch.from_numpy(z))}
        level = z.mean(0) if self.mode == "mean" else np.quantile(z, _QUANTILE, axis=0)
        return {"level": torch.from_numpy(level.astype(np.float32))}

    def codes(self, x: np.ndarray) -> csr_matrix:
        """Return the codes (n, d_sae) of rows x (n, d); those of the last _KEPT sets of rows are kept."""
        key = hashlib.blake2b(np.ascontiguousarray(x).data, digest_size=16).digest()
        if key not in self._codes:
            if len(self._codes) == _KEPT:
                del self._codes[next(iter(self._codes))]
            parts = torch.from_numpy(x).split(_ROWS)
            coded = [csr_matrix(self.sae.encode(part).numpy()) for part in parts]
            self._codes[key] = csr_matrix(vstack(coded, "csr"))
        return self._codes[key]


def editor_of(
    sae: ThresholdSAE | TopKSAE, edit: Edit, rows: TrainingRows
) -> tuple[Editor, str | None]:
    """Return an editor, and the images that its levels are of: the training rows without the artifact, all of
    them where none is labelled. None for a mode without levels.
    """
    if edit.mode not in LEVELLED:
        return Editor(sae, edit.mode, factor=edit.factor), None
    absent = rows.train[rows.data.a[rows.train] == 0]
    which = absent if len(absent) else rows.train
    description = (
        f"{len(absent)} train and val images without the concept"
        if len(absent)
        else f"all {len(which)} train and val images: none is labelled"
    )
    editor = Editor(sae, edit.mode, factor=edit.factor)
    editor.free = editor.codes(rows.data.x[which])
    return editor, description
