"""The controls of an SAE as a table, and a sentence that compares."""

from __future__ import annotations

from typing import Any

from dermaudit.console import say, table

SINGLE = "SAE, one fit"
#: Figure, its name, and whether more is better (1) or less (−1).
FIGURES = (
    ("fvu", "FVU", -1),
    ("lift_share", "lift share", 1),
    ("monosemanticity", "monosemanticity", 1),
    ("bottleneck_auroc", "bottleneck AUROC", 1),
    ("pw_mcc", "agreement of two halves", 1),
)


def controls_table(controls: dict[str, dict[str, Any]], pw_mcc: float | None) -> None:
    """Print a line for each control on stderr, and where training helps."""

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    lines = []
    for name, one in controls.items():
        interval = one["lift_share_ci"]
        within = f" ({interval[0]:.2f} … {interval[1]:.2f})" if interval else ""
        own = {**one, "pw_mcc": pw_mcc} if name == "this SAE" else one
        lines.append(
            (
                name,
                str(one["latents"]),
                f"{one['l0']:.2f}",
                shown(one["fvu"]),
                shown(one["lift_share"]) + within,
                *(shown(own[key]) for key, _, _ in FIGURES[2:]),
            )
        )
    table(
        "controls: the same rows, and an encoder fitted to each decoder",
        ("dictionary", "latents", "L0", *(label for _, label, _ in FIGURES)),
        lines,
    )
    say(f"  {compared(controls, pw_mcc)}")


def compared(controls: dict[str, dict[str, Any]], pw_mcc: float | None) -> str:
    """Return in a sentence where the SAE is better than its best control, and where it is not."""
    own = controls["this SAE"] | {"pw_mcc": pw_mcc}
    others = {name: one for name, one in controls.items() if name not in ("this SAE", SINGLE)}
    better, not_better = [], []
    for key, label, sign in FIGURES:
        known = {name: one[key] for name, one in others.items() if one[key] is not None}
        if own[key] is None or not known:
            continue
        best = max(known, key=lambda name: sign * known[name])
        line = f"{label} {own[key]:.3f} against {known[best]:.3f} of {best}"
        (better if sign * (own[key] - known[best]) > 0 else not_better).append(line)
    return (
        f"Training helps in: {'; '.join(better) or 'nothing'}. "
        f"It does not in: {'; '.join(not_better) or 'nothing'}."
    )
