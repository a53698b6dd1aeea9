"""`ae.pt` and `config.json` of dictionary_learning (saprmarks; PyPI dictionary-learning 0.1).

`config["trainer"]["dict_class"]` names the class, whose formulas differ:

- AutoEncoder: z = relu(W_e (x − bias) + b_e), x̂ = W_d z + bias; read with decoder rows of unit length,
  as its own `from_pretrained` does.
- AutoEncoderNew: z = relu(W_e x + b_e), x̂ = W_d z + b_d.
- GatedAutoEncoder: u = W_e (x − b_d), z = [u + b_gate > 0] relu(e^r u + b_mag): with p = e^r u + b_mag the
  gate is p > b_mag − e^r b_gate, a threshold.
- JumpReluAutoEncoder: z = relu(p [p > threshold]), p = x W_enc + b_enc.
- AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE: relu(W_e (x − b_dec) + b_e), then the k largest
  of the row, or those above the saved threshold (−1, which is plain ReLU, if training never set it).

The biases in the file already contain the scale of the activations in training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dermaudit.errors import ForeignArtifactError
from dermaudit.files import read_json

from ..inference.model import ThresholdSAE, TopKSAE
from .assemble import assemble, required_k, tensors_of, transposed
from .checkpoint import read_state, state_of

NAME = "dictionary_learning"

_LINEAR = {"encoder.weight", "decoder.weight"}
_MATRICES = {"W_enc", "W_dec", "b_enc", "b_dec"}
_BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def matches(path: Path) -> bool:
    """Return whether the file or folder is of this family."""
    state = set(state_of(path) or ())
    if state >= _LINEAR:
        return bool(state & {"bias", "b_dec", "decoder_bias", "decoder.bias"})
    return state >= _MATRICES and "threshold" in state


def read(path: Path) -> ThresholdSAE | TopKSAE:
    """Return the SAE. ForeignArtifactError if its codes cannot be represented."""
    file, state = read_state(path)
    config = _config(file)
    kind = _kind(file, state, config)
    metadata: dict[str, Any] = {"imported_from": NAME, "training_architecture": kind}
    if kind == "AutoEncoder":
        W_enc, b_enc, W_dec, b_dec = tensors_of(
            file, state, "encoder.weight", "encoder.bias", "decoder.weight", "bias"
        )
        W_enc, W_dec = transposed(file, W_enc), transposed(file, W_dec)
        return assemble(file, W_enc, W_dec, b_enc, b_dec, unit_decoder=True, metadata=metadata)
    if kind == "AutoEncoderNew":
        W_enc, b_enc, W_dec, b_dec = tensors_of(
            file, state, "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"
        )
        W_enc, W_dec = transposed(file, W_enc), transposed(file, W_dec)
        return assemble(file, W_enc, W_dec, b_enc, b_dec, subtract=False, metadata=metadata)
    if kind == "GatedAutoEncoder":
        W_enc, W_dec, b_dec, r, b_mag, b_gate = tensors_of(
            file,
            state,
            "encoder.weight",
            "decoder.weight",
            "decoder_bias",
            "r_mag",
            "mag_bias",
            "gate_bias",
        )
        return assemble(
            file,
            transposed(file, W_enc) * r.exp(),
            transposed(file, W_dec),
            b_mag,
            b_dec,
            threshold=b_mag - r.exp() * b_gate,
            metadata=metadata,
        )
    if kind == "JumpReluAutoEncoder":
        W_enc, W_dec, b_enc, b_dec, threshold = tensors_of(
            file, state, "W_enc", "W_dec", "b_enc", "b_dec", "threshold"
        )
        return assemble(
            file, W_enc, W_dec, b_enc, b_dec, threshold=threshold, subtract=False, metadata=metadata
        )
    if kind not in ("AutoEncoderTopK", *_BATCH):
        raise ForeignArtifactError(
            f"{file} is a '{kind}' of dictionary_learning, which cannot be read",
            "known: AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, "
            "AutoEncoderTopK, " + ", ".join(_BATCH),
        )
    if "W_enc" in state:
        W_enc, W_dec, b_enc, b_dec = tensors_of(file, state, "W_enc", "W_dec", "b_enc", "b_dec")
    else:
        W_enc, W_dec, b_enc, b_dec = tensors_of(
            file, state, "encoder.weight", "decoder.weight", "encoder.bias", "b_dec"
        )
        W_enc, W_dec = transposed(file, W_enc), transposed(file, W_dec)
    if kind == "AutoEncoderTopK":
        k = int(state["k"]) if "k" in state else (config or {}).get("k")
        return assemble(file, W_enc, W_dec, b_enc, b_dec, k=required_k(file, k), metadata=metadata)
    (threshold,) = tensors_of(file, state, "threshold")
    if threshold < 0:
        metadata["notes"] = [
            "the threshold was never set in training (-1): codes are plain relu, as dictionary_learning gives them"
        ]
    return assemble(
        file, W_enc, W_dec, b_enc, b_dec, threshold=torch.clamp(threshold, min=0), metadata=metadata
    )


def _config(file: Path) -> dict[str, Any] | None:
    """Return the settings of the trainer from config.json next to the file, or None."""
    path = file.with_name("config.json")
    if not path.is_file():
        return None
    config = read_json(path, "config")
    trainer = config.get("trainer") if isinstance(config, dict) else None
    return trainer if isinstance(trainer, dict) else None


def _kind(file: Path, state: dict[str, Tensor], config: dict[str, Any] | None) -> str:
    if config and config.get("dict_class"):
        return str(config["dict_class"])
    if "r_mag" in state:
        return "GatedAutoEncoder"
    if set(state) >= _LINEAR and "bias" in state:
        return "AutoEncoder"
    if state.get("threshold") is not None and state["threshold"].ndim == 1:
        return "JumpReluAutoEncoder"
    raise ForeignArtifactError(
        f"{file}: its tensors fit several classes of dictionary_learning, and there is no config.json "
        "with trainer.dict_class next to it",
        "put the config.json of the training next to the file",
    )
