"""The verdict of a run: which artifacts its own head leans on, what that rests on, and whether suppression helps."""

from __future__ import annotations

from typing import Any

from dermaudit.errors import EvidenceError

from . import figures
from .run_view import RunView
from .tables import Exhibit, Table, span


def verdict(view: RunView) -> Exhibit:
    """Return one line for each artifact. EvidenceError where the run has no artifact, or no verdict."""
    rows = view.verdict
    if not rows:
        raise EvidenceError("no artifact is labelled, taught or named: nothing to judge")
    target = view.stages["verdict"]["summary"]["target"]
    measured = [row for row in rows if row["figures"] is not None]
    return Exhibit(
        "Which artifacts the model leans on",
        f"The head is the run's own. Change of p({target}): the mean over held-out images with the artifact "
        "when a concept latent of it is suppressed (filled), and over images without it when it is drawn onto "
        "them (open); 95 % intervals over groups. A head leans on an artifact when suppression changes p by .01 "
        "or more, the interval leaves out 0, and 95 of 100 random latents change it less. The change by drawing "
        "does not decide: drawing covers what is below, and may look unlike a real artifact. Seen: AUROC of the "
        "concept latent for the artifact. Cost: change of the AUROC of images without it, by suppression. "
        "Badges: act = leaned on, and there is a recipe; watch = leaned on, no recipe; clear = not leaned on.",
        Table.of(
            rows,
            ("artifact", "concept"),
            ("badge", "badge"),
            ("seen", "seen"),
            ("change of p, suppressed", lambda r: _figure(r, "change")),
            ("95 % interval", lambda r: _span(r["figures"], "change_ci")),
            ("random latents beaten", lambda r: _figure(r, "random_beaten")),
            ("decisions changed", lambda r: _figure(r, "decisions")),
            ("change of p, drawn", lambda r: _drawn(r, "change")),
            ("95 %", lambda r: _span(_drawn_figures(r), "change_ci")),
            ("n", lambda r: _figure(r, "n")),
            ("suppression helps", "helps"),
            ("cost", "cost"),
            ("not measured, or no recipe, because", "reason"),
            shares=("decisions changed",),
        ).without_empty_last(),
        _figure_of(measured, target) if measured else None,
        "; ".join(
            f"{row['concept']}: {row['badge']}, change of p {row['figures']['change']:+.3f}"
            for row in measured
        ),
        notes=[sentence(rows, target)],
    )


def sentence(rows: list[dict[str, Any]], target: str) -> str:
    """Return in a sentence or two which artifacts the model leans on."""
    by_badge = {
        badge: [row["concept"] for row in rows if row["badge"] == badge]
        for badge in ("act", "watch", "clear", "not measured")
    }
    leaned = by_badge["act"] + by_badge["watch"]
    text = (
        f"The prediction of {target} leans on {', '.join(leaned)}."
        if leaned
        else f"No artifact was found that the prediction of {target} leans on."
    )
    if by_badge["act"]:
        text += f" There is a recipe that suppresses {', '.join(by_badge['act'])}."
    if by_badge["not measured"]:
        text += f" Not measured: {', '.join(by_badge['not measured'])}."
    return text


def _figure_of(rows: list[dict[str, Any]], target: str) -> figures.Figure:
    return figures.pairs(
        [f"{row['concept']} (n {row['figures']['n']})" for row in rows],
        ("drawn onto images without it", [_drawn(row, "change") for row in rows]),
        ("suppressed in images with it", [_figure(row, "change") for row in rows]),
        [_span(_drawn_figures(row), "change_ci") for row in rows],
        [_span(row["figures"], "change_ci") for row in rows],
        axis=f"mean change of p({target})",
        lines=[(0.0, "no change")],
    )


def _figure(row: dict[str, Any], name: str) -> Any:
    return None if row["figures"] is None else row["figures"][name]


def _drawn_figures(row: dict[str, Any]) -> dict[str, Any] | None:
    return None if row["figures"] is None else row["figures"].get("drawn")


def _drawn(row: dict[str, Any], name: str) -> Any:
    found = _drawn_figures(row)
    return None if found is None else found[name]


def _span(found: dict[str, Any] | None, name: str) -> tuple[float, float] | None:
    return None if found is None else span(*found[name])
