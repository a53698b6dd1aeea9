"""Checkpoints as other programs write them, with random weights, and one that must not be unpickled."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

D, H, K = 8, 20, 4
X = torch.randn(300, D, generator=torch.Generator().manual_seed(9))


class Weights:
    """Random weights as torch (the files) and as float64 numpy (the formulas)."""

    def __init__(self, seed: int = 0, unit: bool = False) -> None:
        g = torch.Generator().manual_seed(seed)
        self.We, self.Wd = torch.randn(H, D, generator=g), torch.randn(H, D, generator=g)
        if unit:
            self.Wd = torch.nn.functional.normalize(self.Wd, dim=1)
        self.be, self.bd = 0.3 * torch.randn(H, generator=g), 0.3 * torch.randn(D, generator=g)

    def pre(self, subtract: bool) -> np.ndarray:
        x = X.double().numpy() - (self.bd.double().numpy() if subtract else 0.0)
        return x @ self.We.double().numpy().T + self.be.double().numpy()

    def decode(self, z: np.ndarray) -> np.ndarray:
        return z @ self.Wd.double().numpy() + self.bd.double().numpy()


def dncbm_state(w: Weights, components: int = 1) -> OrderedDict:
    stack = lambda t: torch.stack([t] * components)  # noqa: E731
    return OrderedDict(
        tied_bias=stack(w.bd), **{
            "pre_encoder_bias._bias_reference": stack(w.bd),
            "encoder._weight": stack(w.We), "encoder._bias": stack(w.be),
            "decoder._weight": stack(w.Wd.T.contiguous()),
            "post_decoder_bias._bias_reference": stack(w.bd),
        }
    )  # fmt: skip


def linear(w: Weights, **more) -> dict[str, torch.Tensor]:
    return {
        "encoder.weight": w.We,
        "encoder.bias": w.be,
        "decoder.weight": w.Wd.T.contiguous(),
        **more,
    }


def write_dictionary(folder: Path, kind: str | None, state: dict) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "ae.pt")
    if kind:
        trainer = {"dict_class": kind, "k": K, "lm_name": "somebody/model"}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    return folder


def write_sparsify(folder: Path, w: Weights, dtype=torch.float32, **cfg) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    state = {"encoder.weight": w.We, "encoder.bias": w.be, "W_dec": w.Wd, "b_dec": w.bd}
    save_file({n: t.to(dtype).contiguous() for n, t in state.items()}, folder / "sae.safetensors")
    cfg = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": H,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
        **cfg,
    }
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def write_saev(path: Path, w: Weights, header: dict, **more) -> Path:
    state = {"W_enc": w.We.T.contiguous(), "b_enc": w.be, "W_dec": w.Wd, "b_dec": w.bd, **more}
    with path.open("wb") as handle:
        handle.write(json.dumps(header).encode() + b"\n")
        torch.save(state, handle)
    return path


FLAT = {"d_vit": D, "exp_factor": 2, "sparsity_coeff": 4e-4, "n_reinit_samples": 10, "seed": 0}


def header(cls: str, schema: int = 5, **params) -> dict:
    activation = {"cls": cls, "params": {**params, "sparsity": {"cls": "NoSparsity", "params": {}}}}
    return {
        "schema": schema,
        "cfg": {"d_model": D, "d_sae": H, "activation": activation},
        "lib": "1",
    }


def overcomplete_state(w: Weights, **more) -> dict[str, torch.Tensor]:
    return {
        "encoder.final_block.0.weight": w.We, "encoder.final_block.0.bias": w.be,
        "dictionary._weights": w.Wd * 1.01, "dictionary.multiplier": torch.tensor(0.4), **more,
    }  # fmt: skip


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (eval, (f"open({str(self.target)!r}, 'w').close()",))
