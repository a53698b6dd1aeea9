"""Suppression of latents in closed form, error term kept, without any SAE library.

`x' = x + Σ_{j∈S} (z'_j − z_j) W_dec[j]` equals decode(z') + (x − decode(z)) because the other
latents cancel. For threshold SAEs only the |S| latents need encoding (4·d·|S| FLOPs a row); whether
a latent of a per-sample TopK fires depends on all the others, so there all are encoded.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dermaudit.errors import EvidenceError, UserInputError, unknown
from dermaudit.towers.splice import check_positions, prefix_tokens, replace_activation, token_slice

from .model import ThresholdSAE, TopKSAE, top_k
from .modes import MODES

if TYPE_CHECKING:
    from jaxtyping import Float

ModelT = TypeVar("ModelT", bound=nn.Module)

#: Below this many artifact-free rows a quantile of their scores is not a level (design §10).
MIN_FREE = 30


class Suppressed(NamedTuple):
    """x (…, d) after; z (…, |S|) codes before; fired (…) whether the row was changed."""

    x: Tensor
    z: Tensor
    fired: Tensor


def _latent_number(value: object) -> int:
    """Return a latent's number; UserInputError for anything that is not a whole number."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserInputError(
            f"{value!r} is not the number of a latent", "give whole numbers, such as [3, 17]"
        ) from error


