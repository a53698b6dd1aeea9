"""Adam with gradient clipping: on a CPU one compiled pass over weights, gradients and moments.

torch's `clip_grad_norm_` reads and writes every gradient before the step reads it again. Here the norm
only reads the gradients, and its factor is applied in the step.
"""

from __future__ import annotations

from typing import Any

import torch

from .kernels import FLOATS, present

_BLOCK = 1 << 16  # numbers in a partial sum: fixed, so that the norm does not depend on threads


class Adam(torch.optim.Adam):
    """`torch.optim.Adam` (arXiv 1412.6980) without weight decay; `step(max_norm=...)` clips.

    State and `state_dict` are those of torch ('step', 'exp_avg', 'exp_avg_sq'), and each loads the other's.
    A loaded state gets the memory layout of its parameter.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, foreach=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of this class, or of `torch.optim.Adam`."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["foreach"], group["fused"] = False, None
            for param in group["params"]:
                state = self.state.get(param, {})
                for name in ("exp_avg", "exp_avg_sq"):
                    if name in state:
                        state[name] = _like(state[name], param)

    @torch.no_grad()
    def step(self, closure: Any = None, *, max_norm: float | None = None) -> Any:
        """Take one step; with `max_norm` return the norm () of the gradients before clipping.

        Gradients are multiplied by min(1, max_norm / (norm + 1e-6)), as in `clip_grad_norm_`. The compiled
        step leaves the stored gradients unchanged, the step of torch scales them.
        """
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not params or not all(_served(param) for param in params) or closure is not None:
            norm = None
            if max_norm is not None:
                norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
            result = super().step(closure)
            return norm if norm is not None else result
        norm, factor = None, 1.0
        if max_norm is not None:
            norm = gradient_norm(params)
            factor = min(1.0, max_norm / (float(norm) + 1e-6))
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._move(param, param.grad, group, factor)
        return norm

    def _move(
        self, param: torch.Tensor, grad: torch.Tensor, group: dict[str, Any], factor: float
    ) -> None:
        from .kernels import loops
        from .kernels.threads import share_out

        state = self.state[param]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        state["step"] += 1
        t, (beta1, beta2) = int(state["step"]), group["betas"]
        number = _flat(param).numpy().dtype.type
        scalars = (
            factor,
            beta1,
            beta2,
            float(group["lr"]) / (1 - beta1**t),
            1 / (1 - beta2**t) ** 0.5,
            group["eps"],
        )
        share_out(
            loops.adam,
            -(-param.numel() // _BLOCK),
            _flat(param).numpy(),
            _flat(_like(grad, param)).numpy(),
            _flat(state["exp_avg"]).numpy(),
            _flat(state["exp_avg_sq"]).numpy(),
            *(number(value) for value in scalars),
            _BLOCK,
        )


def clip_and_step(optimizer: torch.optim.Optimizer, max_norm: float = 1.0) -> torch.Tensor:
    """Clip the norm of the gradients at `max_norm` and step; return the norm () before clipping."""
    if isinstance(optimizer, Adam):
        return optimizer.step(max_norm=max_norm)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
    optimizer.step()
    return norm


def gradient_norm(params: list[torch.Tensor]) -> torch.Tensor:
    """Return the 2-norm () of all gradients: float64 sums over blocks of float32 sums."""
    import numpy as np

    from .kernels import loops
    from .kernels.threads import share_out

    total = 0.0
    for param in params:
        assert param.grad is not None
        flat = _flat(_like(param.grad, param)).numpy()
        sums = np.empty(-(-len(flat) // _BLOCK))
        share_out(loops.square_sums, len(sums), flat, _BLOCK, sums, numbers=_BLOCK)
        total += float(sums.sum())
    return torch.tensor(total**0.5)


def _served(param: torch.Tensor) -> bool:
    """Return whether the compiled step can do this parameter: on a CPU, contiguous in memory."""
    return (
        param.grad is not None
        and param.device.type == "cpu"
        and param.dtype in FLOATS
        and not param.grad.is_sparse
        and param.numel() > 0
        and (param.is_contiguous() or param.t().is_contiguous())
        and present("numba")
    )


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers in memory order."""
    tensor = tensor.detach()
    return tensor.view(-1) if tensor.is_contiguous() else tensor.t().view(-1)


def _like(tensor: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or a copy with the memory layout of `param`."""
    if tensor.stride() == param.stride():
        return tensor
    return torch.empty_like(param, memory_format=torch.preserve_format).copy_(tensor)
