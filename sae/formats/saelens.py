"""A folder of sae-lens: `cfg.json` and `sae_weights.safetensors`, of any version, trained or exported.

Besides `standard`, `jumprelu` and `topk`, which are opened as they are: configs of versions before 6.0
(flat; hook_point, activation_fn_str with activation_fn_kwargs, normalize_activations true or false; the tensor
scaling_factor multiplies the codes in the decoder), `gated` (as a threshold: see
dictionary_learning.py), and training checkpoints of `batchtopk` and `matryoshka_batchtopk`, whose
tensor topk_threshold is the running threshold. The input scale `expected_average_only_in` is folded
if `activation_scaler.json` exists, as `fold_activation_norm_scaling_factor` does:
W_enc · s, W_dec / s, b_dec / s. Scales that differ from row to row cannot be folded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dermaudit.errors import ForeignArtifactError
from dermaudit.files import read_json

from ..inference.model import CFG, WEIGHTS, ThresholdSAE, TopKSAE, read_folder
from .assemble import assemble, fold_norm, required_k, tensors_of

NAME = "sae-lens"

_SCALER = "activation_scaler.json"
_RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_KINDS = ("standard", "jumprelu", "topk", "gated", *_BATCH)
#: Entries of a flat config about the model, not about the SAE.
_ABOUT = (
    "hook_name", "hook_layer", "model_name", "dataset_path", "context_size", "sae_lens_version",
    "sae_lens_training_version", "prepend_bos", "neuronpedia_id",
)  # fmt: skip


def matches(path: Path) -> bool:
    """Return whether the file or folder is of this family."""
    folder = _folder(path)
    return (folder / CFG).is_file() and (folder / WEIGHTS).is_file()


def read(path: Path) -> ThresholdSAE | TopKSAE:
    """Return the SAE. ForeignArtifactError for another architecture or a scale that cannot be folded."""
    folder = _folder(path)
    cfg, state = read_folder(folder)
    cfg = _modern(cfg, folder / CFG)
    kind = cfg["architecture"]
    if kind not in _KINDS:
        raise ForeignArtifactError(
            f"{folder / CFG} is a '{kind}' SAE; {', '.join(_KINDS)} can be read"
        )
    where = folder / WEIGHTS
    names = ("W_enc", "W_dec", "b_dec")
    tensors: dict[str, Tensor] = dict(zip(names, tensors_of(where, state, *names), strict=True))
    metadata = dict(cfg["metadata"])
    notes: list[str] = []
    _scale_codes(cfg, state, tensors, where)
    if kind == "gated":
        r, b_mag, b_gate = tensors_of(where, state, "r_mag", "b_mag", "b_gate")
        tensors["W_enc"] = tensors["W_enc"] * r.exp()
        tensors["b_enc"], tensors["threshold"] = b_mag, b_mag - r.exp() * b_gate
    else:
        (tensors["b_enc"],) = tensors_of(where, state, "b_enc")
    if kind == "jumprelu":
        log = "log_threshold" in state and "threshold" not in state
        (threshold,) = tensors_of(where, state, "log_threshold" if log else "threshold")
        tensors["threshold"] = threshold.exp() if log else threshold
    scale = _input_scale(cfg, folder)
    if scale is not None:
        tensors["W_enc"] = tensors["W_enc"] * scale
        tensors["W_dec"], tensors["b_dec"] = tensors["W_dec"] / scale, tensors["b_dec"] / scale
        notes.append(f"the input scale {scale:.6g} of the training was folded into the weights")
    rescale = kind in ("topk", *_BATCH) and bool(cfg.get("rescale_acts_by_decoder_norm"))
    if rescale:
        tensors = fold_norm(tensors)
    if kind in _BATCH:
        (threshold,) = tensors_of(where, state, "topk_threshold")
        # It is in units of the rescaled codes, which the fold of the input scale has divided by the scale.
        if rescale and scale is not None:
            threshold = threshold / scale
        tensors["threshold"] = threshold.expand(len(tensors["b_enc"]))
        metadata.setdefault("training_architecture", kind)
        notes.append(
            "the threshold is sae-lens' running mean, far too low after short training: calibrate it"
        )
    if notes:
        metadata["notes"] = [*metadata.get("notes", []), *notes]
    return assemble(
        where,
        tensors["W_enc"],
        tensors["W_dec"],
        tensors["b_enc"],
        tensors["b_dec"],
        threshold=tensors.get("threshold"),
        k=required_k(folder / CFG, cfg.get("k")) if kind == "topk" else None,
        subtract=bool(cfg.get("apply_b_dec_to_input", True)),
        metadata=metadata,
    )


def _modern(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a config of any version with `architecture`, `k`, `normalize_activations`, `metadata`."""
    cfg = {_RENAMED.get(name, name): value for name, value in cfg.items()}
    if not isinstance(cfg.get("metadata"), dict):
        cfg["metadata"] = {name: cfg[name] for name in _ABOUT if cfg.get(name) is not None}
    cfg.setdefault("architecture", "standard")
    function = cfg.get("activation_fn") or "relu"
    if function == "topk":
        cfg["architecture"] = "topk"
        cfg["k"] = (cfg.get("activation_fn_kwargs") or {}).get("k", cfg.get("k"))
    elif function != "relu":
        raise ForeignArtifactError(
            f"{path} has the activation '{function}'; relu and topk can be read"
        )
    given = cfg.get("normalize_activations")
    if isinstance(given, bool) or given is None:
        cfg["normalize_activations"] = "expected_average_only_in" if given else "none"
    return cfg


def _scale_codes(
    cfg: dict[str, Any], state: dict[str, Tensor], tensors: dict[str, Tensor], where: Path
) -> None:
    """Fold the fine-tuned factors of the codes into the decoder."""
    factor = state.get("scaling_factor", state.get("finetuning_scaling_factor"))
    if factor is None or torch.allclose(factor, torch.ones_like(factor)):
        return
    if not cfg.get("finetuning_scaling_factor"):
        raise ForeignArtifactError(
            f"{where} has a scaling_factor that {CFG} does not announce (finetuning_scaling_factor is false)",
            "sae-lens refuses it too: load the checkpoint of before the fine-tuning",
        )
    tensors["W_dec"] = tensors["W_dec"] * factor.double()[:, None]


def _input_scale(cfg: dict[str, Any], folder: Path) -> float | None:
    kind = cfg["normalize_activations"]
    if kind == "none":
        return None
    if kind != "expected_average_only_in":
        raise ForeignArtifactError(
            f"{folder / CFG} has normalize_activations = '{kind}', which differs from row to row or is kept "
            "elsewhere: it cannot be folded into the weights here",
            "covariance_whitening: fold it in sae-lens (fold_activation_whitening) and save again",
        )
    if not (folder / _SCALER).is_file():
        raise ForeignArtifactError(
            f"{folder / CFG} scales its input (normalize_activations = '{kind}'), and the factor is not "
            f"next to it ({_SCALER})",
            "fold the scale into the weights first (sae-lens: fold_activation_norm_scaling_factor)",
        )
    scale = read_json(folder / _SCALER, "activation scaler").get("scaling_factor")
    if scale is None:
        return None
    if not isinstance(scale, int | float) or not scale > 0:
        raise ForeignArtifactError(
            f"{folder / _SCALER} has scaling_factor = {scale!r}, not a number over 0"
        )
    return float(scale)


def _folder(path: Path) -> Path:
    return path.parent if path.name in (CFG, WEIGHTS) and path.is_file() else path