class LatentSuppressor(nn.Module):
    """Suppress latents S of an SAE in rows x (n, d) or tokens x (n, tokens, d).

    Modes, of a latent that fires (z > 0):

    - `subtract`: z' = 0.
    - `mean`: z' = `level`, the mean of the artifact-free images.
    - `clamp`: z' = min(z, `level`), the 95 % quantile of the artifact-free images.
    - `scale`: z' = `level` · z; 0 removes it, 1 keeps it.
    - `reactive`: z' = 0 where the artifact score Σ_{j∈S} gate_weight_j z_j of the row is over
      `gate_level`, else z' = z (the gate of reactive P-ClArC, arXiv 2404.09601, on codes). Of tokens
      the score is the image's, from the maximum of each code over its tokens, as image codes are.

    `level`: (|S|,), a number for all, or None (0). `positions`: which tokens may change: "all",
    "patch", "cls" (the first token), "prefix" (the first `n_prefix`: class token and registers), or
    a boolean mask (tokens,) or (n, tokens). Rows in which nothing changes come back bit for bit.
    `renormalise` rescales the rows that changed to their former length (unit rows stay unit): right
    for an embedding that is compared by cosine, wrong for tokens of a residual stream.

    The weights are buffers, and `forward` is differentiable with respect to x; it computes in the
    dtype of the SAE and returns that of x. Errors: UserInputError for a mode, latent, level or
    position that cannot be.
    """

    # The buffers; `index` is there for a TopK only, `threshold` for the others.
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    index: Tensor
    threshold: Tensor
    level: Tensor
    gate_weight: Tensor
    gate_level: Tensor

    def __init__(
        self,
        sae: ThresholdSAE | TopKSAE,
        latents: Sequence[int],
        *,
        mode: str = "subtract",
        level: Tensor | float | None = None,
        renormalise: bool = True,
        gate_weight: Tensor | None = None,
        gate_level: float | None = None,
        positions: str | Tensor = "all",
        n_prefix: int = 1,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise unknown("suppression mode", mode, MODES)
        latents = [_latent_number(j) for j in latents]
        if not latents or min(latents) < 0 or max(latents) >= sae.d_sae:
            raise UserInputError(
                f"latents {latents} are not all within this SAE's 0 … {sae.d_sae - 1}"
            )
        if len(set(latents)) < len(latents):
            raise UserInputError(f"latents {latents} name one twice: it would be subtracted twice")
        if mode == "scale" and level is None:
            raise UserInputError(
                "mode 'scale' needs `level`, the factor of the codes", "0 is subtract, 1 no change"
            )
        if mode == "reactive" and gate_level is None:
            raise UserInputError(
                "mode 'reactive' needs `gate_level`, the artifact score over which a row is changed",
                "reactive_level gives the quantile of artifact-free rows",
            )
        self.mode, self.renormalise, self.latents = mode, renormalise, latents
        self.positions, self.n_prefix, self.site = positions, n_prefix, sae.hook_name
        self.k = sae.k if isinstance(sae, TopKSAE) else None
        index, dtype = torch.tensor(latents), sae.W_enc.dtype
        if isinstance(sae, TopKSAE):  # which latents fire depends on all of them
            self.register_buffer("W_enc", sae.W_enc.clone())
            self.register_buffer("b_enc", sae.b_enc.clone())
            self.register_buffer("index", index)
        else:
            self.register_buffer("W_enc", sae.W_enc[:, index].contiguous())
            self.register_buffer("b_enc", sae.b_enc[index])
            self.register_buffer("threshold", sae.threshold[index])
        self.register_buffer("W_dec", sae.W_dec[index].contiguous())
        self.register_buffer("b_dec", sae.b_dec.clone())
        self.register_buffer(
            "level", _per_latent(0.0 if level is None else level, latents, "level", dtype)
        )
        self.register_buffer(
            "gate_weight",
            _per_latent(1.0 if gate_weight is None else gate_weight, latents, "gate_weight", dtype),
        )
        self.register_buffer("gate_level", torch.tensor(gate_level or 0.0, dtype=dtype))
        if isinstance(positions, Tensor):
            _check_mask(positions)
        else:
            check_positions(positions)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    def encode(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows s"]:
        """Codes (…, |S|) of the suppressed latents alone; 0 for a row that is not finite."""
        pre = (x.to(self.W_enc.dtype) - self.b_dec) @ self.W_enc + self.b_enc
        if self.k is None:
            return torch.where(pre > self.threshold, torch.relu(pre), 0.0)
        z = top_k(pre, self.k).index_select(-1, self.index)
        return torch.where(z > 0, z, 0.0)

    def forward(self, x: Tensor, positions: str | Tensor | None = None) -> Tensor:
        """Return x with the latents suppressed; `positions` replaces the module's own."""
        return self.suppress(x, positions).x

    @torch.no_grad()
    def apply_to(self, x: Tensor, positions: str | Tensor | None = None) -> Suppressed:
        """Suppress in x without a gradient; see `suppress`."""
        return self.suppress(x, positions)

    def suppress(self, x: Tensor, positions: str | Tensor | None = None) -> Suppressed:
        """Return x (…, d) with the latents suppressed, the codes, and which rows changed; differentiable."""
        return self._suppress(x, positions, self.n_prefix)

    def _suppress(self, x: Tensor, positions: str | Tensor | None, n_prefix: int) -> Suppressed:
        z = self.encode(x)
        mask = self._mask_of(x, self.positions if positions is None else positions, n_prefix)
        seen = z if mask is None else torch.where(mask[..., None], z, 0.0)
        edited, fired = self.edit(x, self.change(seen))
        return Suppressed(edited, z, fired)

    def edit(
        self, x: Float[Tensor, "*rows d"], change: Float[Tensor, "*rows s"]
    ) -> tuple[Tensor, Tensor]:
        """(x with Σ_j change_j W_dec[j] added, where it changed): x (…, d), change (…, |S|).

        With `change(z)` of codes that are known this is `suppress` without encoding; with some of
        its columns 0, what the other latents do alone.
        """
        # Selecting, not adding zero: x + 0.0 and a re-normalised unit row are not the same bits.
        fired = (change != 0).any(-1)
        edited = x + (change @ self.W_dec).to(x.dtype)
        if self.renormalise:
            length = edited.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # nothing left: stays 0
            edited = edited * (x.norm(dim=-1, keepdim=True) / length)
        return torch.where(fired[..., None], edited, x), fired

    def change(self, z: Float[Tensor, "*rows s"]) -> Float[Tensor, "*rows s"]:
        """Return z' − z (…, |S|) for codes z; exactly 0 where a latent does not fire."""
        if self.mode == "subtract":
            return -z
        if self.mode == "scale":
            return (self.level - 1) * z
        if self.mode == "reactive":
            image = z.amax(-2, keepdim=True) if z.ndim > 2 else z
            score = (image * self.gate_weight).sum(-1, keepdim=True)
            return torch.where(score > self.gate_level, -z, 0.0)
        change = self.level - z
        if self.mode == "clamp":
            change = change.clamp(max=0)
        return torch.where(z > 0, change, 0.0)

    def _mask_of(self, x: Tensor, positions: str | Tensor, n_prefix: int) -> Tensor | None:
        """Return where a row of x may change, broadcastable to x.shape[:-1]; None for everywhere."""
        if isinstance(positions, Tensor):
            _check_mask(positions)
            if positions.shape not in (x.shape[-2:-1], x.shape[:-1]):
                raise UserInputError(
                    f"the mask of positions has the shape {tuple(positions.shape)}, x {tuple(x.shape)}",
                    "give (tokens,), or one entry for every row of x",
                )
            return positions.to(x.device)
        selected = token_slice(positions, n_prefix)
        if positions == "all":
            return None
        if x.ndim < 3:
            raise UserInputError(
                f"positions '{positions}' needs tokens (n, tokens, d); x has the shape {tuple(x.shape)}",
                "use positions='all' at a pooled site",
            )
        mask = torch.zeros(x.shape[-2], dtype=torch.bool, device=x.device)
        mask[selected] = True
        return mask

    # ---- in a model, and in a file ---------------------------------------------------------------

    @contextmanager
    def attach(
        self, model: ModelT, site: str | None = None, positions: str | Tensor | None = None
    ) -> Iterator[ModelT]:
        """Within the block the model runs with this suppressor at `site`, by default the SAE's own.

        `model` is a HookedTower or a plain open_clip model (CLIP, CustomTextCLIP, CoCa); yields it.
        Where nothing fires, its output stays bit for bit the same. The hook is removed after the
        block, also after an exception; weights, training mode and `requires_grad` are not touched.
        Raises UserInputError for an unknown site, ForeignArtifactError for another width.
        """
        site = site or self.site
        if not site:
            raise UserInputError(
                "the SAE does not name its site", "give it: attach(model, 'visual.pooled')"
            )
        n_prefix = prefix_tokens(model)

        def change(x: Tensor) -> Tensor | None:
            out = self._suppress(x, positions, n_prefix)
            return out.x if bool(out.fired.any()) else None

        with replace_activation(model, site, change, d_in=self.d_in):
            yield model

    def export_onnx(self, path: Path | str, *, tokens: int | None = None) -> Path:
        """Write the module as ONNX: input `x` (n, d), or (n, `tokens`, d); outputs `x_out`, `z`, `fired`.

        n is free. Needs the extra `onnx`; the file runs without this package and without torch.
        Errors: UserInputError when the extra is not installed, or the positions do not fit.
        """
        from .onnx_export import export

        return export(self, Path(path), tokens)


def reactive_level(z: Tensor, gate_weight: Tensor | None = None, share: float = 0.95) -> float:
    """Return the artifact score that `share` of artifact-free rows do not exceed, from their codes z (n, |S|).

    Take the rows from the split the recipe is chosen on, never from those it is scored on.
    Errors: EvidenceError when there are fewer than MIN_FREE rows.
    """
    if len(z) < MIN_FREE:
        raise EvidenceError(
            f"{len(z)} artifact-free rows are too few for the level of a reactive gate",
            f"at least {MIN_FREE} are needed",
            {"n": len(z), "needed": MIN_FREE},
        )
    score = z.sum(-1) if gate_weight is None else z @ gate_weight.to(z.dtype)
    return float(torch.quantile(score.double(), share))


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise UserInputError(f"the mask of positions is of {mask.dtype}, not boolean")


def _per_latent(value: Tensor | float, latents: list[int], name: str, dtype: torch.dtype) -> Tensor:
    given = torch.as_tensor(value, dtype=dtype)
    if given.ndim and given.shape != (len(latents),):
        raise UserInputError(
            f"`{name}` has the shape {tuple(given.shape)}; there are {len(latents)} latents"
        )
    return given.expand(len(latents)).clone()
