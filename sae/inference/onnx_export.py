"""A suppressor as an ONNX file, for pipelines without PyTorch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dermaudit.errors import UserInputError
from dermaudit.files import whole_file

if TYPE_CHECKING:
    from .suppressor import LatentSuppressor

#: Everything used is in opset 18 (reductions with axes as inputs), which onnxruntime has since 1.14.
OPSET = 18


class _Traced(nn.Module):
    """The three outputs as a plain tuple."""

    def __init__(self, module: LatentSuppressor) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, z, fired = self.module.suppress(x)
        return x, z, fired


def export(module: LatentSuppressor, path: Path, tokens: int | None) -> Path:
    """Write `module` to `path`, atomically; see `LatentSuppressor.export_onnx`."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserInputError(
            f"ONNX export needs the package '{error.name}', which is not installed",
            "pip install 'dermaudit[onnx]'",
        ) from error
    # Two rows, because the exporter treats a size of 1 as a constant.
    shape = (2, module.d_in) if tokens is None else (2, tokens, module.d_in)
    x = torch.zeros(shape, dtype=module.W_enc.dtype, device=module.W_enc.device)
    module.suppress(x)  # positions that do not fit are refused here, in our words
    with warnings.catch_warnings(), whole_file(path) as temporary:
        warnings.simplefilter("ignore")
        level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                _Traced(module).eval(),
                (x,),
                str(temporary),
                input_names=["x"],
                output_names=["x_out", "z", "fired"],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes={"x": {0: torch.export.Dim("n", min=1)}},
                external_data=False,
                verbose=False,
            )
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
    return path
