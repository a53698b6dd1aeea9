"""The training step of the TopK family without the dense code: 2Bdh + 8Bkd FLOP instead of 12Bdh.

`sparse_step` gives the loss and the gradients of sae-lens' `training_forward_pass` for its TopK,
BatchTopK (arXiv 2412.06410) and Matryoshka (arXiv 2503.17547) training classes:

- The reconstruction is Σ pre_j W_dec_j over the selected entries, also with
  `rescale_acts_by_decoder_norm`: the norm is multiplied in and divided out, so it only decides which
  entries are selected.
- The losses are squares, so their gradients follow from the errors. They are computed in the forward
  pass, while the rows are in the cache, and `backward` returns them.
- x needs no gradient, and the part of the gradient of b_dec that passes through the input of the encoder
  is −Σ_j g_j W_enc_j with g the gradient of b_enc. The dense gradient of x is never computed.
- A TopK SAE is a Matryoshka SAE with one prefix. AuxK (arXiv 2406.04093) is the same sum over dead
  latents, with the error as its target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dermaudit.distributed import gather, n_processes
from dermaudit.errors import UserInputError

from .kernels import Code, pick

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # of encoder, encoder bias, decoder
_DENSE_AUX = 5  # ratio of dead latents to k_aux up to which dense products are cheaper
_ARCHITECTURES = ("topk", "batchtopk", "matryoshka_batchtopk")


@dataclass(frozen=True)
class StepResult:
    """The result of one training step.

    `loss` () is differentiable; `losses` are its terms by sae-lens' names, detached; `fired` (d_sae,) bool
    are the latents with a positive code; `l0` () is their mean number in a row.
    """

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]
    fired: torch.Tensor
    l0: torch.Tensor


def transpose_storage(sae: TrainingSAE) -> None:
    """Store `sae.W_enc` (d_in, d_sae) by columns, in place: values and shape stay.

    The gradient of the encoder is computed latent by latent, so it needs no transposition then. Call it
    before the optimizer is created. Formats that need contiguous tensors (safetensors) need
    `.contiguous()` first.
    """
    with torch.no_grad():
        sae.W_enc.data = sae.W_enc.data.t().contiguous().t()


def sparse_step(sae: Any, x: torch.Tensor, dead_mask: torch.Tensor | None = None) -> StepResult:
    """Return the loss of one training step of a sae-lens TopK, BatchTopK or Matryoshka SAE.

    x (B, d_in) is on the device and in the dtype of `sae`; `dead_mask` (d_sae,) bool are the latents that
    AuxK revives. `loss.backward()` fills the gradients of W_enc, b_enc, W_dec and b_dec; the running
    threshold of BatchTopK is updated as in sae-lens. Hooks are not called. Under torchrun every process
    calls it with the same number of rows, and BatchTopK selects among the rows of all processes; loss and
    gradients are those of the own rows, their mean over processes is that of one process.
    UserInputError for another architecture, a runtime normalisation, or k above d_sae.
    """
    _check(sae, x)
    return StepResult(*_Loss.apply(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae, x, dead_mask))


class _Loss(torch.autograd.Function):
    """(loss, losses, fired, l0); the gradients are computed with the loss."""

    @staticmethod
    def forward(ctx: Any, w_enc, b_enc, w_dec, b_dec, sae, x, dead_mask):
        pass_ = _Pass(sae, x, dead_mask, any(ctx.needs_input_grad[:4]))
        ctx.gradients = pass_.gradients
        ctx.mark_non_differentiable(pass_.fired, pass_.l0)
        return pass_.loss, pass_.losses, pass_.fired, pass_.l0

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstreams: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        # The decorator hides the parameter names, to which pyright objects.
        upstream = upstreams[0]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("backward through the same sparse step twice")
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            gradients = [gradient.mul_(upstream) for gradient in gradients]
        return (*gradients, None, None, None)


class _Pass:
    """One forward pass and, if `learn`, the gradients of (W_enc, b_enc, W_dec, b_dec)."""

    def __init__(
        self, sae: Any, x: torch.Tensor, dead_mask: torch.Tensor | None, learn: bool
    ) -> None:
        self.sae, self.learn = sae, learn
        self.x = x.detach().to(sae.W_dec.dtype).contiguous()
        self.kernels = pick(self.x)
        self.encoder = sae.W_enc.detach().t().contiguous()  # no copy if the storage is transposed
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
        gradients = None
        if self.learn:
            gradients = self.kernels.weight_gradients(
                code, sums, self.input, dots, 2 / n, self.edges
            )
        aux = self.x.new_zeros(())
        if self.dead is not None:
            assert dead_pre is not None
            aux = self._aux(self.dead, sums, dead_pre, gradients)
        self.loss = losses.sum() + aux
        self.losses = {"mse_loss": losses[-1], "auxiliary_reconstruction_loss": aux}
        self.losses |= {
            f"inner_mse_loss_{width}": loss
            for width, loss in zip(self.edges[:-1], losses[:-1], strict=True)
        }
        counts = torch.bincount(code.latents, minlength=len(self.decoder))
        self.fired = counts > 0
        self.l0 = torch.tensor(len(code.latents) / max(1, n), device=self.x.device)
        if gradients is not None:
            encoder, bias, decoder = gradients
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
        """Update sae-lens' running mean of the smallest positive code of a batch over all processes."""
        least = gather(self.kernels.least_key(code, self.scale).view(1)).min()
        if not least < torch.inf:
            return
        sae, rate = self.sae, self.sae.cfg.topk_threshold_lr
        sae.topk_threshold = (1 - rate) * sae.topk_threshold + rate * least.to(
            sae.topk_threshold.dtype
        )

    def _aux(
        self, dead: torch.Tensor, sums: torch.Tensor, pre: torch.Tensor, gradients: Gradients | None
    ) -> torch.Tensor:
        """Return the AuxK loss: the k_aux = d/2 largest dead latents of a row reconstruct its error.

        With `use_matryoshka_aux_loss` the dead latents of each level reconstruct the error of its prefix.
        """
        total = self.x.new_zeros(())
        if not getattr(self.sae.cfg, "use_matryoshka_aux_loss", False):
            return self._aux_of(dead, -sums[-1], pre, gradients)
        first = 0
        for level, width in enumerate(self.edges):
            last = int((dead < width).sum())
            if last > first:
                later = sums[level + 1] if level + 1 < len(self.edges) else 0
                part = slice(first, last)
                left_over = later - sums[level]
                total = total + self._aux_of(dead[part], left_over, pre[:, part], gradients)
            first = last
        return total

    def _aux_of(
        self,
        dead: torch.Tensor,
        left_over: torch.Tensor,
        pre: torch.Tensor,
        gradients: Gradients | None,
    ) -> torch.Tensor:
        """Return AuxK of `dead` latents, pre-activations pre (n, dead); adds to `gradients`."""
        n, d = self.x.shape
        most = d // 2
        k = min(most, len(dead))
        factor = self.sae.cfg.aux_loss_coefficient * min(len(dead) / most, 1.0) / n
        kept = None
        if k < len(dead):
            kept = self.kernels.keep_top(pre * self.scale[dead], k)
        if len(dead) > _DENSE_AUX * k:
            return self._aux_sparse(dead, left_over, pre, kept, k, factor, gradients)
        code = pre if kept is None else pre * kept
        weights = self.decoder[dead]
        error = torch.addmm(left_over, code, weights, beta=-1)
        loss = factor * error.pow(2).sum()
        if gradients is not None:
            error *= 2 * factor
            pull = error @ weights.t()
            if kept is not None:
                pull *= kept
            encoder, bias, decoder = gradients
            encoder.index_add_(0, dead, pull.t() @ self.input)
            bias.index_add_(0, dead, pull.sum(0))
            decoder.index_add_(0, dead, code.t() @ error)
        return loss

    def _aux_sparse(
        self,
        dead: torch.Tensor,
        left_over: torch.Tensor,
        pre: torch.Tensor,
        kept: torch.Tensor | None,
        k: int,
        factor: float,
        gradients: Gradients | None,
    ) -> torch.Tensor:
        """Return the same by the sparse kernels, if most dead latents are not among the k of a row."""
        assert kept is not None
        start = torch.arange(0, k * len(pre) + 1, k, device=pre.device)
        code = Code(start, dead[kept.nonzero()[:, 1]].int(), pre[kept])
        edges = [len(self.decoder)]
        nothing = torch.zeros_like(self.b_dec)
        sums, squares, dots = self.kernels.decode(code, self.decoder, nothing, left_over, edges)
        if gradients is not None:
            self.kernels.weight_gradients(
                code, sums, self.input, dots, 2 * factor, edges, into=gradients
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
            "scale the rows beforehand, and set it to 'none'",
        )
    if x.ndim != 2 or x.shape[1] != cfg.d_in or not len(x):
        raise UserInputError(
            f"rows of shape {tuple(x.shape)} do not match an SAE with d_in {cfg.d_in}",
            "give a batch of at least one row, (B, d_in)",
        )
    if not 0 < cfg.k <= cfg.d_sae:
        raise UserInputError(
            f"k {cfg.k} does not lie between 0 and d_sae {cfg.d_sae}", "take a smaller k"
        )
