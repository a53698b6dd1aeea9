"""The controls of an SAE as a table, and a sentence that compares."""

from __future__ import annotations

from typing import Any

from dermaudit.console import say, table

SINGLE = "SAE, one fit"
ALIGNED, ORTHO = "decoder-aligned SAE", "OrtSAE"
N_ENSEMBLE = 5
ARCHETYPAL, ENSEMBLE = "archetypal SAE", f"ensemble of {N_ENSEMBLE} fits"
#: Other ways to train an SAE: they are compared with it, and are no controls of it.
TRAINED = (SINGLE, ALIGNED, ORTHO, ARCHETYPAL, ENSEMBLE)
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


_TIE = 0.02  # of the larger figure: a smaller difference is none


def compared(controls: dict[str, dict[str, Any]], pw_mcc: float | None) -> str:
    """Return in a sentence where the SAE is better than its best control, where they tie, and where it is worse.

    They tie if the interval of the lift share holds the figure of the control, and with a difference of at most
    2 %.
    """
    own: dict[str, Any] = {**controls["this SAE"], "pw_mcc": pw_mcc}
    others = {name: one for name, one in controls.items() if name not in ("this SAE", *TRAINED)}
    found: dict[str, list[str]] = {
        "Training helps in": [],
        "A control ties in": [],
        "It is worse in": [],
    }
    for key, label, sign in FIGURES:
        known = {name: one[key] for name, one in others.items() if one[key] is not None}
        if own[key] is None or not known:
            continue
        best = max(known, key=lambda name: sign * known[name])
        mine, theirs = own[key], known[best]
        low, high = (own.get(f"{key}_ci") or (mine, mine))[:2]
        tie = low <= theirs <= high or abs(mine - theirs) <= _TIE * max(abs(mine), abs(theirs))
        better = sign * (mine - theirs) > 0
        kind = 1 if tie else 0 if better else 2
        list(found.values())[kind].append(f"{label} ({mine:.3f} against {theirs:.3f} of {best})")
    return " ".join(f"{start}: {'; '.join(parts) or 'nothing'}." for start, parts in found.items())
