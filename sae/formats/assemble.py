"""Build an SAE from the tensors of another program: shapes are checked, biases and norms folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dermaudit.errors import ForeignArtifactError

from ..inference.model import ReLUSAE, ThresholdSAE, TopKSAE


def tensors_of(path: Path, state: dict[str, Tensor], *names: str) -> list[Tensor]:
    """Return tensors by name in float64. ForeignArtifactError lists those that are missing."""
    missing = [name for name in names if name not in state]
    if missing:
        raise ForeignArtifactError(
            f"{path} has no {', '.join(missing)}; it has {', '.join(sorted(state)) or 'no tensors'}",
            "it was written by another version, or it is incomplete",
        )
    return [state[name].detach().double() for name in names]


def assemble(
    path: Path,
    W_enc: Tensor,
    W_dec: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    *,
    threshold: Tensor | float | None = None,
    k: int | None = None,
    subtract: bool = True,
    unit_decoder: bool = False,
    metadata: dict[str, Any],
) -> ThresholdSAE | TopKSAE:
    """Return a TopKSAE if `k` is given, a ThresholdSAE if `threshold` is, else a ReLUSAE.

    W_enc (d_in, d_sae), W_dec (d_sae, d_in), threshold (d_sae,) or one for all latents. With `subtract` the
    other program encodes x − b_dec; otherwise it encodes x, and b_dec is added back through b_enc. With
    `unit_decoder` decoder rows get unit length, and codes and threshold are multiplied by their former
    length. Folds are computed in float64. ForeignArtifactError for shapes that do not match and for values
    that are not finite.
    """
    tensors = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    if W_enc.ndim != 2:
        raise ForeignArtifactError(
            f"{path}: the encoder has the shape {tuple(W_enc.shape)}, not (d_in, d_sae)"
        )
    d, h = W_enc.shape
    wanted = {"W_enc": (d, h), "W_dec": (h, d), "b_enc": (h,), "b_dec": (d,)}
    if k is None and threshold is not None:
        tensors["threshold"] = torch.as_tensor(threshold, dtype=torch.float64)
        if tensors["threshold"].ndim == 0:
            tensors["threshold"] = tensors["threshold"].expand(h)
        wanted["threshold"] = (h,)
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ForeignArtifactError(
                f"{path}: {name} has the shape {tuple(tensors[name].shape)}; with an encoder of "
                f"d_in {d} and d_sae {h} it should have {shape}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise ForeignArtifactError(
                f"{path}: {name} has values that are not finite",
                "the training that wrote it diverged: take an earlier checkpoint",
            )
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    if not subtract:
        tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
    if unit_decoder:
        tensors = fold_norm(tensors)
    single = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    if k is None:
        kind = ReLUSAE if threshold is None else ThresholdSAE
        return kind(**single, metadata=metadata)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= h:
        raise ForeignArtifactError(
            f"{path}: k = {k!r}; a TopK of {h} latents needs a whole number of 1 … {h}"
        )
    return TopKSAE(**single, k=k, metadata={"k": k, **metadata})


def transposed(path: Path, matrix: Tensor) -> Tensor:
    """Return the transpose: linear layers of torch store (out, in)."""
    if matrix.ndim != 2:
        raise ForeignArtifactError(
            f"{path}: a weight matrix has the shape {tuple(matrix.shape)}; it should have two dimensions",
            "it was written by another version, or it is incomplete",
        )
    return matrix.T


def required_k(path: Path, k: Any) -> Any:
    """Return k. ForeignArtifactError if it is None, which `assemble` would read as a threshold SAE."""
    if k is None:
        raise ForeignArtifactError(
            f"{path} does not contain k", "put the settings of the training next to the file"
        )
    return k


def fold_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scale decoder rows to unit length and codes by their former length; rows of zeros stay."""
    norm = tensors["W_dec"].norm(dim=1)
    norm = torch.where(norm > 0, norm, 1.0)
    folded = {
        **tensors,
        "W_enc": tensors["W_enc"] * norm,
        "b_enc": tensors["b_enc"] * norm,
        "W_dec": tensors["W_dec"] / norm[:, None],
    }
    if "threshold" in tensors:
        folded["threshold"] = tensors["threshold"] * norm
    return folded
