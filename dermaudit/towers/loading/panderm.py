"""The PanDerm image tower (ViT-B/16 and ViT-L/16), so that its state dicts load without their fork.

BEiT-like blocks with LayerScale, query and value biases and none for the key; fixed positions; the
final LayerNorm over all tokens, the mean of the patch tokens, the same LayerNorm once more, a
linear head. Yan et al., PanDerm, arXiv 2410.15038; DermFM-Zero, arXiv 2602.10624.

`nn.Identity` modules stand where a hook point taps a value that the published class computes from
bare parameters: they add no key to the state dict and change no bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dermaudit.console import say
from dermaudit.errors import ForeignArtifactError, unknown

from .weights import below, few, read_state

#: keys that only this tower has; a checkpoint is recognised by them and not by its name, since a
#: renamed copy of the published files must open too.
MARKS = ("patch_embed.proj.weight", "blocks.0.gamma_1", "blocks.0.attn.q_bias", "head.weight")


#: the two published sizes (facts of arXiv 2410.15038; the large one has about 304 M parameters).
SIZES: dict[str, dict[str, int]] = {
    "base": {"width": 768, "layers": 12, "heads": 12, "hidden": 3072},
    "large": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
}
#: what a file of the image tower alone may leave out: the head belongs to the joint embedding, and
#: the positions are computed.
_OPTIONAL = ("head.", "pos_embed", "norm.")


class Attention(nn.Module):
    """Self-attention with one qkv matrix and biases for q and v only (BEiT, arXiv 2106.08254)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, token, width) -> (n, token, width)."""
        n, tokens, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).reshape(n, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + gamma_1 * attn(norm1(x)), then + gamma_2 * mlp(norm2(x))."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)
        self.gamma_1 = nn.Parameter(torch.full((width,), 0.1))
        self.gamma_2 = nn.Parameter(torch.full((width,), 0.1))
        self.scaled_attn = nn.Identity()
        self.scaled_mlp = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        x = x + self.scaled_attn(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.scaled_mlp(self.gamma_2 * self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Patches of an image as tokens."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """Apply the module."""
        return self.proj(images).flatten(2).transpose(1, 2)


class PanDermVisual(nn.Module):
    """Images (n, 3, image_size, image_size) -> embeddings (n, output_dim), not normalised."""

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        output_dim: int = 512,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        self.image_size = (image_size, image_size)
        self.grid_size = (side, side)
        self.width = width
        self.output_dim = output_dim
        self.patch_embed = PatchEmbed(patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        # Fixed, not trained; a parameter, since the published state dict holds it.
        self.pos_embed = nn.Parameter(sin_cos_positions(side, width), requires_grad=False)
        self.scaled_tokens = nn.Identity()
        self.blocks = nn.ModuleList(Block(width, heads, hidden, eps) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.normed_tokens = nn.Identity()
        self.head = nn.Linear(width, output_dim)
        self.grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside the blocks but compute them again backward: less memory, the
        same gradients. The name and the meaning of open_clip's towers.
        """
        self.grad_checkpointing = enable

    def forward(self, images: Tensor) -> Tensor:
        """Apply the module."""
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        x = self.scaled_tokens(x)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.normed_tokens(self.norm(x))
        # The same LayerNorm again, on the mean of the patch tokens: there is no separate fc_norm.
        return self.head(self.norm(x[:, 1:].mean(dim=1)))


def sin_cos_positions(side: int, width: int) -> Tensor:
    """Return fixed 2-D sine-cosine positions (1, 1 + side², width); the row of the class token is zero."""
    quarter = width // 4
    omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    line = torch.arange(side, dtype=torch.float64)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (columns, rows)]
    table = torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table])[None].float()


def is_panderm(keys: Mapping[str, object] | set[str], prefix: str = "visual.") -> bool:
    """Whether a state dict holds a PanDerm tower below `prefix`."""
    return all(prefix + mark in keys for mark in MARKS)


