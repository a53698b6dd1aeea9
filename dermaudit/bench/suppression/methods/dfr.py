"""DFR (arXiv 2204.02937): the last layer fitted again on equally many rows of each group."""

from __future__ import annotations

from dermaudit.concepts.evidence.cross_fit import Fold, balanced_rows
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.heads import fit_probe


class Dfr:
    """Needs the artifact and the target of the training rows; the embedding is not edited."""

    name = "dfr"

    def fit(self, fold: Fold) -> EditedHead:
        """Fit a head on balanced training rows."""
        rows, data = balanced_rows(fold), fold.data
        head = fit_probe(data.x[rows], data.y[rows], data.groups[rows], seed=data.seed)
        return EditedHead(head, lambda x: x)


METHOD = Dfr()
