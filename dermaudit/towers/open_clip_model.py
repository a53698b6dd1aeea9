"""The part of open_clip's models that is used, as a type: they share no base class that declares it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from torch import Tensor, nn

from dermaudit.errors import UserInputError

#: The image towers of open_clip, timm and PanDerm have no common type; they are told apart by attributes.
ImageTower: TypeAlias = Any

if TYPE_CHECKING:

    class OpenClipModel(nn.Module):
        """CLIP, CustomTextCLIP or CoCa."""

        visual: ImageTower
        text: Any
        logit_scale: Tensor
        logit_bias: Tensor | None
        context_length: int
        vocab_size: int

        def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
            """Return embeddings (n, d) of prepared images (n, 3, s, s)."""
            ...

        def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
            """Return embeddings (n, d) of token ids (n, context_length)."""
            ...

        def set_grad_checkpointing(self, enable: bool = True) -> None:
            """Compute the activations of the blocks again in the backward pass."""
            ...

else:
    OpenClipModel = nn.Module


def as_open_clip(model: nn.Module) -> OpenClipModel:
    """Return the model under the type above. Raises UserInputError if it has no image tower."""
    if not isinstance(getattr(model, "visual", None), nn.Module):
        raise UserInputError(
            f"{type(model).__name__} is neither a HookedTower nor an open_clip model: it has no "
            "image tower `visual`"
        )
    return cast(OpenClipModel, model)
