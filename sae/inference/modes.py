"""The modes of suppression: what each does to a latent that fires, and which options it needs.

Imports no torch, because the command line reads it for its help.
"""

from __future__ import annotations

import math

from dermaudit.errors import UserInputError, unknown

#: Mode → what it does to the code z of a suppressed latent.
DOES: dict[str, str] = {
    "subtract": "removes the latent",
    "mean": "sets it to its mean over artifact-free train images",
    "clamp": "caps it at their 95 % quantile",
    "scale": "multiplies it by --level",
    "reactive": "removes it only where the artifact score, the sum of the recipe's codes, is over the "
    "95 % quantile of artifact-free train images",
}
MODES = tuple(DOES)


def check_mode(mode: str, level: float | None) -> None:
    """Raise UserInputError for an unknown mode, `scale` without its level, or a level of another mode."""
    if mode not in MODES:
        raise unknown("suppression mode", mode, MODES)
    if mode == "scale":
        if level is None:
            raise UserInputError(
                "--mode scale needs --level, the factor of the codes",
                "for example --level 0.5; 0 is subtract, 1 changes nothing",
            )
        if not (math.isfinite(level) and level >= 0):
            raise UserInputError(
                f"--level {level:g} cannot scale codes", "give a number of 0 or more"
            )
    elif level is not None:
        raise UserInputError(
            f"--level {level:g} has no effect in mode {mode}", "it belongs to --mode scale"
        )
