"""torch.save of the state dict of an SAE of overcomplete (KempnerInstitute; PyPI overcomplete 0.3).

Encoder: encoder.final_block.0.weight (h, d), .bias (h,) of a linear layer, with a batch norm
(final_block.1.*) that is folded; or the tieable encoder (encoder.weight, encoder.bias; tied: the
dictionary's transpose). Dictionary D = rows of dictionary._weights at unit length times
e^dictionary.multiplier; of RA-SAEs (arXiv 2502.12892) D = (W C + Relax) e^multiplier, W row-stochastic.
z = relu(encoder(x)), x̂ = z D, no bias in the decoder. A JumpSAE has `thresholds`, whose exponential is
the threshold. The file does not contain the k of a TopKSAE, nor that it is one, so `k` must be given.
The file of a BatchTopKSAE lacks its threshold, so its codes cannot be computed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dermaudit.errors import ForeignArtifactError, UserInputError

from ..inference.model import ThresholdSAE, TopKSAE
from .assemble import assemble, tensors_of, transposed
from .checkpoint import read_state, state_of

NAME = "overcomplete"
NEEDS_K = True

_BATCH_NORM_EPS = 1e-5  # the default of torch, which overcomplete uses
_NORM_EPS = 1e-8  # normalize_l2 of overcomplete
#: A training step changes a unit row by far less; more means another normalisation or delta.
_NEAR = 0.1


def matches(path: Path) -> bool:
    """Return whether the file or folder is of this family."""
    return bool({"dictionary._weights", "dictionary.C"} & set(state_of(path) or ()))


def read(path: Path, k: int | None = None) -> ThresholdSAE | TopKSAE:
    """Return the SAE; `k` is needed for a TopKSAE, 0 for a ReLU SAE, None for a JumpSAE."""
    file, state = read_state(path)
    if "Q" in state:
        raise ForeignArtifactError(f"{file} is a QSAE of overcomplete: its codes are quantised")
    D = _dictionary(file, state)
    W_enc, b_enc = _encoder(file, state, D)
    b_dec = torch.zeros(D.shape[1], dtype=torch.float64)
    metadata = {"imported_from": NAME, "training_architecture": "jumprelu"}
    if "thresholds" in state:
        if k:
            raise UserInputError(
                f"--k is not for {file}: it has thresholds (a JumpSAE)", "leave it out"
            )
        (log_threshold,) = tensors_of(file, state, "thresholds")
        return assemble(
            file, W_enc, D, b_enc, b_dec, threshold=log_threshold.exp(), metadata=metadata
        )
    if k is None:
        raise UserInputError(
            f"{file} does not say whether it is a TopKSAE, nor its k",
            "give it: --k K for a TopKSAE, --k 0 for a ReLU SAE; the codes of a BatchTopKSAE need its "
            "running threshold, which the file does not have",
        )
    metadata["training_architecture"] = "topk" if k else "relu"
    return assemble(file, W_enc, D, b_enc, b_dec, k=k or None, metadata=metadata)


def _dictionary(file: Path, state: dict[str, Tensor]) -> Tensor:
    """Return D (d_sae, d_in) as the library computes it in eval mode."""
    (multiplier,) = tensors_of(file, state, "dictionary.multiplier")
    if "dictionary.C" in state:
        points, weights, relax = tensors_of(
            file, state, "dictionary.C", "dictionary.W", "dictionary.Relax"
        )
        weights = torch.relu(weights)
        weights = weights / (weights.sum(-1, keepdim=True) + _NORM_EPS)
        length = relax.norm(dim=-1, keepdim=True)
        if length.max() <= 1 + _NEAR:  # delta is not in the file; 1 is its default
            relax = relax * torch.clamp(1 / length, max=1)
        return (weights @ points + relax) * multiplier.exp()
    (weights,) = tensors_of(file, state, "dictionary._weights")
    length = weights.norm(dim=1, keepdim=True)
    if ((length - 1).abs() > _NEAR).any():
        raise ForeignArtifactError(
            f"{file}: the rows of its dictionary have lengths of {float(length.min()):.3g} … "
            f"{float(length.max()):.3g}, not 1: it was made with another normalisation than 'l2', and "
            "the file does not say which",
            "an l2 dictionary that was never used: call sae.train(), then sae.get_dictionary(), and save again",
        )
    return weights / (length + _NORM_EPS) * multiplier.exp()


def _encoder(file: Path, state: dict[str, Tensor], D: Tensor) -> tuple[Tensor, Tensor]:
    """Return (W_enc (d_in, d_sae), b_enc (d_sae,))."""
    zeros = torch.zeros(len(D), dtype=torch.float64)
    deeper = [name for name in state if name.startswith("encoder.") and "block" in name]
    if "encoder.final_block.0.weight" not in state:
        if deeper:
            raise ForeignArtifactError(
                f"{file} has the encoder of overcomplete with {deeper[0]}: it is no single linear layer",
                "a linear or a tied encoder can be read",
            )
        bias = state.get("encoder.bias")
        bias = zeros if bias is None else bias.double()
        if "encoder.tied_to._weights" in state or "encoder.tied_to.C" in state:
            return D.T, bias
        if not any(name.startswith("encoder.") for name in state):
            raise ForeignArtifactError(
                f"{file} is a dictionary of overcomplete without an encoder (matching pursuit): its codes "
                "are the result of a search"
            )
        (weight,) = tensors_of(file, state, "encoder.weight")
        return transposed(file, weight), bias
    weight, bias = tensors_of(
        file, state, "encoder.final_block.0.weight", "encoder.final_block.0.bias"
    )
    others = [
        n for n in deeper if not n.startswith(("encoder.final_block.0.", "encoder.final_block.1."))
    ]
    normed = any(name.startswith("encoder.final_block.1.") for name in state)
    if others or (normed and "encoder.final_block.1.running_var" not in state):
        raise ForeignArtifactError(
            f"{file} has an encoder of overcomplete with "
            f"{'several layers' if others else 'a layer norm'}: its codes are no linear map and a threshold",
            "a linear encoder, with or without a batch norm, can be read",
        )
    if normed:
        mean, var, gain, shift = tensors_of(
            file,
            state,
            *(
                f"encoder.final_block.1.{n}"
                for n in ("running_mean", "running_var", "weight", "bias")
            ),
        )
        scale = gain / torch.sqrt(var + _BATCH_NORM_EPS)
        weight, bias = weight * scale[:, None], (bias - mean) * scale + shift
    return transposed(file, weight), bias
