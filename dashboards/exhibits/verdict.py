"""The verdict of a run: which artifacts its own head leans on, what that rests on, and whether suppression helps."""

from __future__ import annotations

from typing import Any

from dermaudit.errors import EvidenceError

from . import figures
from .run_view import RunView
from .tables import Exhibit, Table, span


def verdict(view: RunView) -> Exhibit:
    """Return one line for each artifact. EvidenceError where the run has no artifact, or no verdict."""
    rows, target = _rows(view)
    borrowed = view.stages.get("heads", {}).get("summary", {}).get("reference")
    owner = f"that of the reference of {borrowed}" if borrowed else "the run's own"
    return Exhibit(
        "Which artifacts the model leans on",
        f"The head is {owner}, and the target is {target}. Seen: AUROC of a concept latent for the artifact. "
        "Suppression helps: of a head that was fitted where the artifact predicts the target. Cost: change of the "
        "AUROC of images without the artifact, by suppression. Badges: act = leaned on, and there is a recipe; "
        "watch = leaned on, no recipe; clear = not leaned on.",
        Table.of(
            rows,
            ("artifact", "concept"),
            ("badge", "badge"),
            ("seen", "seen"),
            ("leaned on", "relied_on"),
            ("suppression helps", "helps"),
            ("cost", "cost"),
            ("not measured, or no recipe, because", "reason"),
        ).without_empty_last(),
        notes=[sentence(rows, target)],
    )


def leaning(view: RunView) -> Exhibit:
    """Return what the answer "leaned on" rests on. EvidenceError where it was not measured for any artifact."""
    rows, target = _rows(view)
    measured = [row for row in rows if row["figures"] is not None]
    if not measured:
        raise EvidenceError("; ".join(f"{row['concept']}: {row['reason']}" for row in rows))
    return Exhibit(
        "How far the prediction moves with the artifact",
        f"Change of p({target}): the mean over held-out images with the artifact when a concept latent of it is "
        "suppressed (filled), and over images without it when it is drawn onto them (open); 95 % intervals over "
        "groups. A head leans on an artifact when suppression changes p by .01 or more, the interval leaves out 0, "
        "and 95 of 100 random latents change it less. The change by drawing does not decide: drawing covers what is "
        "below, and may look unlike a real artifact.",
        Table.of(
            measured,
            ("artifact", "concept"),
            ("n", lambda r: r["figures"]["n"]),
            ("change, suppressed", lambda r: r["figures"]["change"]),
            ("95 % interval", lambda r: _span(r["figures"], "change_ci")),
            ("random latents beaten", lambda r: r["figures"]["random_beaten"]),
            ("decisions changed", lambda r: r["figures"]["decisions"]),
            ("by a random latent", lambda r: r["figures"]["decisions_random"]),
            ("change, drawn", lambda r: _drawn(r, "change")),
            ("drawn, 95 %", lambda r: _span(r["figures"].get("drawn"), "change_ci")),
            ("random directions beaten", lambda r: _drawn(r, "random_beaten")),
            ("not drawn because", lambda r: r["figures"].get("drawn_reason")),
            shares=("decisions changed", "by a random latent"),
        ).without_empty_last(),
        figures.pairs(
            [f"{row['concept']} (n {row['figures']['n']})" for row in measured],
            ("drawn onto images without it", [_drawn(row, "change") for row in measured]),
            ("suppressed in images with it", [row["figures"]["change"] for row in measured]),
            [_span(row["figures"].get("drawn"), "change_ci") for row in measured],
            [_span(row["figures"], "change_ci") for row in measured],
            axis=f"mean change of p({target})",
            lines=[(0.0, "")],
        ),
        "; ".join(
            f"{row['concept']}: {row['badge']}, change {row['figures']['change']:+.3f}"
            for row in measured
        ),
    )


def _rows(view: RunView) -> tuple[list[dict[str, Any]], str]:
    """Return the lines of the verdict, and the target."""
    if not view.verdict:
        raise EvidenceError("no artifact is labelled, taught or named: nothing to judge")
    return view.verdict, view.stages["verdict"]["summary"]["target"]


def sentence(rows: list[dict[str, Any]], target: str) -> str:
    """Return in a sentence, without its full stop, which artifacts the model leans on"""
    by_badge = {
        badge: [row["concept"] for row in rows if row["badge"] == badge]
        for badge in ("act", "watch", "clear", "not measured")
    }
    leaned = by_badge["act"] + by_badge["watch"]
    text = (
        f"The prediction of {target} leans on {', '.join(leaned)}"
        if leaned
        else f"No artifact was found that the prediction of {target} leans on"
    )
    if by_badge["act"]:
        text += f"; there is a recipe for {', '.join(by_badge['act'])}"
    if by_badge["not measured"]:
        text += f"; not measured: {', '.join(by_badge['not measured'])}"
    return text


def _drawn(row: dict[str, Any], name: str) -> Any:
    found = row["figures"].get("drawn")
    return None if found is None else found[name]


def _span(found: dict[str, Any] | None, name: str) -> tuple[float, float] | None:
    return None if found is None else span(*found[name])
