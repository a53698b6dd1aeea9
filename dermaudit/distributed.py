"""Training in several processes: torchrun starts them; here they gather, average and split work.

Plain torch.distributed, gloo on the CPU and nccl on GPUs. Without torchrun every function is the
identity, so that callers never ask. A loss that each process computes for its own rows is scaled so
that the *mean* over processes is the loss of the whole batch; gradients are averaged to match.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch import distributed as dist

from dermaudit.errors import UserInputError


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes; `device` is where this one computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def share(self, n: int, what: str = "batch") -> slice:
        """Return the rows of this process among n. UserInputError if they cannot be shared equally."""
        if n % self.size:
            raise UserInputError(
                f"a {what} of {n} cannot be shared equally by {self.size} processes",
                f"choose a {what} that is a multiple of {self.size}",
            )
        part = n // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


@contextmanager
def join_world(device: str = "cpu") -> Iterator[World]:
    """Join the processes that torchrun started, if any, and leave them at the end of the block.

    Raises UserInputError if `device` cannot be used.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UserInputError(
            f"WORLD_SIZE is {size}, but torchrun started no processes",
            "run it under torchrun --nproc-per-node, or unset WORLD_SIZE",
        )
    device = checked_device(device, size)
    if size == 1:
        yield World(device=torch.device(device))
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), torch.device(device))
    finally:
        dist.destroy_process_group()


def checked_device(device: str, size: int = 1) -> str:
    """Return the device of this process, one of `size`. Raises UserInputError if there is none."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UserInputError(
            f"--device {device} is no device", "use cpu, cuda or cuda:0"
        ) from error
    if wanted.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise UserInputError(f"--device {device}: no GPU can be used here", "use --device cpu")
    index = int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else wanted.index or 0
    if index >= torch.cuda.device_count():
        raise UserInputError(
            f"--device {device}: this machine has {torch.cuda.device_count()} GPUs, number {index} is "
            "not among them",
            "start fewer processes, or name another device",
        )
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def n_processes() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if n_processes() > 1 else 0


class _Gather(torch.autograd.Function):
    """All rows of all processes; backward sums the gradients of all processes for the own rows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(n_processes())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = slice(rank() * len(x), (rank() + 1) * len(x))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()  # autograd may have given it to others too
        dist.all_reduce(grad)
        return grad[ctx.rows]


def gather(x: Tensor) -> Tensor:
    """(n, …) of each process -> (n · processes, …) in the order of ranks; gradients flow back."""
    return x if n_processes() == 1 else _Gather.apply(x)


def total(x: Tensor) -> Tensor:
    """Return the sum over processes of a tensor that needs no gradient."""
    if n_processes() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes, in one message a data type.

    A parameter without a gradient counts as zero where another process has one for it, and stays
    without where none has.
    """
    size = n_processes()
    if size == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    parameters = [p for p, n in zip(parameters, total(has).tolist(), strict=True) if n]
    gradients = []
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        gradients.append(p.grad)
    for dtype in sorted({g.dtype for g in gradients}, key=str):
        of_dtype = [g for g in gradients if g.dtype == dtype]
        flat = torch.cat([g.flatten() for g in of_dtype])
        dist.all_reduce(flat)
        flat /= size
        for grad, mean in zip(of_dtype, flat.split([g.numel() for g in of_dtype]), strict=True):
            grad.copy_(mean.view_as(grad))


def average_buffers(modules: Iterable[nn.Module]) -> None:
    """Replace floating buffers (statistics of batch norm) by their mean over the processes."""
    if n_processes() == 1:
        return
    for module in modules:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(total(buffer) / n_processes())


def barrier() -> None:
    """Wait for all processes."""
    if n_processes() > 1:
        dist.barrier()
