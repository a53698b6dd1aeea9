"""What an audit prints: the object of `--json` (docs/formats.md) and the short table."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dermaudit.console import say, table

SUPPRESSION_KEYS = (
    "site",
    "method",
    "latents",
    "cross_group_auroc_before",
    "cross_group_auroc_after",
    "oracle",
    "gap_closed",
    "ci",
    "clean_auroc_delta",
    "clean_auroc_ci",
    "worst_group_before",
    "worst_group_fixed",
    "worst_group_prevalence",
    "flips",
    "identity_share",
    "insertion_residual",
    "random_beaten",
    "refused",
    "n",
)
VERDICT_KEYS = ("concept", "seen", "relied_on", "helps", "cost", "badge", "reason")
OPTIONAL_KEYS = ("reason", "insertion_residual_reason", "measured_on")
SAE_KEYS = ("d_in", "d_sae", "l0", "fvu", "dead")


def audit_result(
    run: Path, target: str, results: Mapping[str, Mapping[str, Any]], seconds: dict[str, float]
) -> dict[str, Any]:
    """Return the object of `--json`, from what each stage returned (by its command)."""
    embedded, labels = results["embed"], results["annotate"]["labels"]
    suppressed = results["recipe make"]["suppression"]
    saes = results["fit"]["sae"]
    result = {
        "run": str(run),
        "verdict": [
            {key: row[key] for key in VERDICT_KEYS} for row in results["verdict"]["verdict"]
        ],
        "n_images": embedded["n_images"],
        "n_skipped": embedded["n_skipped"],
        "peak_rss_gb": peak_rss_gb(),
        "seconds": seconds,
        "sae": {site: sae_summary(figures) for site, figures in saes.items()},
        "concepts": concept_summary(labels),
        "naming": naming_summary(results["name"]),
        "bottleneck": bottleneck_summary(results["compare"], target),
        "suppression": {name: suppression_summary(f) for name, f in suppressed.items()},
        "report": str(results["report"]["report"]),
    }
    if not labels:
        result["concepts_reason"] = "no labels: not measured"
    return result


def sae_summary(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--json` has of one SAE; `reference` if it is the dictionary that the model ships."""
    reference = {"reference": figures["reference"]} if "reference" in figures else {}
    return {key: figures[key] for key in SAE_KEYS} | reference


def bottleneck_summary(compared: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Return what `--json` has of the bottlenecks."""
    kinds = ("sae", "vocabulary", "random", "probe")
    out = {"nec": compared.get("nec"), "task": target, **{k: compared.get(k) for k in kinds}}
    return out | ({"reason": compared["reason"]} if "reason" in compared else {})


def suppression_summary(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--json` has of one suppression."""
    row = {key: figures.get(key) for key in SUPPRESSION_KEYS}
    # The names that earlier versions had for three of the figures.
    row |= {
        "worst_group_after": row["worst_group_prevalence"],
        "random_sets": len(figures["random_changes"]) if "random_changes" in figures else None,
        "random_sets_beaten": row["random_beaten"],
    }
    return row | {key: figures[key] for key in OPTIONAL_KEYS if figures.get(key)}


def concept_summary(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--json` has of each labelled concept."""
    out = {}
    for name, row in labels.items():
        out[name] = {
            key: row[key]
            for key in (
                "type",
                "site",
                "latent",
                "auprc",
                "probe_auprc",
                "prevalence",
                "n_pos",
                "lift_share",
            )
        }
        out[name]["auprc_ci"] = _pair(row, "auprc")
        out[name]["lift_share_ci"] = _pair(row, "lift_share")
        if row["reason"]:
            out[name]["reason"] = row["reason"]
    return out


def _pair(row: dict[str, Any], key: str) -> list[float] | None:
    return None if row[f"{key}_lo"] is None else [row[f"{key}_lo"], row[f"{key}_hi"]]


def naming_summary(naming: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--json` has of the names."""
    keys = (
        "named",
        "unnamed",
        "coverage",
        "n_judged",
        "wrong_among_named",
        "named_under_permutation",
    )
    out = {key: naming.get(key) for key in keys}
    if out["wrong_among_named"] is None:
        out["reason"] = "no name has a label to be judged by"
    return out


def peak_rss_gb() -> float:
    """Peak resident memory of this process in GB (`make bench` measures the whole process tree)."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


FOUND_HEADER = (
    "artifact",
    "AUPRC",
    "lift share",
    "cross-group AUROC",
    "worst group",
    "random beaten",
    "insertion left",
    "",
)


def found_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table "what was found": one for each suppressed artifact."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    rows = []
    for name, figures in result["suppression"].items():
        found = result["concepts"].get(name, {})
        before, after = (figures[f"cross_group_auroc_{when}"] for when in ("before", "after"))
        measured = before is not None
        worst = [figures[f"worst_group_{at}"] for at in ("before", "fixed", "prevalence")]
        beaten = f"{figures['random_beaten']}/{figures['random_sets']}"
        refused = "; ".join(figures["refused"] or [])
        of_reference = "of the reference; " if "measured_on" in figures else ""
        comment = figures.get("reason") or (f"refused: {refused}" if refused else "")
        rows.append(
            (
                name,
                number(found.get("auprc")),
                number(found.get("lift_share")),
                f"{before:.2f} → {after:.2f}" if measured else "not measured",
                " → ".join(map(number, worst)) if measured else "",
                beaten if measured else "",
                number(figures["insertion_residual"]),
                (of_reference + comment).removesuffix("; ")[:70],
            )
        )
    return rows


def print_summary(result: dict[str, Any]) -> None:
    """Print the short table of what was found."""
    rows = found_rows(result)
    if rows:
        table("what was found", FOUND_HEADER, rows)
    naming, n = result["naming"], result["n_images"]
    say(
        f"\n{n} images, {naming['named']} latents named and {naming['unnamed']} left unnamed; "
        f"{result['seconds']['total']:.0f} s, {result['peak_rss_gb']:.1f} GB; report: {result['report']}"
    )
    if not result["concepts"]:
        say("no labels: names and maps only, nothing else was measured on these images")
