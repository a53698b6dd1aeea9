"""`autoencoder.pth` of DermFM-Zero and of Discover-then-Name (DN-CBM, arXiv 2407.14499).

Both train with the library `sparse_autoencoder`: `{model_state_dict, model_config, train_shape}` or
the state dict alone, with a leading axis of components: tied_bias (c, d), encoder._weight (c, h, d),
encoder._bias (c, h), decoder._weight (c, d, h), and the tied bias twice more as `_bias_reference`.
z = relu(W_e (x − b) + b_e), x̂ = W_d z + b, the columns of W_d of unit length.
"""

from __future__ import annotations

from pathlib import Path

from dermaudit.errors import ForeignArtifactError

from ..inference.model import ThresholdSAE, TopKSAE
from .assemble import assemble, tensors_of, transposed
from .checkpoint import read_state, state_of

NAME = "DermFM-Zero / DN-CBM"

_KEYS = ("tied_bias", "encoder._weight", "encoder._bias", "decoder._weight")


def matches(path: Path) -> bool:
    """Return whether the file or folder is of this family."""
    return {"tied_bias", "encoder._weight"} <= set(state_of(path) or ())


def read(path: Path) -> ThresholdSAE | TopKSAE:
    """Return the component of the file. ForeignArtifactError if it has several."""
    bias, encoder, encoder_bias, decoder = tensors_of(*read_state(path), *_KEYS)
    if encoder.ndim == 3:
        if len(encoder) != 1:
            raise ForeignArtifactError(
                f"{path} holds {len(encoder)} SAEs (components) in one file; one can be read",
                "save each of them on its own: every tensor of the state dict, [i : i + 1]",
            )
        bias, encoder, encoder_bias, decoder = bias[0], encoder[0], encoder_bias[0], decoder[0]
    return assemble(
        path,
        transposed(path, encoder),
        transposed(path, decoder),
        encoder_bias,
        bias,
        metadata={"imported_from": NAME, "training_architecture": "relu-l1"},
    )
