"""The training step of the TopK family without the dense code: 2Bdh + 8Bkd FLOP for 12Bdh.

`sparse_step` gives the loss and the gradients of sae-lens' `training_forward_pass` for its TopK,
BatchTopK (arXiv 2412.06410) and Matryoshka (arXiv 2503.17547) training classes. What it rests on:

- The reconstruction is Σ pre_j W_dec_j over the entries taken, with `rescale_acts_by_decoder_norm`
  too: the norm is multiplied in and divided out, so it only decides which entries are taken.
- The losses are squares, so their gradients are known once the errors are: they are made in the
  forward pass, while the rows are in the cache, and `backward` hands them out.
- x takes no gradient, and b_dec gets what went through the encoder's input as −Σ_j g_j W_enc_j
  with g the gradient of b_enc: the dense gradient of x is never made.
- A TopK SAE is a Matryoshka SAE with one prefix, and AuxK (arXiv 2406.04093) the same sum once
  more, over dead latents, with the error as its target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dermaudit.distributed import gather, n_processes
from dermaudit.errors import UserInputError

from .kernels import Code, pick

_DENSE_AUX = 5  # dead latents for each of the k_aux up to which whole products are cheaper
_ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk")


@dataclass(frozen=True)
class StepResult:
    """What one step gives.

    `loss` () differentiable; `losses` its parts by sae-lens' names, detached; `fired` (d_sae,)
    bool, the latents with a positive code; `l0` () the mean number of them a row, float.
    """

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]
    fired: torch.Tensor
    l0: torch.Tensor


def transpose_storage(sae: torch.nn.Module) -> None:
    """Store `sae.W_enc` (d_in, d_sae) by columns, in place: values and shape stay.

    Then the encoder's gradient, which is made latent by latent, is kept as it is; without this it
    is turned round each step. Call it before the optimizer is made. A file format that wants
    contiguous tensors (safetensors) wants `.contiguous()` first.
    """
    with torch.no_grad():
        sae.W_enc.data = sae.W_enc.data.t().contiguous().t()


def sparse_step(sae: Any, x: torch.Tensor, dead_mask: torch.Tensor | None = None) -> StepResult:
    """One training step's loss of a sae-lens TopK, BatchTopK or Matryoshka training SAE.

    x (B, d_in) on the device and in the dtype of `sae`; `dead_mask` (d_sae,) bool: latents that
    AuxK is to revive, None for none. `loss.backward()` fills the gradients of W_enc, b_enc, W_dec
    and b_dec; the running threshold of BatchTopK moves as sae-lens moves it. Hooks are not called.
    Under torchrun every process calls it with as many rows, and BatchTopK chooses among the rows of
    all of them: loss and gradients are those of the own rows, their mean is that of one process.
    Raises `UserInputError` for another architecture, a runtime normalisation, or k above d_sae.
    """
    _check(sae, x)
    return StepResult(*_Loss.apply(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae, x, dead_mask))


class _Loss(torch.autograd.Function):
    """(loss, losses, fired, l0); the gradients are made with the loss."""

    @staticmethod
    def forward(ctx: Any, w_enc, b_enc, w_dec, b_dec, sae, x, dead_mask):
        pass_ = _Pass(sae, x, dead_mask, any(ctx.needs_input_grad[:4]))
        ctx.gradients = pass_.gradients
        ctx.mark_non_differentiable(pass_.fired, pass_.l0)
        return pass_.loss, pass_.losses, pass_.fired, pass_.l0

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor, *_: Any):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("backward through the same sparse step twice")
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            gradients = [gradient.mul_(upstream) for gradient in gradients]
        return (*gradients, None, None, None)


class _Pass:
    """One forward pass and, with `learn`, the gradients of (W_enc, b_enc, W_dec, b_dec)."""

    def __init__(
        self, sae: Any, x: torch.Tensor, dead_mask: torch.Tensor | None, learn: bool
    ) -> None:
        self.sae, self.learn = sae, learn
        self.x = x.detach().to(sae.W_dec.dtype).contiguous()
        self.kernels = pick(self.x)
        self.encoder = sae.W_enc.detach().t().contiguous()  # by latents, no copy once transposed
        self.decoder = sae.W_dec.detach().contiguous()
        self.b_enc, self.b_dec = sae.b_enc.detach(), sae.b_dec.detach()
        self.into_b_dec = bool(sae.cfg.apply_b_dec_to_input)
        self.input = self.kernels.minus(self.x, self.b_dec) if self.into_b_dec else self.x
        self.edges = list(getattr(sae.cfg, "matryoshka_widths", None) or [sae.cfg.d_sae])
        dead = None if dead_mask is None else dead_mask.nonzero().flatten()
        self.dead = dead if dead is not None and len(dead) else None
        self.gradients: list[torch.Tensor] | None = None
        self._run()

    def _run(self) -> None:
        n = len(self.x)
        code, dead_pre = self._encode()
        sums, squares, dots = self.kernels.decode(
            code, self.decoder, self.b_dec, self.x, self.edges
        )
        losses = (squares / n).to(self.x.dtype)
        made = None
        if self.learn:
            made = self.kernels.weight_gradients(code, sums, self.input, dots, 2 / n, self.edges)
        aux = self.x.new_zeros(())
        if self.dead is not None:
            aux = self._aux(sums, dead_pre, made)
        self.loss = losses.sum() + aux
        self.losses = {"mse_loss": losses[-1], "auxiliary_reconstruction_loss": aux}
        self.losses |= {
            f"inner_mse_loss_{width}": loss
            for width, loss in zip(self.edges[:-1], losses[:-1], strict=True)
        }
        counts = torch.bincount(code.latents, minlength=len(self.decoder))
        self.fired = counts > 0
        self.l0 = torch.tensor(len(code.latents) / max(1, n), device=self.x.device)
        if made is not None:
            encoder, bias, decoder = made
            b_dec = self.kernels.weighted_sum(self.x.new_full((n,), 2 / n), sums[0])
            if self.into_b_dec:
                b_dec -= self.kernels.weighted_sum(bias, self.encoder)
            self.gradients = [encoder.t(), bias, decoder, b_dec]

    def _encode(self) -> tuple[Code, torch.Tensor | None]:
        sae = self.sae
        scale = torch.ones_like(self.b_enc)
        if sae.cfg.rescale_acts_by_decoder_norm:
            scale = self.kernels.lengths(self.decoder)
        self.scale = scale
        given = self.input, self.encoder, self.b_enc, scale
        if sae.cfg.architecture() == "topk":
            return self.kernels.encode_rows(*given, int(sae.cfg.k), self.dead)
        code, dead_pre = self.kernels.encode_batch(
            *given, int(sae.cfg.k * (len(self.x) * n_processes())), self.dead
        )
        self._move_threshold(code)
        return code, dead_pre

    def _move_threshold(self, code: Code) -> None:
        """sae-lens' running mean of the least positive code of a batch, that of all processes."""
        least = gather(self.kernels.least_key(code, self.scale).view(1)).min()
        if not least < torch.inf:
            return
        sae, rate = self.sae, self.sae.cfg.topk_threshold_lr
        sae.topk_threshold = (1 - rate) * sae.topk_threshold + rate * least.to(
            sae.topk_threshold.dtype
        )

    # ---- AuxK

    def _aux(
        self,
        sums: torch.Tensor,
        dead_pre: torch.Tensor,
        made: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Dead latents, the k_aux = d/2 largest a row, are to give what the living ones left over.

        With `use_matryoshka_aux_loss` each level's own dead latents, what its prefix left over.
        """
        total = self.x.new_zeros(())
        if not getattr(self.sae.cfg, "use_matryoshka_aux_loss", False):
            return self._aux_of(slice(None), -sums[-1], dead_pre, made)
        first = 0
        for level, width in enumerate(self.edges):
            last = int(torch.searchsorted(self.dead, width))
            if last > first:
                later = sums[level + 1] if level + 1 < len(self.edges) else 0
                part = slice(first, last)
                total = total + self._aux_of(part, later - sums[level], dead_pre[:, part], made)
            first = last
        return total

    def _aux_of(
        self,
        part: slice,
        left_over: torch.Tensor,
        pre: torch.Tensor,
        made: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """AuxK of the dead latents `part` with pre-activations pre (n, |part|); adds to `made`."""
        dead, (n, d) = self.dead[part], self.x.shape
        most = d // 2
        k = min(most, len(dead))
        factor = self.sae.cfg.aux_loss_coefficient * min(len(dead) / most, 1.0) / n
        kept = None
        if k < len(dead):
            kept = self.kernels.keep_top(pre * self.scale[dead], k)
        if len(dead) > _DENSE_AUX * k:
            return self._aux_sparse(dead, left_over, pre, kept, k, factor, made)
        code = pre if kept is None else pre * kept
        weights = self.decoder[dead]
        error = torch.addmm(left_over, code, weights, beta=-1)
        loss = factor * error.pow(2).sum()
        if made is not None:
            error *= 2 * factor
            pull = error @ weights.t()
            if kept is not None:
                pull *= kept
            encoder, bias, decoder = made
            encoder.index_add_(0, dead, pull.t() @ self.input)
            bias.index_add_(0, dead, pull.sum(0))
            decoder.index_add_(0, dead, code.t() @ error)
        return loss

    def _aux_sparse(self, dead, left_over, pre, kept, k, factor, made) -> torch.Tensor:
        """The same through the sparse kernels, where most dead latents are not among a row's k."""
        start = torch.arange(0, k * len(pre) + 1, k, device=pre.device)
        code = Code(start, dead[kept.nonzero()[:, 1]].int(), pre[kept])
        edges = [len(self.decoder)]
        nothing = torch.zeros_like(self.b_dec)
        sums, squares, dots = self.kernels.decode(code, self.decoder, nothing, left_over, edges)
        if made is not None:
            self.kernels.weight_gradients(
                code, sums, self.input, dots, 2 * factor, edges, into=made
            )
        return (factor * squares[0]).to(self.x.dtype)


def _check(sae: Any, x: torch.Tensor) -> None:
    cfg = sae.cfg
    architecture = cfg.architecture()
    if architecture not in _ARCHITECTURES:
        raise UserInputError(
            f"a '{architecture}' SAE has no sparse step",
            f"one of {', '.join(_ARCHITECTURES)}; the others train through training_forward_pass",
        )
    if cfg.normalize_activations not in ("none", "expected_average_only_in"):
        raise UserInputError(
            f"normalize_activations '{cfg.normalize_activations}' has no sparse step",
            "scale the rows before they are given, and set it to 'none'",
        )
    if x.ndim != 2 or x.shape[1] != cfg.d_in or not len(x):
        raise UserInputError(
            f"rows of shape {tuple(x.shape)} are given to an SAE with d_in {cfg.d_in}",
            "give a batch of at least one row, (B, d_in)",
        )
    if not 0 < cfg.k <= cfg.d_sae:
        raise UserInputError(
            f"k {cfg.k} does not lie between 0 and d_sae {cfg.d_sae}", "take a smaller k"
        )
