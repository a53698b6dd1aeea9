"""How stage 2 trains a pretrained image tower: layer-wise learning rates, a frozen beginning, kept batch norm."""

from __future__ import annotations

from typing import cast

from torch import nn

from dermaudit.towers.open_clip_model import OpenClipModel

from ..recipe import FinetuneSection


def layer_rates(model: OpenClipModel, layer_decay: float) -> dict[int, float]:
    """Return {id of a parameter of the trunk: factor of its learning rate}: layer_decay to the power of its distance
    from the last layer (arXiv 2106.08254), by timm's order of layers. {} for a decay of 1.
    """
    if layer_decay == 1:
        return {}
    from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]

    groups = param_groups_layer_decay(trunk_of(model), layer_decay=layer_decay)
    return {id(p): float(group["lr_scale"]) for group in groups for p in group["params"]}


class TrunkState:
    """Whether the image trunk is trained at a place of stage 2; `epochs` is the length of the stage."""

    def __init__(self, model: OpenClipModel, settings: FinetuneSection, epochs: float) -> None:
        self.trunk, self.settings, self.epochs = trunk_of(model), settings, epochs

    def set_to(self, progress: float) -> None:
        """Freeze or train the trunk at `progress`, 0 … 1, and keep the statistics of batch norm if that is wanted."""
        frozen = progress * self.epochs < self.settings.frozen
        for parameter in self.trunk.parameters():
            parameter.requires_grad_(not frozen)
        self.trunk.train(not frozen)
        if self.settings.keep_norm:
            for module in self.trunk.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()


def trunk_of(model: OpenClipModel) -> nn.Module:
    """Return the trunk of timm in the image tower, or the tower where it has none."""
    return cast(nn.Module, getattr(model.visual, "trunk", model.visual))
