"""The recipe of an SAE: one frozen, validated record. Nothing heavy is imported here.

Durations are in rows (samples), not in steps, so that a window of 20,000 samples means the same with any
batch size. Coefficients refer to the summed squared error of one row in units of training (`scale`).
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from dermaudit.errors import UserInputError, unknown

from .architectures.registry import architecture, architectures

ARCHITECTURES = tuple(architectures())


@dataclass(frozen=True)
class SAERecipe:
    """The settings of a fit. UserInputError for values that are impossible or contradict each other.

    `k` is the number of active latents in a row (topk), their mean over a batch (batchtopk, matryoshka), or
    the mean to which jumprelu's quadratic penalty pulls and its thresholds are shifted; relu_l1 has none.
    `widths` are the nested prefixes of matryoshka, the last one is d_sae. `epochs` replaces `samples` if it
    is given. `order_seed` seeds the order of the rows, `seed` everything else, so that several seeds can
    share one pass over the data.
    """

    architecture: str = "batchtopk"
    d_sae: int = 512
    k: float = 8.0
    widths: tuple[int, ...] = ()
    l1_coefficient: float = 1.0
    l0_coefficient: float = 1.0
    l0_penalty: Literal["quadratic", "step", "tanh"] = "quadratic"
    l0_bandwidth: float = 1.0
    l0_threshold: float = 0.1  # at the start
    ortho_coefficient: float = 0.25
    penalty_warmup: float = 0.1  # fraction of the steps in which a penalty grows to its coefficient
    samples: int = 400_000
    epochs: float | None = None
    batch: int = 512
    lr: float = 1e-3
    warmup: float = 0.05  # fraction of the steps
    decay: Literal["cosine", "linear", "none"] = "cosine"
    clip: float = 1.0  # maximum norm of the gradient; 0 = none
    dead_window: int = 20_000  # samples without firing after which a latent is dead
    aux_coefficient: float = (
        0.03125  # of AuxK (arXiv 2406.04093); jumprelu: of its pre-activation loss
    )
    resample_every: int = 0  # samples between resamplings of dead latents; 0 = never
    checks: int = 8  # number of evaluations on held-out rows
    patience: int = 3  # checks without improvement after which fitting ends
    scale: Literal["sqrt_d", "none"] = "sqrt_d"  # rows are scaled to mean norm √d about their mean
    centre: bool = True  # b_dec starts at the mean of the rows; else at 0
    export: Literal["threshold", "topk"] = "threshold"
    seed: int = 0
    order_seed: int = 0

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            _check_type(spec.name, getattr(self, spec.name), _TYPES[spec.name])
        _check_range(self)
        if self.has_k:
            _check_k(self)
        for other in architectures().values():
            for name in other.own_settings:
                if other.name != self.architecture and getattr(self, name) != _DEFAULTS[name]:
                    raise UserInputError(
                        f"{name} is a setting of the architecture {other.name}, not of "
                        f"{self.architecture}",
                        f"leave it out, or choose --arch {other.name}",
                    )
        for name, value in architecture(self.architecture).derived_settings(self).items():
            object.__setattr__(self, name, value)

    @property
    def has_k(self) -> bool:
        """Whether `k` is the mean L0 of the fitted SAE."""
        return architecture(self.architecture).has_k(self)

    def steps(self, n: int) -> int:
        """Return the number of steps over n rows; an epoch has the full batches of n rows."""
        batch = self.batch_of(n)
        if self.epochs is not None:
            return max(1, round(self.epochs * (n // batch)))
        return max(1, self.samples // batch)

    def batch_of(self, n: int) -> int:
        """Return the size of a batch of n rows."""
        return min(self.batch, n)

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then the decay to 0."""
        warm = max(1, int(steps * self.warmup)) if self.warmup else 0
        if step < warm:
            return self.lr * (step + 1) / warm
        progress = (step - warm) / max(1, steps - warm)
        if self.decay == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * (1 - progress) if self.decay == "linear" else self.lr

    def penalty_factor(self, progress: float) -> float:
        """Return the factor of the penalties after the fraction `progress` of the steps."""
        return 1.0 if self.penalty_warmup == 0 else min(1.0, progress / self.penalty_warmup)

    def replaced(self, settings: dict[str, Any]) -> SAERecipe:
        """Return the recipe with other values {field: value}.

        Errors are those of a new recipe; for an unknown name the nearest field is suggested.
        """
        for name in settings:
            if name not in _TYPES:
                raise unknown("setting", name, _TYPES)
        if "d_sae" in settings and "widths" not in settings:
            settings = {"widths": (), **settings}
        return dataclasses.replace(self, **settings)


_TYPES = typing.get_type_hints(SAERecipe)
_DEFAULTS = {spec.name: spec.default for spec in dataclasses.fields(SAERecipe)}


