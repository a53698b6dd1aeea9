"""Latents chosen by their name: those that the naming stage named after the concept."""

from __future__ import annotations

import json
from typing import Any

from dermaudit.errors import EvidenceError
from dermaudit.sae.run_data import POOLED

from .registry import ChoiceData, ChosenLatents


class NameMethod:
    """Every latent of the pooled site that is named after the concept; no labels are needed."""

    name = "name"
    needs_labels = False

    def choose(self, given: ChoiceData) -> ChosenLatents:
        """Return the named latents, the highest z first."""
        rows = [row for row in given.data.concepts if row["site"] == POOLED]
        named = [row for row in rows if row["name"] == given.concept]
        named.sort(key=lambda row: (-row["z"], row["latent"]))
        if not named:
            scores = _best_scores(rows, given.concept)
            raise EvidenceError(
                f"no latent of {POOLED} is named '{given.concept}'"
                + (f"; best scores: {scores}" if scores else ""),
                "without labels only a named latent can be suppressed; label some images, or fit a "
                "wider SAE",
                {"named": 0, "latents": len(rows)},
            )
        evidence = [{"z": round(row["z"], 6), "q": round(row["q"], 6)} for row in named]
        return ChosenLatents([row["latent"] for row in named], evidence, len(named))


def _best_scores(rows: list[dict[str, Any]], concept: str) -> str:
    scored = [
        (score, row["latent"])
        for row in rows
        for word, score in json.loads(row["rivals"])
        if word == concept
    ]
    return ", ".join(f"latent {j} {s:.2f}" for s, j in sorted(scored, reverse=True)[:3])


METHOD = NameMethod()
