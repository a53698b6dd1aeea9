"""Tokens of an open_clip image tower, whole or of visible cells only, and texts without their padding.

A tower is run as it is; hooks on the modules of the tap table take tokens out (behind the patch
embedding) and read them (at the end). So every family that the table knows can be trained, and the
tower's own forward stays the only one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from dermaudit.errors import ForeignArtifactError
from dermaudit.towers.open_clip_model import ImageTower, OpenClipModel
from dermaudit.towers.taps import final_map, visual_taps


class Tokens(NamedTuple):
    """`first` (n, p, d) class token and registers (p may be 0), `cells` (n, c, d) row-major, both after
    the last norm; `embedding` (n, e), not of unit length.
    """

    first: Tensor
    cells: Tensor
    embedding: Tensor


class TokenReader:
    """Reads the tokens of `visual`. `grid` (rows, columns) and `n_first` are known after one forward
    of a blank image of `image_size`.

    Errors: ForeignArtifactError for a tower without a grid of tokens.
    """

    def __init__(self, visual: ImageTower, image_size: int) -> None:
        taps = visual_taps(visual)
        trunk = getattr(visual, "trunk", None)
        self.family = taps.family
        # XCiT and convolutional trunks mix neighbouring cells: they need the whole grid.
        self.can_drop = taps.family in ("open_clip ViT", "PanDerm") or (
            trunk is not None and type(trunk).__name__ == "VisionTransformer"
        )
        self._entry = next((t.module for t in taps.taps if t.site == "visual.embed"), None)
        # XCiT puts its class token in front after its blocks, without counting it as a prefix.
        self.n_first = int(hasattr(trunk, "cls_attn_blocks")) or taps.n_prefix_tokens
        if taps.family == "opaque" or getattr(visual, "attn_pool", None) is not None:
            raise ForeignArtifactError(
                f"the image tower {type(visual).__name__} has no grid of tokens",
                "take a ViT, XCiT or convolutional tower",
            )
        training = visual.training
        with torch.no_grad():
            p = next(visual.parameters())
            blank = torch.zeros(1, 3, image_size, image_size, dtype=p.dtype, device=p.device)
            seen = self.read(visual.eval(), blank)
        visual.train(training)
        self.d = seen.cells.shape[-1]
        n = seen.cells.shape[1]
        self.grid = taps.grid if taps.grid and taps.grid[0] * taps.grid[1] == n else _square(n)

    def read(self, visual: ImageTower, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """Tokens of images (n, 3, s, s); with `keep` (n, v), ascending cells, the tower computes
        those (and the first tokens) alone. Only where `can_drop`.
        """
        seen: list[Tensor] = []

        def note(module: nn.Module, args: object, output: Tensor) -> None:
            seen.append(output)

        def drop(module: nn.Module, args: object, output: Tensor) -> Tensor:
            assert keep is not None
            return self._drop(output, keep)

        hooks = [self._end(visual).register_forward_hook(note)]
        if keep is not None:
            assert self._entry is not None, "only a tower that can drop cells is given `keep`"
            hooks.append(self._entry.register_forward_hook(drop))
        try:
            embedding = visual(x)
        finally:
            for hook in hooks:
                hook.remove()
        embedding = embedding[0] if isinstance(embedding, tuple) else embedding
        out = seen[-1]
        if out.ndim == 4:  # a map (n, d, rows, columns)
            return Tokens(out.new_zeros(len(x), 0, out.shape[1]), out.flatten(2).mT, embedding)
        out = self._norm(visual, out)
        return Tokens(out[:, : self.n_first], out[:, self.n_first :], embedding)

    def _end(self, visual: ImageTower) -> nn.Module:
        """Return the module whose output is the tokens of the last block."""
        if self.family == "PanDerm":
            return visual.normed_tokens
        if self.family == "open_clip ViT":
            return visual.transformer
        trunk = visual.trunk
        if self.family == "timm":
            return trunk.norm
        return final_map(trunk)

    def _norm(self, visual: ImageTower, tokens: Tensor) -> Tensor:
        if self.family == "open_clip ViT":
            return visual.ln_post(tokens)
        # timm norms after pooling where it averages the tokens.
        fc_norm = getattr(getattr(visual, "trunk", None), "fc_norm", None)
        return tokens if fc_norm is None else fc_norm(tokens)

    def _drop(self, tokens: Tensor, keep: Tensor) -> Tensor:
        n, first = len(tokens), self.n_first
        index = torch.cat(
            [torch.arange(first, device=keep.device).expand(n, -1), keep + first], dim=1
        )
        return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

    @staticmethod
    def project(visual: ImageTower, tokens: Tensor) -> Tensor:
        """Tokens (n, t, d) through what makes the embedding of them: (n, t, e)."""
        if hasattr(visual, "scaled_tokens"):  # PanDerm norms once more before its head
            return visual.head(visual.norm(tokens))
        if hasattr(visual, "trunk"):
            return visual.head(tokens)
        projection = getattr(visual, "proj", None)
        return tokens if projection is None else tokens @ projection


def _square(n: int) -> tuple[int, int]:
    side = round(n**0.5)
    if side * side != n:
        raise ForeignArtifactError(f"{n} tokens are no square grid", "use square images")
    return side, side


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch-norm statistics are not moved inside: for a forward whose result is computed again."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [
        (m.momentum, None if m.num_batches_tracked is None else int(m.num_batches_tracked))
        for m in norms
    ]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, (momentum, count) in zip(norms, kept, strict=True):
            m.momentum = momentum
            if count is not None and m.num_batches_tracked is not None:
                m.num_batches_tracked.fill_(count)


def encode_texts(model: OpenClipModel, ids: Tensor, *, buckets: int = 4) -> Tensor:
    """`model.encode_text(ids, normalize=True)` (n, e) at the cost of the words, not of the padding.

    Texts are sorted by length and encoded in a few groups, each cut to its longest text: what comes
    behind a text changes nothing in a causal tower that is pooled at its end token, nor in a Hugging
    Face tower that masks its padding. Other towers get the whole ids. ids (n, context), padding last.
    """
    lengths = _lengths(model, ids)
    if lengths is None:
        return model.encode_text(ids, normalize=True)
    order = lengths.argsort(stable=True)
    n_groups = max(1, min(buckets, len(ids) // 16))
    parts = [
        _encode_cut(model, ids[rows], int(lengths[rows].max()))
        for rows in order.tensor_split(n_groups)
    ]
    return torch.cat(parts)[order.argsort()]


def _lengths(model: Any, ids: Tensor) -> Tensor | None:
    """Tokens of each text up to its end token, or None where the tower cannot be cut."""
    if hasattr(model, "text"):
        config = getattr(model.text, "config", None)
        pad = getattr(config, "pad_token_id", None)
        return None if pad is None else (ids != pad).sum(1).clamp(min=1)
    if getattr(model, "attn_mask", None) is None:
        return None
    if model.text_pool_type == "eos":
        return ids.eq(model.text_eos_id).int().argmax(1) + 1
    if model.text_pool_type == "argmax":
        return ids.argmax(1) + 1
    return None


def _encode_cut(model: Any, ids: Tensor, end: int) -> Tensor:
    ids = ids[:, :end]
    if hasattr(model, "text"):
        return nn.functional.normalize(model.text(ids), dim=-1)
    x = model.token_embedding(ids) + model.positional_embedding[:end]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:end, :end]))
    x = text_global_pool(
        x, ids, model.text_pool_type, eos_token_id=getattr(model, "text_eos_id", None)
    )
    projection = model.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return nn.functional.normalize(x, dim=-1)
