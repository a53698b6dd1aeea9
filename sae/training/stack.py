"""SAEs of one shape that are trained together on a CPU: each step of all of them is one compiled call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .adam import Adam
from .architectures.base import TopKArchitecture
from .kernels import present

if TYPE_CHECKING:
    from .sae_in_training import SAEInTraining

_MOST = 1 << 22  # pre-activations of one SAE: with more, one SAE is enough work for all threads
_ALONE = 1 << 19  # the same where there are fewer SAEs than threads
#: What an architecture of one's own may do in a step, and the compiled call does not.
_STEP = ("step", "constrain_gradient", "constrain_weights")
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def learners(models: list[SAEInTraining]) -> list[SAEStack | SAEInTraining]:
    """Return what learns from each batch: stacks of SAEs of one shape, and the SAEs that cannot be stacked."""
    stacks: dict[tuple[Any, ...], list[SAEInTraining]] = {}
    alone: list[SAEStack | SAEInTraining] = []
    for model in models:
        shape = _shape(model)
        if shape is None:
            alone.append(model)
        else:
            stacks.setdefault(shape, []).append(model)
    found: list[SAEStack | SAEInTraining] = []
    for shape, members in stacks.items():
        small = shape[0] * shape[1] <= (
            _MOST if len(members) >= torch.get_num_threads() else _ALONE
        )
        found += [SAEStack(members)] if small else members
    return found + alone


def _shape(model: SAEInTraining) -> tuple[Any, ...] | None:
    """Return what SAEs of a stack have in common, batch and latents first; None if it cannot be stacked."""
    recipe, cfg, kind = model.recipe, model.sae.cfg, type(model.architecture)
    if (
        not issubclass(kind, TopKArchitecture)
        or any(getattr(kind, name) is not getattr(TopKArchitecture, name) for name in _STEP)
        or not isinstance(model.optimizer, Adam)
        or model.world.size > 1
        or recipe.resample_every
        or getattr(cfg, "use_matryoshka_aux_loss", False)
        or not present("numba")
    ):
        return None
    widths = tuple(getattr(cfg, "matryoshka_widths", None) or [cfg.d_sae])
    flags = (
        cfg.architecture() == "topk",
        cfg.rescale_acts_by_decoder_norm,
        cfg.apply_b_dec_to_input,
    )
    return model.batch, recipe.d_sae, widths, flags, model.scale, model.dtype


class SAEStack:
    """SAEs whose weights, moments of Adam and counters lie in common arrays, one after the other.

    The tensors of each SAE are parts of them, so that it can be measured and saved as if it were alone. An
    SAE that is finished leaves the stack. The running threshold of sae-lens, which is not used, is not updated.
    """

    def __init__(self, models: list[SAEInTraining]) -> None:
        self.models = models
        self.ready = False

    @property
    def finished(self) -> bool:
        """Whether all SAEs are finished."""
        return all(model.finished for model in self.models)

    def learn(self, rows: np.ndarray) -> None:
        """Take one step of each SAE that is not finished, on rows (b, d) float32 as they were stored."""
        learning = [model for model in self.models if not model.finished]
        if len(learning) < len(self.models) or not self.ready:
            self.models = learning
            self._join()
        from .kernels import stacked
        from .kernels.threads import share_out

        for s, model in enumerate(self.models):
            rate = model.recipe.learning_rate(model.done, model.steps)
            model.optimizer.param_groups[0]["lr"] = rate
            t = model.done + 1
            self.settings[s, 1:3] = rate / (1 - 0.9**t), (1 - 0.999**t) ** -0.5
        x = (torch.from_numpy(rows).to(self.models[0].dtype) * self.models[0].scale).numpy()
        share_out(
            stacked.steps, len(self.models), x, self.weights, self.first, self.second,
            (self.silent, self.sums), self.settings, self.shape, self.edges, self.unit,
        )  # fmt: skip
        self.taken += 1
        self.counts += 1
        for model in self.models:
            model.done += 1
            model.stay_within()

    @torch.no_grad()
    def _join(self) -> None:
        """Move the tensors of the SAEs into common arrays."""
        models, cfg = self.models, self.models[0].sae.cfg
        self.weights = tuple(self._joined(name) for name in _NAMES)
        self.first = tuple(self._moments(name, "exp_avg") for name in _NAMES)
        self.second = tuple(self._moments(name, "exp_avg_sq") for name in _NAMES)
        self.edges = np.asarray(getattr(cfg, "matryoshka_widths", None) or [cfg.d_sae], np.int64)
        per_row = cfg.architecture() == "topk"
        self.shape = per_row, bool(cfg.rescale_acts_by_decoder_norm), bool(cfg.apply_b_dec_to_input)
        batch = models[0].batch
        self.settings = np.array(
            [
                [
                    int(model.recipe.k if per_row else model.recipe.k * batch),
                    0,
                    0,
                    model.recipe.clip,
                    model.recipe.aux_coefficient,
                    model.recipe.dead_window,
                ]
                for model in models
            ],
            np.float64,
        )
        silent = torch.stack([model.silent for model in models])
        names = ["loss", "l0", "auxiliary_reconstruction_loss"]
        names += [f"inner_mse_loss_{width}" for width in self.edges[:-1]] + ["mse_loss"]
        sums, counts = (
            torch.zeros(len(models), len(names), dtype=torch.float64),
            torch.zeros(len(models), dtype=torch.float64),
        )
        taken = torch.tensor([float(model.done) for model in models])
        for s, model in enumerate(models):
            for i, name in enumerate(names):
                sums[s, i] = model.sums.get(name, sums[s, i])
            counts[s] = model.sums.get("steps", counts[s])
            model.silent = silent[s]
            model.sums = {name: sums[s, i] for i, name in enumerate(names)} | {"steps": counts[s]}
            for parameter in model.sae.parameters():
                model.optimizer.state[parameter]["step"] = taken[s]
        self.silent, self.sums, self.counts, self.taken = (
            silent.numpy(),
            sums.numpy(),
            counts,
            taken,
        )
        integer = np.int32 if self.weights[0].itemsize == 4 else np.int64
        self.unit = np.ones(1, integer)
        self.ready = True

    def _joined(self, name: str) -> np.ndarray:
        """Return a parameter of all SAEs (S, …); W_enc is (S, d_sae, d_in), as it is stored."""
        parameters = [getattr(model.sae, name) for model in self.models]
        turned = name == "W_enc"
        joined = torch.stack([p.data.t() if turned else p.data for p in parameters]).contiguous()
        for parameter, part in zip(parameters, joined, strict=True):
            parameter.data = part.t() if turned else part
        return joined.numpy()

    def _moments(self, name: str, key: str) -> np.ndarray:
        """Return a moment of Adam of all SAEs, 0 before the first step."""
        turned, parts = name == "W_enc", []
        for model in self.models:
            parameter = getattr(model.sae, name)
            moment = model.optimizer.state[parameter].get(key, torch.zeros_like(parameter))
            parts.append(moment.t() if turned else moment)
        joined = torch.stack(parts).contiguous()
        for model, part in zip(self.models, joined, strict=True):
            model.optimizer.state[getattr(model.sae, name)][key] = part.t() if turned else part
        return joined.numpy()
