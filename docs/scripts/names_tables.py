"""The page of names: naming methods side by side, at two accepted risks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from command import dermaudit
from result_text import interval, number, table

Figures = dict[str, Any]
RISKS = ("0.1", "0.2")
TITLES = {"phantoms": "Phantoms", "real": "Real dermoscopic images"}
INTRODUCTION = """# Names

What `dermaudit name` calls the latents of an audit, and what published methods would call them, judged by labels of
test images that no method has seen ([how](../concepts.md)). *Wrong*: the latent ranks another labelled concept
better, by more than .05 of its lift or beyond the interval, or its own no better than chance; intervals over
concepts. *Tolerant*: a confusion that the vocabulary declares is not wrong. *Surest 40 %*: wrong among the judged
names with the highest probability (published methods: the highest score). *Sets*: how many latents were answered with
a set of words, and how often the right one is among them. *When permuted*: how many latents are named when their
activations are shuffled over the images.

`fused` (the default) names a latent by a labelled concept of train and val where one explains it, else by `words`,
which knows no label. Both take their probabilities from rendered images of other seeds, without the rows of the
concept itself. `supervised` names every latent after the label that it ranks best on train and val, and the others
use no label.

Written by `make results`: `dermaudit bench names --run RUN`."""


def names_figures(run: Path) -> Figures:
    """Return {risk: {method: figures}} of a run; at the second risk of `fused` alone."""
    found = {}
    for risk in RISKS:
        only = () if risk == RISKS[0] else ("--method", "fused")
        told = dermaudit("bench", "names", "--run", run, "--risk", risk, *only, "--json")
        found[risk] = json.loads(told)["methods"]
    return found


def names_page(results: dict[str, Figures]) -> str:
    """Return docs/results/names.md from {"phantoms" or "real": figures}."""
    parts = [INTRODUCTION]
    for name, figures in results.items():
        lines = [_line(method, one) for method, one in figures[RISKS[0]].items()]
        lines += [_line(f"fused, risk {RISKS[1]}", figures[RISKS[1]]["fused"])]
        parts += [
            f"## {TITLES[name]}",
            table(
                "| method | named, of live | judged | wrong | tolerant | surest 40 % | calibration error "
                "| sets: given, judged, right inside | AUPRC below the best latent | when permuted |",
                lines,
            ),
            names_sentence(figures[RISKS[0]]["fused"]),
        ]
    return "\n\n".join(parts) + "\n"


def names_sentence(fused: Figures) -> str:
    """Say what the default method answers."""
    return (
        f"Of {fused['live']} live latents {fused['named']} are named and {fused['sets']['given']} answered with a set; "
        f"{number(fused['wrong'])}{interval(fused['wrong_ci'])} of the names that labels can judge are wrong."
    )


def _line(name: str, one: Figures) -> str:
    sets = one["sets"]
    inside = (
        "–"
        if not sets["given"]
        else f"{sets['given']}, {sets['n_judged']}, {number(sets['truth_inside'])}"
    )
    return (
        f"| {name} | {one['named']} of {one['live']} ({number(one['coverage'])}) | {one['n_judged']} "
        f"| {number(one['wrong'])}{interval(one['wrong_ci'])} | {number(one['wrong_tolerant'])} "
        f"| {number(one['risk_coverage'].get('0.4'))} | {number(one['ece'])} | {inside} "
        f"| {number(one['auprc_gap'])} | {one['named_under_permutation']} |"
    )
