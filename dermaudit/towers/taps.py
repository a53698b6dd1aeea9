"""The tap table: which module of which kind of tower provides each hook point.

A tap is (site, module, in or out, layout). The names are those of transformer-lens, under `visual.`
and `text.`; what a family does not have as a module has no tap (a native open_clip block keeps its
attention heads inside `nn.MultiheadAttention`, whose parts never fire a hook).

A convolutional timm trunk has `blocks.i.hook_resid_post` alone, one block a stage, and `ln_final` where a last
convolution follows the stages (EfficientNet): the map that is averaged into the embedding.

| site | native open_clip | timm trunk | PanDerm | HF text |
|---|---|---|---|---|
| embed | ln_pre out | norm_pre or pos_drop out | embed out | embeddings out |
| blocks.i.hook_resid_pre | resblocks[i] in | blocks[i] in | blocks[i] in | layer[i] in |
| blocks.i.hook_attn_out | ls_1 out | drop_path1 or ls1 out | scaled_attn out | - |
| blocks.i.hook_mlp_out | ls_2 out | drop_path2 or ls2 out | scaled_mlp out | - |
| blocks.i.hook_resid_post | resblocks[i] out | blocks[i] out | blocks[i] out | layer[i] out |
| ln_final | ln_post / ln_final out | norm out | norm_tokens out | - |

`embedding` (before) and `pooled` (after normalisation) are fired by the tower itself. Activations
are presented as (image or text, token, d) whatever the layout inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .open_clip_model import ImageTower


@dataclass(frozen=True)
class Tap:
    """One hook point. `swap`: the module runs (token, item, d), the hook sees (item, token, d).
    `cells`: the module gives a map (item, d, rows, columns), the hook sees (item, cell, d).
    """

    site: str
    module: nn.Module
    where: Literal["in", "out"] = "out"
    swap: bool = False
    cells: bool = False


@dataclass(frozen=True)
class TowerTaps:
    """The taps of one tower and what they show. `grid` is (rows, columns) of patches."""

    family: str
    taps: list[Tap] = field(default_factory=list)
    n_blocks: int = 0
    d_block: int | None = None
    n_prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    # Stages of a convolutional trunk differ: site -> width, and reduction in pixels a cell.
    stages: dict[str, tuple[int, int]] = field(default_factory=dict)


def register(tap: Tap, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `change` with the activation at a tap in every forward pass, as (item, token, d).

    What it returns replaces the activation. If it returns None or the very tensor that it was given,
    the module's own value stays, so that its strides and the bits of what follows do too.
    """

    def changed(value: Any) -> Any:
        tensor = value[0] if isinstance(value, tuple) else value
        seen = tensor.transpose(0, 1) if tap.swap else tensor
        seen = tensor.flatten(2).transpose(1, 2) if tap.cells else seen
        given = change(seen)
        if given is None or given is seen:
            return None
        given = given.transpose(0, 1) if tap.swap else given
        given = given.transpose(1, 2).reshape(tensor.shape) if tap.cells else given
        return (given, *value[1:]) if isinstance(value, tuple) else given

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = changed(args[0] if args else kwargs["hidden_states"])
        if given is None:
            return None
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

    if tap.where == "in":
        return tap.module.register_forward_pre_hook(enter, with_kwargs=True)
    return tap.module.register_forward_hook(lambda module, args, output: changed(output))


def visual_taps(visual: ImageTower) -> TowerTaps:
    """Return the taps of an image tower; a kind that is not known has none."""
    if hasattr(visual, "scaled_tokens"):
        return _panderm(visual)
    if hasattr(visual, "trunk"):
        return _timm(visual.trunk, getattr(visual, "image_size", None))
    if hasattr(getattr(visual, "transformer", None), "resblocks"):
        return _native_visual(visual)
    return TowerTaps("opaque")


def text_taps(model: nn.Module) -> TowerTaps:
    """Return the taps of the text side: `model.text`, or the parts that a plain CLIP holds itself."""
    text: Any = getattr(model, "text", model)
    transformer: Any = getattr(text, "transformer", None)
    if hasattr(transformer, "resblocks"):
        final = [Tap("text.ln_final", text.ln_final)] if hasattr(text, "ln_final") else []
        return TowerTaps(
            "open_clip text",
            [*_native_blocks("text", transformer), *final],
            len(transformer.resblocks),
            transformer.width,
        )
    layers = _hf_layers(transformer)
    if layers is not None:
        return TowerTaps(
            "Hugging Face text",
            [Tap("text.embed", transformer.embeddings), *_in_and_out("text", layers)],
            len(layers),
            transformer.config.hidden_size,
        )
    return TowerTaps("opaque")


def _in_and_out(side: str, blocks: nn.ModuleList, swap: bool = False) -> list[Tap]:
    taps = []
    for i, block in enumerate(blocks):
        taps.append(Tap(f"{side}.blocks.{i}.hook_resid_pre", block, "in", swap))
        taps.append(Tap(f"{side}.blocks.{i}.hook_resid_post", block, "out", swap))
    return taps


