"""The weights of the latents of a recipe, as text inside its body."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from dermaudit.errors import ForeignArtifactError

if TYPE_CHECKING:
    from dermaudit.sae import ThresholdSAE

_TENSORS = ("encoder", "bias", "threshold", "decoder")


class Weights(TypedDict):
    """The latents of the recipe, for rows x of width d: pre = x · encoder + bias, the code is pre where it is
    over the threshold, else 0. Each is base64 of little-endian float32, in the order of the latents.
    """

    d: int
    encoder: str  # (|S|, d)
    bias: str  # (|S|,)
    threshold: str  # (|S|,)
    decoder: str  # (|S|, d)


def packed(sae: ThresholdSAE, latents: Sequence[int]) -> Weights:
    """Return the weights of latents of an SAE. The bias holds what an SAE subtracts before it encodes."""
    index = list(latents)
    encoder = sae.W_enc[:, index].double()
    bias = sae.b_enc[index].double() - sae.b_dec.double() @ encoder

    def text(values: Any) -> str:
        return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()

    return Weights(
        d=sae.d_in,
        encoder=text(encoder.T.contiguous()),
        bias=text(bias),
        threshold=text(sae.threshold[index]),
        decoder=text(sae.W_dec[index]),
    )


def unpacked(weights: Weights, site: str) -> ThresholdSAE:
    """Return the SAE of these latents alone. ForeignArtifactError for weights that do not fit together."""
    import torch

    from dermaudit.sae import ThresholdSAE

    try:
        arrays = {
            name: np.frombuffer(base64.b64decode(weights[name], validate=True), "<f4").copy()
            for name in _TENSORS
        }
        n, d = len(arrays["bias"]), weights["d"]
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return ThresholdSAE(
            W_enc=tensors["encoder"].reshape(n, d).T.contiguous(),
            W_dec=tensors["decoder"].reshape(n, d),
            b_enc=tensors["bias"],
            b_dec=torch.zeros(d),
            threshold=tensors["threshold"].reshape(n),
            metadata={"hook_name": site},
        )
    except (KeyError, TypeError, ValueError, RuntimeError, binascii.Error) as error:
        raise ForeignArtifactError(
            f"the weights of the recipe do not fit together ({error})"
        ) from error
