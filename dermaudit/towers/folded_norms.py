"""Batch norms computed by the convolutions before them: a convolutional tower takes a quarter less time on a CPU.

Parameters and state dict stay as they are. The folded kernels are buffers beside them, which no file contains and
which move with the model to another device or type.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_BUFFERS = ("folded_weight", "folded_bias")


def fold_norms(model: nn.Module, blank: Tensor) -> list[nn.Module]:
    """Fold each batch norm whose input is the output of a convolution, in a model in eval mode.

    `blank`: images (n, 3, s, s) for the forward pass that shows which norm follows which convolution. Returns the
    modules that compute otherwise now, for `unfold_norms`.
    """
    from timm.layers.conv2d_same import Conv2dSame

    changed: list[nn.Module] = []
    for conv, norm in _pairs(model, blank):
        folded = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )  # fmt: skip
        for name, tensor in zip(_BUFFERS, folded, strict=True):
            conv.register_buffer(name, tensor.data, persistent=False)
        conv.forward = partial(_convolve, conv, type(conv) is Conv2dSame)
        # timm's norms contain their activation. A module itself would become a part of the norm.
        norm.forward = partial(nn.Module.__call__, getattr(norm, "act", nn.Identity()))
        changed += [conv, norm]
    return changed


def unfold_norms(changed: list[nn.Module]) -> None:
    """Let the modules compute as their classes do."""
    for module in changed:
        del module.forward
        for name in _BUFFERS:
            if name in module._buffers:
                delattr(module, name)


@torch.no_grad()
def _pairs(model: nn.Module, blank: Tensor) -> list[tuple[Any, Any]]:
    """Return each convolution with the norm that reads its output; without those that are used more than once, and
    those of a class of their own, which may compute anything.
    """
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.norm_act import BatchNormAct2d

    outputs: list[tuple[nn.Module, Tensor]] = []
    inputs: list[tuple[nn.Module, Tensor]] = []
    handles = []
    for module in model.modules():
        if type(module) in (nn.Conv2d, Conv2dSame):
            handles.append(module.register_forward_hook(lambda m, x, out: outputs.append((m, out))))  # pyright: ignore[reportArgumentType]  # its stub: out is a dict
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(lambda m, x: inputs.append((m, x[0]))))
    try:
        model(blank)
    finally:
        for handle in handles:
            handle.remove()
    made = {id(tensor): conv for conv, tensor in outputs}  # `outputs` keeps them, so ids are unique
    calls = [id(module) for module, _ in (*outputs, *inputs)]
    found = [(made[id(tensor)], norm) for norm, tensor in inputs if id(tensor) in made]
    return [pair for pair in found if all(calls.count(id(module)) == 1 for module in pair)]


def _convolve(conv: Any, same: bool, x: Tensor) -> Tensor:
    """Return what `conv` does with the folded kernel; `same`: it pads as TensorFlow does."""
    from timm.layers.padding import pad_same

    if same:
        x = pad_same(x, conv.kernel_size, conv.stride, conv.dilation)
    return conv._conv_forward(x, conv.folded_weight, conv.folded_bias)