def _branches(
    side: str, blocks: nn.ModuleList, names: list[tuple[str, str]], swap: bool = False
) -> list[Tap]:
    """attn_out and mlp_out through the first pair of modules that every branch passes once."""
    taps = []
    for i, block in enumerate(blocks):
        for attn, mlp in names:
            first, second = getattr(block, attn, None), getattr(block, mlp, None)
            if first is not None and second is not None and first is not second:
                taps.append(Tap(f"{side}.blocks.{i}.hook_attn_out", first, "out", swap))
                taps.append(Tap(f"{side}.blocks.{i}.hook_mlp_out", second, "out", swap))
                break
    return taps


def _native_blocks(side: str, transformer: Any) -> list[Tap]:
    swap = not transformer.batch_first
    blocks = transformer.resblocks
    return _in_and_out(side, blocks, swap) + _branches(side, blocks, [("ls_1", "ls_2")], swap)


def _native_visual(visual: ImageTower) -> TowerTaps:
    return TowerTaps(
        "open_clip ViT",
        [
            Tap("visual.embed", visual.ln_pre),
            *_native_blocks("visual", visual.transformer),
            Tap("visual.ln_final", visual.ln_post),
        ],
        len(visual.transformer.resblocks),
        visual.transformer.width,
        1,
        tuple(visual.grid_size),
    )


def _timm(trunk: Any, size: int | tuple[int, int] | None = None) -> TowerTaps:
    blocks = getattr(trunk, "blocks", None)
    if blocks is None or not hasattr(trunk, "patch_embed") or not hasattr(trunk, "embed_dim"):
        return _convolutional(trunk)
    embed = getattr(trunk, "norm_pre", None) or getattr(trunk, "pos_drop", None)
    # BEiT and EVA scale a branch by a bare parameter (gamma_1): only what follows it is a module.
    names = [("drop_path1", "drop_path2"), ("ls1", "ls2")]
    return TowerTaps(
        "timm",
        [
            *([Tap("visual.embed", embed)] if embed is not None else []),
            *_in_and_out("visual", blocks),
            *_branches("visual", blocks, names),
            *([Tap("visual.ln_final", trunk.norm)] if hasattr(trunk, "norm") else []),
        ],
        len(blocks),
        trunk.embed_dim,
        # XCiT and CaiT add the class token after these blocks: their tokens are patches alone.
        0 if hasattr(trunk, "cls_attn_blocks") else getattr(trunk, "num_prefix_tokens", 1),
        _grid(trunk.patch_embed, size),
    )


def _grid(patch_embed: Any, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of patches. The convolutional stem of XCiT takes any size and only knows the
    one that its weights were first made for: there the tower's own image size counts.
    """
    if hasattr(patch_embed, "grid_size"):
        return tuple(patch_embed.grid_size)
    height, width = _pair(size if size is not None else patch_embed.img_size)
    rows, columns = _pair(patch_embed.patch_size)
    return height // rows, width // columns


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _convolutional(trunk: Any) -> TowerTaps:
    """Return the taps of a timm trunk of stages (RegNet, ResNet, EfficientNet): each stage of `feature_info` after the
    stem is a block, its map presented as one token a cell, row by row; so is the final map, if it is another one.
    """
    stages = [
        (trunk.get_submodule(info["module"]), info["num_chs"], info["reduction"])
        for info in getattr(trunk, "feature_info", [])
        if info.get("module", "").startswith(("s", "layer", "stages", "blocks"))
        and "stem" not in info["module"]
    ]
    if not stages:
        return TowerTaps("opaque")
    names = [f"visual.blocks.{i}.hook_resid_post" for i in range(len(stages))]
    maps = dict(zip(names, stages, strict=True))
    if _has_last_convolution(trunk):
        maps["visual.ln_final"] = final_map(trunk), trunk.num_features, stages[-1][2]
    return TowerTaps(
        "timm convolutional",
        [Tap(name, module, cells=True) for name, (module, _, _) in maps.items()],
        len(stages),
        stages[-1][1],
        stages={name: (d, step) for name, (_, d, step) in maps.items()},
    )


def final_map(trunk: Any) -> nn.Module:
    """Return the module of a convolutional timm trunk whose output is averaged into the embedding."""
    if _has_last_convolution(trunk):
        return trunk.bn2
    return trunk.get_submodule(trunk.feature_info[-1]["module"])


def _has_last_convolution(trunk: Any) -> bool:
    """Whether a convolution follows the stages, before the average (EfficientNet; MobileNetV3 has one behind it)."""
    return hasattr(trunk, "conv_head") and hasattr(trunk, "bn2")


def _panderm(visual: ImageTower) -> TowerTaps:
    return TowerTaps(
        "PanDerm",
        [
            Tap("visual.embed", visual.scaled_tokens),
            *_in_and_out("visual", visual.blocks),
            *_branches("visual", visual.blocks, [("scaled_attn", "scaled_mlp")]),
            Tap("visual.ln_final", visual.normed_tokens),
        ],
        len(visual.blocks),
        visual.width,
        1,
        visual.grid_size,
    )


def _hf_layers(transformer: Any) -> nn.ModuleList | None:
    encoder = getattr(transformer, "encoder", None)
    layers = getattr(encoder, "layer", None)
    known = isinstance(layers, nn.ModuleList) and hasattr(transformer, "embeddings")
    return layers if known else None
