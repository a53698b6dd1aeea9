"""One SAE in training: its weights, Adam, the counters of its latents, and the best weights so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermaudit.distributed import World, average_gradients, total
from dermaudit.errors import UserInputError

from ..store.loader import RowStatistics
from .adam import Adam, clip_and_step
from .architectures.registry import architecture
from .decoder_start import DecoderBounds, DecoderStart
from .recipe import SAERecipe
from .resample import ROWS, UNTIL, resample
from .sae_lens_model import build, held_out_sums

_LOGGED = 100  # approximate number of log lines of a fit
_CELLS = 1 << 25  # dense codes of held-out rows in memory at a time


@dataclass
class BestWeights:
    """The weights with the best score on the held-out rows, their step and their FVU."""

    score: float = math.inf
    fvu: float = math.inf
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


class SAEInTraining:
    """An SAE that learns from `rows` (n, d), with early stopping on `held` (m, d) float32.

    Latents start at random, the first of them at the directions of `start`, where one is given.
    """

    def __init__(
        self,
        recipe: SAERecipe,
        rows: Any,
        held: Tensor,
        statistics: RowStatistics,
        world: World,
        dtype: torch.dtype = torch.float32,
        start: DecoderStart | None = None,
    ) -> None:
        if not statistics.spread > 0:
            raise UserInputError(
                f"all {statistics.n} rows are equal: there is nothing to learn from them",
                "embed other images, or another site",
            )
        self.recipe, self.rows, self.world, self.dtype = recipe, rows, world, dtype
        self.architecture = architecture(recipe.architecture)
        self.scale = math.sqrt(rows.d) / statistics.spread if recipe.scale == "sqrt_d" else 1.0
        mean = torch.from_numpy(statistics.mean * self.scale).to(dtype)
        self.sae = build(recipe, mean, dtype=dtype, device=world.device)
        self.bounds = None if start is None else DecoderBounds(start, self.sae.W_dec)
        if self.bounds is not None:
            self._begin_at(self.bounds.directions)
        self.optimizer = _adam(self.sae, recipe.lr, world.device)
        self.batch = recipe.batch_of(rows.n)
        self.steps = recipe.steps(rows.n)
        self.check_every = max(1, self.steps // recipe.checks)
        self.log_every = max(1, self.steps // _LOGGED)
        self.held = self._ready(held)
        centred = held.double() - held.double().mean(0)
        self.held_variance = float((centred**2).sum()) * self.scale**2
        self.done = 0
        self.stopped = False
        self.best = BestWeights()
        self.silent = torch.zeros(recipe.d_sae, dtype=torch.int64, device=world.device)
        self.sums: dict[str, Tensor] = {}
        self.entries: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or early stopping has ended the fit."""
        return self.stopped or self.done >= self.steps

    @property
    def dead(self) -> Tensor:
        """A mask (d_sae,) of the latents that were silent for the dead-latent window."""
        return self.silent > self.recipe.dead_window

    def learn(self, rows: np.ndarray) -> None:
        """Take one step on the shard of a batch of this process, (b, d) float32, as it was stored."""
        recipe, x = self.recipe, self._ready(torch.from_numpy(rows))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(self.done, self.steps)
        result = self.architecture.step(self.sae, recipe, x, self.dead, self.done / self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        average_gradients(self.sae.parameters())
        self.architecture.constrain_gradient(self.sae)
        if recipe.clip:
            clip_and_step(self.optimizer, recipe.clip)
        else:
            self.optimizer.step()
        self.stay_within()
        self.architecture.constrain_weights(self.sae)
        fired = total(result.fired.to(torch.int64)) > 0
        self.silent = torch.where(fired, 0, self.silent + self.batch)
        self._add(loss=result.loss, l0=result.l0, **result.losses)
        self.done += 1
        self._resample()

    def after_step(self) -> dict[str, Any] | None:
        """Return the log entry of this step, or None; at a check, with the scores on held-out rows."""
        checking = self.done % self.check_every == 0 or self.done == self.steps
        if not checking and self.done % self.log_every:
            return None
        entry = self._entry()
        if checking:
            residual, penalty = self._held_out()
            fvu, score = residual / self.held_variance, (residual + penalty) / self.held_variance
            entry |= {"held_fvu": fvu, "held_score": score}
            if score < self.best.score:
                weights = {name: value.clone() for name, value in self.weights().items()}
                self.best = BestWeights(score, fvu, self.done, weights)
            elif self.done - self.best.step >= self.recipe.patience * self.check_every:
                self.stopped = True
        self.entries.append(entry)
        return entry

    @torch.no_grad()
    def _begin_at(self, directions: Tensor) -> None:
        """Set encoder and decoder of the first latents to directions (c, d).

        Their length of 1 is far above that of random latents (.1 in sae-lens), so that they are selected first.
        """
        self.sae.W_dec[: len(directions)] = directions
        self.sae.W_enc[:, : len(directions)] = directions.t()

    def stay_within(self) -> None:
        """Keep the decoder rows where their start allows them."""
        if self.bounds is not None:
            self.bounds.keep(self.sae.W_dec)

    @property
    def checked(self) -> bool:
        """Whether the step just done was one of the checks."""
        return (
            bool(self.entries)
            and self.entries[-1]["step"] == self.done
            and "held_fvu" in self.entries[-1]
        )

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters by name, without the running threshold of sae-lens, which is not used."""
        return {name: value.detach() for name, value in self.sae.named_parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, by name."""
        found = {f"weights.{name}": value for name, value in self.weights().items()}
        found |= {f"best.{name}": value for name, value in self.best.weights.items()}
        found |= {f"sums.{name}": value for name, value in self.sums.items()}
        found["silent"] = self.silent
        for name, parameter in self.sae.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"adam.{key}.{name}"] = value
        return found

    def progress(self) -> dict[str, Any]:
        """Return the numbers of a checkpoint."""
        return {
            "done": self.done,
            "stopped": self.stopped,
            "entries": self.entries,
            "best": [self.best.score, self.best.fvu, self.best.step] if self.best.weights else None,
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Restore a checkpoint."""
        tensors = {name: value.to(self.world.device) for name, value in tensors.items()}
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(tensors[f"weights.{name}"])
            if f"adam.step.{name}" not in tensors:
                continue
            state = self.optimizer.state[parameter]
            # torch's fused step counts on the device, ours on the CPU.
            step_of = tensors[f"adam.step.{name}"]
            state["step"] = step_of.cpu() if isinstance(self.optimizer, Adam) else step_of
            for key in ("exp_avg", "exp_avg_sq"):
                # With the memory layout of the parameter, which may be stored by columns.
                state[key] = torch.empty_like(parameter).copy_(tensors[f"adam.{key}.{name}"])
        self.silent = tensors["silent"]
        self.sums = _below(tensors, "sums.")
        self.done, self.stopped = progress["done"], progress["stopped"]
        self.entries = progress["entries"]
        if progress["best"]:
            self.best = BestWeights(*progress["best"], weights=_below(tensors, "best."))

    @torch.no_grad()
    def restore_best(self) -> None:
        """Restore the best weights."""
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(self.best.weights[name])

    def _ready(self, rows: Tensor) -> Tensor:
        return rows.to(self.world.device, self.dtype) * self.scale

    def _add(self, **values: Tensor) -> None:
        """Add to the sums for the log, on the device, so that no step waits for a transfer."""
        for name, value in values.items():
            so_far = self.sums.get(name)
            value = value.detach().double()
            self.sums[name] = value.clone() if so_far is None else so_far + value
        steps = self.sums.get(
            "steps", torch.zeros((), dtype=torch.float64, device=self.world.device)
        )
        self.sums["steps"] = steps + 1

    def _entry(self) -> dict[str, Any]:
        names = sorted(self.sums)
        values = total(torch.stack([self.sums[name] for name in names])).tolist()
        summed = dict(zip(names, values, strict=True))
        steps = summed.pop("steps")
        for value in self.sums.values():
            value.zero_()
        return {
            "step": self.done,
            "samples": self.done * self.batch,
            "epoch": round(self.done / (self.rows.n // self.batch), 4),
            "lr": self.optimizer.param_groups[0]["lr"],
            **{name: value / steps for name, value in summed.items()},
            "dead": float(self.dead.double().mean()),
        }

    def _held_out(self) -> tuple[float, float]:
        """Return sums over the held-out rows; each process computes every n-th chunk."""
        size = min(4096, max(256, _CELLS // self.recipe.d_sae))
        sums = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for part in self.held.split(size)[self.world.rank :: self.world.size]:
            sums += torch.stack(held_out_sums(self.sae, part, self.architecture.penalties))
        residual, penalty = total(sums).tolist()
        return residual, penalty

    def _resample(self) -> None:
        every = self.recipe.resample_every
        if not every or self.done > UNTIL * self.steps:
            return
        # Only at a step that completes another `every` samples.
        if self.done * self.batch // every == (self.done - 1) * self.batch // every:
            return
        rng = np.random.default_rng([self.recipe.seed, self.done])
        index = np.sort(rng.choice(self.rows.n, min(ROWS, self.rows.n), replace=False))
        x = self._ready(torch.from_numpy(self.rows.take(index)))
        dead = self.dead
        resample(self.sae, self.optimizer, dead, x, rng)
        self.silent = torch.where(dead, 0, self.silent)


def _adam(sae: torch.nn.Module, lr: float, device: torch.device) -> torch.optim.Optimizer:
    if device.type == "cpu":
        return Adam(sae.parameters(), lr=lr)
    return torch.optim.Adam(sae.parameters(), lr=lr, fused=True)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
