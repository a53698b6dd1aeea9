"""A folder of EleutherAI's sparsify (PyPI eai-sparsify 1.3): `sae.safetensors` and `cfg.json`.

Tensors encoder.weight (h, d), encoder.bias (h,), W_dec (h, d), b_dec (d,); settings d_in, k,
activation (`topk`, or `groupmax`), transcode, skip_connection, older files `signed`.
z = top-k of relu(W_e (x − b_dec) + b_e), x̂ = z W_dec + b_dec.
"""

from __future__ import annotations

from pathlib import Path

from dermaudit.errors import ForeignArtifactError
from dermaudit.files import read_json

from ..inference.model import ThresholdSAE, TopKSAE
from .assemble import assemble, required_k, tensors_of, transposed

NAME = "sparsify"

_WEIGHTS, _CFG = "sae.safetensors", "cfg.json"
_KEYS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")

#: Settings with which the codes are not a TopK of one layer for each sample.
_OTHER = {
    "transcode": "a transcoder: it predicts another layer than it reads",
    "skip_connection": "a coder with a skip connection: its output is not made of latents alone",
    "signed": "a signed TopK: its codes may be negative",
}


def matches(path: Path) -> bool:
    """Return whether the file or folder is of this family."""
    return (_folder(path) / _WEIGHTS).is_file()


def read(path: Path) -> ThresholdSAE | TopKSAE:
    """Return the SAE. ForeignArtifactError if its codes cannot be represented."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _folder(path)
    cfg = read_json(folder / _CFG, "the settings next to sae.safetensors,")
    for setting, what in _OTHER.items():
        if cfg.get(setting):
            raise ForeignArtifactError(f"{folder / _CFG} is of {what}")
    if (cfg.get("activation") or "topk") != "topk":
        raise ForeignArtifactError(
            f"{folder / _CFG} has the activation '{cfg['activation']}'; 'topk' can be read",
            "groupmax keeps the largest of each group: neither a threshold nor a TopK of the row",
        )
    where = folder / _WEIGHTS
    try:
        state = load_file(where)
    except SafetensorError as error:
        raise ForeignArtifactError(f"{where} is cut off or not safetensors ({error})") from error
    encoder, encoder_bias, decoder, bias = tensors_of(where, state, *_KEYS)
    return assemble(
        where,
        transposed(where, encoder),
        decoder,
        encoder_bias,
        bias,
        k=required_k(folder / _CFG, cfg.get("k")),
        metadata={"imported_from": NAME, "training_architecture": "topk"},
    )


def _folder(path: Path) -> Path:
    return path.parent if path.name in (_WEIGHTS, _CFG) and path.is_file() else path
