"""Measures each artifact of a run with the head that the run predicts with."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dermaudit.errors import DermauditError, EvidenceError
from dermaudit.sae.run_data import RunData

from ..evidence.cross_fit import TrapData
from ..suppression.cross_fitted import trap_data
from ..suppression.head import pick_head
from .drawn import measure_drawn
from .reliance import measure_reliance

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

    from .stage import VerdictOptions


class Judge:
    """The head of a run, and the model that drawn images are embedded with. `options` have a seed."""

    def __init__(self, data: RunData, tower: HookedTower, options: VerdictOptions) -> None:
        self.data, self.tower, self.options = data, tower, options
        self.head, _ = pick_head(data.run, tower, None)

    def _rows(self, concept: str) -> TrapData:
        """Return the rows with a label and a value for the concept. EvidenceError where there are none."""
        target = self.options.target
        if target not in self.head.classes:
            raise EvidenceError(f"the head has no class {target}")
        rows = trap_data(self.data, concept, target=target, seed=self.options.seed or 0).known()
        if not len(rows.x):
            raise EvidenceError(f"no image has a label and a value for {concept}")
        return rows

    def measure(self, concept: str) -> tuple[bool, dict[str, Any]]:
        """Return whether the head leans on the concept, and the figures of that (verdict.parquet). EvidenceError where
        it cannot be measured.
        """
        target, rows = self.options.target, self._rows(concept)
        reliance = measure_reliance(rows, self.head, target)
        figures: dict[str, Any] = asdict(reliance)
        try:
            drawn = measure_drawn(self.data, concept, rows, self.head, target, self.tower)
            figures["drawn"] = asdict(drawn)
        except DermauditError as error:  # an image that is gone, too
            figures["drawn_reason"] = error.message
        return reliance.relied_on, figures
