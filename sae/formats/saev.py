"""A file of saev (OSU-NLP-Group): one line of JSON, then torch.save of the state dict.

W_enc (d, h), W_dec (h, d), b_enc, b_dec. Five layouts of the header, `schema`: none (a flat config
with d_vit, exp_factor: PyPI saev 0.1, ReLU, and the encoder sees x − b_dec), 1 (`cls` is the
activation), 2–5 (`cfg.activation` = {cls, params}); from 1 on the encoder of today's saev sees x
itself. TopK keeps the k largest of a row. BatchTopK of schema 2 is the same thing; later ones save
`activation.threshold` and use it as a pointwise threshold at inference (relu while it is not over 0).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dermaudit.errors import ForeignArtifactError

from ..inference.model import ThresholdSAE, TopKSAE
from .assemble import assemble, required_k, tensors_of
from .checkpoint import load_checkpoint, torch_file

NAME = "saev"

_KEYS = ("W_enc", "W_dec", "b_enc", "b_dec")
_ACTIVATIONS = ("Relu", "TopK", "BatchTopK")
_SCHEMAS = (None, 1, 2, 3, 4, 5)


def matches(path: Path) -> bool:
    """Return whether the file or folder is of this family."""
    return _header(path) is not None


def read(path: Path) -> ThresholdSAE | TopKSAE:
    """Return the SAE. ForeignArtifactError if its codes cannot be represented."""
    found = _header(path)
    assert found is not None, "call matches() first"
    file, header, start = found
    schema = header.get("schema")
    if schema not in _SCHEMAS:
        raise ForeignArtifactError(f"{file} has saev's schema {schema!r}; none and 1 … 5 are known")
    activation, k = _activation(header)
    if activation not in _ACTIVATIONS:
        raise ForeignArtifactError(
            f"{file} has saev's activation '{activation}'; {', '.join(_ACTIVATIONS)} can be read"
        )
    state = load_checkpoint(file, start)
    if not isinstance(state, dict):
        raise ForeignArtifactError(f"{file} holds no state dict behind its header")
    W_enc, W_dec, b_enc, b_dec = tensors_of(file, state, *_KEYS)
    metadata: dict[str, Any] = {
        "imported_from": NAME,
        "saev_schema": schema,
        "training_architecture": activation.lower(),
    }
    notes: list[str] = []
    threshold = None
    k = required_k(file, k) if activation != "Relu" else None
    if schema == 1:
        # The header does not contain the commit that wrote it.
        notes.append(
            "early code of this schema encoded x - b_dec; read as today's saev reads it, encoding x"
        )
    if activation == "TopK":
        notes.append("saev keeps negative pre-activations among the k largest; here they are 0")
    elif activation == "BatchTopK" and "activation.threshold" in state:
        threshold, k = max(float(state["activation.threshold"]), 0.0), None
    elif activation == "BatchTopK" and schema != 2:
        raise ForeignArtifactError(
            f"{file} is a BatchTopK of saev without a threshold: its codes depend on the other rows of the batch",
            "save it with a saev that keeps activation.threshold (schema 5)",
        )
    if notes:
        metadata["notes"] = notes
    return assemble(
        file,
        W_enc,
        W_dec,
        b_enc,
        b_dec,
        threshold=threshold,
        k=k,
        subtract=schema is None,
        metadata=metadata,
    )


def _activation(header: dict[str, Any]) -> tuple[str, Any]:
    """Return (class name, k or None) of a header of any schema."""
    cfg = header.get("cfg") or {}
    given = cfg.get("activation")
    if isinstance(given, dict):
        return str(given.get("cls")), (given.get("params") or {}).get("top_k")
    if header.get("schema") == 1:
        return str(header.get("cls")), cfg.get("top_k", 32)
    return "Relu", None


def _header(path: Path) -> tuple[Path, dict[str, Any], int] | None:
    """Return (file, header, start of the torch file), or None if it is not a file of saev."""
    file = torch_file(path)
    if file is None:
        return None
    with file.open("rb") as handle:
        if handle.read(1) != b"{":
            return None
        handle.seek(0)
        line = handle.readline(1 << 20)
    try:
        header = json.loads(line)
    except ValueError:
        return None
    if not isinstance(header, dict) or not ("cfg" in header or "d_vit" in header):
        return None
    return file, header, len(line)
