"""An SAE as it is used, without the sae-lens import: the files of sae-lens `jumprelu`, `standard`, `topk`.

`p = (x - b_dec) @ W_enc + b_enc` and `x_hat = z @ W_dec + b_dec` for all kinds. A `ThresholdSAE` is
pointwise, `z = relu(p) * (p > threshold)` (JumpReLU, arXiv 2407.14435; BatchTopK, arXiv 2412.06410,
becomes this at inference); a `ReLUSAE` is one whose thresholds are 0. A `TopKSAE` keeps the k largest
of a row, `z = relu(p)` there and 0 elsewhere (arXiv 2406.04093): whether one latent fires depends on
the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.files import read_json, write_safetensors, write_text

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

#: The version of sae-lens whose layout is written. sae-lens treats a file without a version as one from
#: before 6.0 and drops its metadata, which includes the hook point.
LAYOUT = "6.54.0"


@dataclass
class LinearSAE:
    """What all kinds have: W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_enc (d_sae,), b_dec (d_in,)."""

    W_enc: torch.Tensor
    W_dec: torch.Tensor
    b_enc: torch.Tensor
    b_dec: torch.Tensor

    architecture: ClassVar[str]
    tensors: ClassVar[tuple[str, ...]] = ("W_enc", "W_dec", "b_enc", "b_dec")

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def hook_name(self) -> str:
        """The site whose activations the SAE was fitted on; empty if its file does not name it."""
        return str(self._metadata().get("hook_name", ""))

    def pre(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_sae"]:
        """Pre-activations (…, d_sae) of x (…, d_in)."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def decode(self, z: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_in"]:
        """Rows (…, d_in) of codes z (…, d_sae)."""
        return z @ self.W_dec + self.b_dec

    def save(self, folder: Path) -> list[Path]:
        """Write `cfg.json` and `sae_weights.safetensors`; `sae_lens.SAE.load_from_disk` opens them."""
        cfg = {
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            **self._own_cfg(),
            "sae_lens_version": LAYOUT,
            "metadata": dict(sorted(self._metadata().items())),
        }
        write_safetensors(
            folder / WEIGHTS,
            {name: getattr(self, name).to(torch.float32) for name in self.tensors},
        )
        write_text(folder / CFG, json.dumps(cfg, indent=1, sort_keys=True) + "\n")
        return [folder / CFG, folder / WEIGHTS]

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a folder in the sae-lens layout that holds this kind.

        Errors: UserInputError when there is none, ForeignArtifactError when it is another kind.
        """
        folder = Path(folder)
        cfg, tensors = read_folder(folder)
        _refuse_kind(cfg, folder / CFG, cls)
        sae = build(cfg, tensors, folder)
        assert isinstance(sae, cls)
        return sae

    def _metadata(self) -> dict[str, Any]:
        # A field of the subclasses: after the fields without a default it must come last.
        return getattr(self, "metadata", {})

    def _own_cfg(self) -> dict[str, Any]:
        return {}


@dataclass
class ThresholdSAE(LinearSAE):
    """Pointwise: threshold (d_sae,). Fitted here, the rows of W_dec have unit length."""

    threshold: torch.Tensor
    metadata: dict[str, Any] = field(default_factory=dict)

    architecture: ClassVar[str] = "jumprelu"
    tensors: ClassVar[tuple[str, ...]] = (*LinearSAE.tensors, "threshold")

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_sae"]:
        """Codes (…, d_sae) ≥ 0 of x (…, d_in)."""
        pre = self.pre(x)
        return torch.relu(pre) * (pre > self.threshold)


@dataclass
class ReLUSAE(ThresholdSAE):
    """`z = relu(p)`: a ThresholdSAE of threshold 0, which its file (`standard`) does not hold."""

    threshold: torch.Tensor = field(init=False)

    architecture: ClassVar[str] = "standard"
    tensors: ClassVar[tuple[str, ...]] = LinearSAE.tensors

    def __post_init__(self) -> None:
        self.threshold = torch.zeros_like(self.b_enc)


@dataclass
class TopKSAE(LinearSAE):
    """At most `k` latents a row; k is an int of 1 … d_sae."""

    k: int
    metadata: dict[str, Any] = field(default_factory=dict)

    architecture: ClassVar[str] = "topk"

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_sae"]:
        """Codes (…, d_sae) ≥ 0 of x (…, d_in); fewer than k where fewer are positive."""
        return top_k(self.pre(x), self.k)

    def _own_cfg(self) -> dict[str, Any]:
        # The decoder norms are in the encoder already, or the selection never saw them.
        return {"k": self.k, "rescale_acts_by_decoder_norm": False}


def top_k(pre: Float[Tensor, "*rows d_sae"], k: int) -> Float[Tensor, "*rows d_sae"]:
    """Return relu of the k largest entries of each row of `pre` (…, h), and 0 elsewhere."""
    values, index = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, index, torch.relu(values))


def load_sae(folder: Path | str) -> ThresholdSAE | TopKSAE:
    """Read the SAE of a folder in the sae-lens layout, whichever kind it is.

    `standard` is a ThresholdSAE too (`ReLUSAE`). `rescale_acts_by_decoder_norm` (a `topk` that selects on
    p·‖W_dec‖) is folded into the encoder, with decoder rows of unit length: the same codes.
    Errors: UserInputError when there is none; ForeignArtifactError for another architecture, an
    input scaling that is not in the weights, and tensors that do not fit the config.
    """
    folder = Path(folder)
    cfg, tensors = read_folder(folder)
    _refuse_kind(cfg, folder / CFG, ThresholdSAE, TopKSAE)
    return build(cfg, tensors, folder)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(config, tensors) of a folder in the sae-lens layout, as they are."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / CFG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserInputError(
            f"there is no sparse autoencoder at {folder} (cfg.json, sae_weights.safetensors)",
            "fit one: dermaudit fit --run RUN",
        )
    cfg = read_json(folder / CFG, "SAE config")
    if not isinstance(cfg, dict):
        raise ForeignArtifactError(f"{folder / CFG} is not the config of an SAE (a JSON object)")
    try:
        return cfg, load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ForeignArtifactError(
            f"{folder / WEIGHTS} is cut off or not safetensors ({error})"
        ) from error


def _refuse_kind(cfg: dict[str, Any], path: Path, *wanted: type[LinearSAE]) -> None:
    kind = cfg.get("architecture")
    known = [name for name, cls in _KINDS.items() if issubclass(cls, wanted)]
    if kind not in known:
        listed = " and ".join(f"'{name}'" for name in known)
        hint = (
            "codes of a per-sample TopK are not pointwise; here a threshold SAE is needed "
            "(BatchTopK, JumpReLU, ReLU)"
            if kind == TopKSAE.architecture
            else "dermaudit sae import reads other layouts"
        )
        raise ForeignArtifactError(f"{path} is a '{kind}' SAE; {listed} can be opened", hint)


def build(
    cfg: dict[str, Any], tensors: dict[str, torch.Tensor], folder: Path
) -> ThresholdSAE | TopKSAE:
    """Build the SAE of a sae-lens config of one of the three architectures and its tensors."""
    scaling = cfg.get("normalize_activations") or "none"
    if scaling != "none":
        raise ForeignArtifactError(
            f"{folder / CFG} scales its input (normalize_activations = '{scaling}'); its codes would be wrong here",
            "fold the scale into the weights first (sae-lens: fold_activation_norm_scaling_factor)",
        )
    kind = cfg["architecture"]
    cls = _KINDS[kind]
    d, h = cfg.get("d_in"), cfg.get("d_sae")
    shapes = {"W_enc": (d, h), "W_dec": (h, d), "b_enc": (h,), "b_dec": (d,), "threshold": (h,)}
    missing = [name for name in cls.tensors if name not in tensors]
    bad = [n for n in cls.tensors if n in tensors and tuple(tensors[n].shape) != shapes[n]]
    if missing or bad:
        raise ForeignArtifactError(
            f"{folder / WEIGHTS} does not fit {folder / CFG} (d_in {d}, d_sae {h}): "
            f"missing {', '.join(missing) or 'nothing'}, of another shape {', '.join(bad) or 'nothing'}"
        )
    held = {name: tensors[name].float() for name in cls.tensors}
    wrong = [name for name, tensor in held.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise ForeignArtifactError(
            f"{folder / WEIGHTS} holds numbers that are not finite in {', '.join(wrong)}",
            "the training that wrote it diverged: take an earlier checkpoint",
        )
    if not cfg.get("apply_b_dec_to_input", True):
        # The same map with the subtraction folded into the encoder bias.
        held["b_enc"] = held["b_enc"] + held["b_dec"] @ held["W_enc"]
    metadata = cfg.get("metadata") or {}
    if issubclass(cls, ThresholdSAE):
        return cls(**held, metadata=metadata)
    k = cfg.get("k")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(held["b_enc"]):
        raise ForeignArtifactError(
            f"{folder / CFG} has k = {k!r}: a per-sample TopK needs a whole number of 1 … {h}"
        )
    if cfg.get("rescale_acts_by_decoder_norm"):
        norm = held["W_dec"].norm(dim=1).clamp_min(1e-8)
        held["W_enc"], held["b_enc"] = held["W_enc"] * norm, held["b_enc"] * norm
        held["W_dec"] = held["W_dec"] / norm[:, None]
    return TopKSAE(**held, k=k, metadata=metadata)


_KINDS: dict[str, type[LinearSAE]] = {
    "jumprelu": ThresholdSAE,
    "standard": ReLUSAE,
    "topk": TopKSAE,
}