def settings_from(texts: list[str]) -> dict[str, Any]:
    """Return {field: value} of `key=value` texts. UserInputError names a text that is not valid."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserInputError(f"--set {text}: expected key=value", "for example --set lr=3e-4")
        found[name.strip()] = value_of(name.strip(), value)
    return found


def value_of(name: str, text: str) -> Any:
    """Return the value of a field from its text."""
    if name not in _TYPES:
        raise unknown("setting", name, _TYPES)
    text, kinds = text.strip(), _kinds(_TYPES[name])
    if type(None) in kinds and text.lower() in ("", "none"):
        return None
    if kinds[0] is str or typing.get_origin(kinds[0]) is Literal:
        return text
    if kinds[0] is bool:
        if text.lower() not in ("true", "false"):
            raise UserInputError(f"{name}={text}: expected true or false")
        return text.lower() == "true"
    try:
        if kinds[0] is int:
            # People write numbers of samples as 1e6 and as 1_000_000.
            number = float(text)
            if not number.is_integer():
                raise ValueError
            return int(number)
        if kinds[0] is float:
            return float(text)
        return tuple(int(part) for part in text.replace("-", ",").split(",") if part)
    except (ValueError, OverflowError):
        wanted = {int: "a whole number", float: "a number"}.get(
            kinds[0], "whole numbers: 64-128-256"
        )
        raise UserInputError(f"{name}={text}: expected {wanted}") from None


def dermfm_zero(d_in: int = 768) -> dict[str, Any]:
    """Return the settings of the published recipe of DermFM-Zero.

    ReLU, L1, unit-norm decoder, tied bias that starts at 0, rows without scaling. Its loss
    (1/d)‖x − x̂‖² + 3e-5 Σz is ours divided by d.
    """
    return {
        "architecture": "relu_l1",
        "d_sae": 8 * d_in,
        "l1_coefficient": 3e-5 * d_in,
        "lr": 5e-4,
        "batch": 4096,
        "epochs": 200.0,
        "warmup": 0.0,
        "decay": "none",
        "penalty_warmup": 0.0,
        "clip": 0.0,
        "scale": "none",
        "centre": False,
    }


def _kinds(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType):
        return tuple(sorted(typing.get_args(hint), key=lambda kind: kind is type(None)))
    return (hint,)


def _check_type(name: str, value: Any, hint: Any) -> None:
    kinds = _kinds(hint)
    if value is None and type(None) in kinds:
        return
    if typing.get_origin(kinds[0]) is Literal:
        options = typing.get_args(kinds[0])
        if value not in options:
            raise unknown(name, str(value), options)
    elif kinds[0] is str:
        if not isinstance(value, str):
            raise UserInputError(f"{name} = {value!r} is not a text")
    elif kinds[0] in (int, float):
        numbers = int if kinds[0] is int else int | float
        if isinstance(value, bool) or not isinstance(value, numbers):
            raise UserInputError(
                f"{name} = {value!r} is not a {'whole ' if kinds[0] is int else ''}number"
            )
        if not math.isfinite(value):
            raise UserInputError(f"{name} = {value} is not finite")
    elif kinds[0] is bool:
        if not isinstance(value, bool):
            raise UserInputError(f"{name} = {value!r} is neither true nor false")
    elif not isinstance(value, tuple) or not all(type(part) is int for part in value):
        raise UserInputError(f"{name} = {value!r} is not a tuple of whole numbers")


_POSITIVE = (
    "d_sae",
    "k",
    "samples",
    "epochs",
    "batch",
    "lr",
    "dead_window",
    "checks",
    "patience",
    "l0_bandwidth",
)
_NOT_NEGATIVE = (
    "l1_coefficient",
    "l0_coefficient",
    "l0_threshold",
    "ortho_coefficient",
    "clip",
    "aux_coefficient",
    "resample_every",
    "seed",
    "order_seed",
)
_FRACTIONS = ("warmup", "penalty_warmup")


def _check_range(recipe: SAERecipe) -> None:
    for name in _POSITIVE:
        value = getattr(recipe, name)
        if value is not None and value <= 0:
            raise UserInputError(f"{name} = {value:g} must be above 0")
    for name in _NOT_NEGATIVE:
        if getattr(recipe, name) < 0:
            raise UserInputError(f"{name} = {getattr(recipe, name):g} must not be below 0")
    for name in _FRACTIONS:
        if not 0 <= getattr(recipe, name) <= 1:
            raise UserInputError(
                f"{name} = {getattr(recipe, name):g} must be a fraction of the steps, 0 to 1"
            )


def _check_k(recipe: SAERecipe) -> None:
    if recipe.k > recipe.d_sae:
        raise UserInputError(
            f"k = {recipe.k:g} is larger than d_sae = {recipe.d_sae}: a row cannot have more active "
            "latents than the SAE has",
            "choose k well below d_sae",
        )
    if int(recipe.k * recipe.batch) < 1:
        raise UserInputError(
            f"k = {recipe.k:g} keeps nothing of a batch of {recipe.batch}",
            "choose a larger k or batch",
        )
