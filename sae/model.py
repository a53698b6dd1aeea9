"""A threshold SAE as it is used: the sae-lens `jumprelu` files without the sae-lens import.

`z = relu(p) * (p > threshold)`, `p = (x - b_dec) @ W_enc + b_enc`, `x_hat = z @ W_dec + b_dec`
(JumpReLU, arXiv 2407.14435; BatchTopK, arXiv 2412.06410, becomes this at inference).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.files import read_json, write_safetensors, write_text


@dataclass
class ThresholdSAE:
    """W_enc (d_in, d_sae), W_dec (d_sae, d_in) with unit rows, b_enc, threshold (d_sae,), b_dec (d_in,)."""

    W_enc: torch.Tensor
    W_dec: torch.Tensor
    b_enc: torch.Tensor
    b_dec: torch.Tensor
    threshold: torch.Tensor
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def hook_name(self) -> str:
        return str(self.metadata.get("hook_name", ""))

    def pre(self, x: torch.Tensor) -> torch.Tensor:
        """Pre-activations (…, d_sae) of x (…, d_in)."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes (…, d_sae) ≥ 0 of x (…, d_in)."""
        pre = self.pre(x)
        return torch.relu(pre) * (pre > self.threshold)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.W_dec + self.b_dec

    def save(self, folder: Path) -> list[Path]:
        """Write `cfg.json` and `sae_weights.safetensors`; `sae_lens.SAE.load_from_disk` opens them."""
        cfg = {
            "architecture": "jumprelu",
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": dict(sorted(self.metadata.items())),
        }
        names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        write_safetensors(
            folder / "sae_weights.safetensors",
            {name: getattr(self, name).to(torch.float32) for name in names},
        )
        write_text(folder / "cfg.json", json.dumps(cfg, indent=1, sort_keys=True) + "\n")
        return [folder / "cfg.json", folder / "sae_weights.safetensors"]

    @classmethod
    def load(cls, folder: Path | str) -> ThresholdSAE:
        """Read a folder in the sae-lens layout (`jumprelu`, or `standard` as threshold 0).

        Errors: UserInputError when there is none, ForeignArtifactError when it is another kind.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        cfg_path, weights_path = folder / "cfg.json", folder / "sae_weights.safetensors"
        if not cfg_path.is_file() or not weights_path.is_file():
            raise UserInputError(
                f"there is no sparse autoencoder at {folder} (cfg.json, sae_weights.safetensors)",
                "fit one: dermaudit fit --run RUN",
            )
        cfg = read_json(cfg_path, "SAE config")
        kind = cfg.get("architecture")
        if kind not in ("jumprelu", "standard"):
            raise ForeignArtifactError(
                f"{cfg_path} is a '{kind}' SAE; 'jumprelu' and 'standard' can be opened",
                "codes of a per-sample TopK are not pointwise: convert it to a threshold first",
            )
        scaling = cfg.get("normalize_activations") or "none"
        if scaling != "none":
            raise ForeignArtifactError(
                f"{cfg_path} scales its input (normalize_activations = '{scaling}'); its codes would be wrong here",
                "fold the scale into the weights first (sae-lens: fold_activation_norm_scaling_factor)",
            )
        try:
            tensors = load_file(weights_path)
        except SafetensorError as error:
            raise ForeignArtifactError(
                f"{weights_path} is cut off or not safetensors ({error})"
            ) from error
        if kind == "standard" and "b_enc" in tensors:
            tensors["threshold"] = torch.zeros_like(tensors["b_enc"])
        names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        missing = [name for name in names if name not in tensors]
        d, h = cfg.get("d_in"), cfg.get("d_sae")
        wanted = dict(zip(names, ((d, h), (h, d), (h,), (d,), (h,)), strict=True))
        bad = [name for name in names if name in tensors and tensors[name].shape != wanted[name]]
        if missing or bad:
            raise ForeignArtifactError(
                f"{weights_path} does not fit {cfg_path} (d_in {d}, d_sae {h}): "
                f"missing {', '.join(missing) or 'nothing'}, of another shape {', '.join(bad) or 'nothing'}"
            )
        if not cfg.get("apply_b_dec_to_input", True):
            # The same map with the subtraction folded into the encoder bias.
            tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
        return cls(*(tensors[name].float() for name in names), metadata=cfg.get("metadata", {}))