def panderm_from_state(state: Mapping[str, Tensor], head_width: int = 64) -> PanDermVisual:
    """Build the tower from its own state dict (no prefix) and load it strictly.

    The sizes are read from the weights: the published JSON of the large tower names those of the
    base tower. `head_width` cannot be read from weights; it is 64 in the published towers.
    Errors: ForeignArtifactError when keys or shapes do not fit the class.
    """
    needed = (*MARKS, "pos_embed", "blocks.0.mlp.fc1.weight")
    absent = [key for key in needed if key not in state]
    if absent:
        raise ForeignArtifactError(f"not a PanDerm tower: the state dict lacks {', '.join(absent)}")
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    numbers = {int(key.split(".")[1]) for key in state if key.startswith("blocks.")}
    tower = PanDermVisual(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        layers=max(numbers) + 1,
        heads=max(1, width // head_width),
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        output_dim=state["head.weight"].shape[0],
    )
    try:
        tower.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise ForeignArtifactError(f"not a PanDerm tower: {error}") from error
    return tower


class KeyDifferences(NamedTuple):
    """What a start from a file did not use: `missing` keys of the tower keep their first values,
    `unused` keys of the file were not asked for.
    """

    missing: list[str]
    unused: list[str]


def panderm_visual(
    size: str, output_dim: int, weights: Path | None = None, image_size: int = 224
) -> PanDermVisual:
    """Build a tower to train, "base" (ViT-B/16) or "large" (ViT-L/16), from scratch or from `weights`.

    `weights`: a file of the published image tower, alone or with the rest of a model; what it
    leaves out (mostly the head) is reported on stderr. From scratch: truncated normal of .02, the head
    scaled by .001, from torch's global seed. Errors: UserInputError for an unknown size;
    ForeignArtifactError for a file of another tower.
    """
    if size not in SIZES:
        raise unknown("size of PanDerm", size, SIZES)
    visual = PanDermVisual(image_size=image_size, output_dim=output_dim, **SIZES[size])
    _first_values(visual)
    if weights is not None:
        left_out = start_from(visual, weights)
        for what, keys in zip(("keeps its first values for", "leaves out"), left_out, strict=True):
            if keys:
                say(f"  {Path(weights).name}: the start {what} {_by_part(keys)}")
    return visual


def _by_part(keys: list[str]) -> str:
    """Return keys grouped by the part of the model that they belong to, with their number."""
    parts = Counter(key.removeprefix("module.").split(".")[0] for key in keys)
    return ", ".join(f"{part}.* ({n})" if n > 1 else part for part, n in parts.items())


def start_from(visual: PanDermVisual, path: Path) -> KeyDifferences:
    """Load the weights of `path` into `visual` as far as they are its own.

    The tower is found by its keys, whatever their prefix (`visual.`, `encoder.`, …). A head
    of another width and positions of another grid are left out: they are initialised or computed.
    Errors: ForeignArtifactError when there is no such tower in the file, or one of another size.
    """
    state = read_state(Path(path))
    mark = "blocks.0.gamma_1"
    prefixes = sorted((k[: -len(mark)] for k in state if k.endswith(mark)), key=len)
    if not prefixes:
        raise ForeignArtifactError(
            f"{path} holds no PanDerm tower: no key ends in {mark} (it has {few(sorted(state))})",
            "give the file of the published image tower",
        )
    # A file of the pretraining holds the student's encoder and others beside it (a teacher, an
    # average); the encoder is the tower.
    prefix = next((p for p in prefixes if p.endswith("encoder.")), prefixes[0])
    found, target = below(state, prefix), visual.state_dict()
    fits = {k: v for k, v in found.items() if k in target and v.shape == target[k].shape}
    wrong = [
        f"{k} {tuple(found[k].shape)} instead of {tuple(target[k].shape)}"
        for k in target
        if k in found and k not in fits and not k.startswith(("head.", "pos_embed"))
    ]
    missing = [k for k in target if k not in found and not k.startswith(_OPTIONAL)]
    more = {k.split(".")[1] for k in found if k.startswith("blocks.") and k not in target}
    beyond = sorted(f"blocks.{n}" for n in more if int(n) >= len(visual.blocks))
    if wrong or missing or beyond:
        faults = {"wrong shape": wrong, "missing": missing, "unexpected": beyond}
        listed = "; ".join(f"{what} {few(keys)}" for what, keys in faults.items() if keys)
        raise ForeignArtifactError(
            f"{path} holds another tower: {listed}", "choose the other size (base or large)"
        )
    visual.load_state_dict(fits, strict=False)
    unused = [k for k in state if not (k.startswith(prefix) and k[len(prefix) :] in fits)]
    return KeyDifferences([k for k in target if k not in fits], unused)


def _first_values(visual: PanDermVisual) -> None:
    """Initialise: truncated normal of .02 for matrices and the class token, zero biases, a small head."""
    for module in visual.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patches = visual.patch_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    assert patches.bias is not None
    nn.init.zeros_(patches.bias)
    nn.init.trunc_normal_(visual.cls_token, std=0.02)
    with torch.no_grad():
        visual.head.weight.mul_(0.001)
