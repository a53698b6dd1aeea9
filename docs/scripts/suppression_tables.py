"""The tables of docs/results/suppression.md."""

from __future__ import annotations

from typing import Any

from result_text import interval, number, table

Figures = dict[str, Any]
JOINT_KINDS = ("first", "second", "apart", "jointly")
LABEL_KINDS = {
    "0.0": "right labels",
    "0.2": "20 % swapped",
    "0.4": "40 % swapped",
    "shuffled": "shuffled labels",
}


def suppression_table(figures: Figures) -> str:
    lines = []
    for name, s in figures["suppression"].items():
        if s["cross_group_auroc_before"] is None:
            lines.append(
                f"| {name} | not measured: {s.get('reason') or 'no evidence'} | | | | | | | | |"
            )
            continue
        flips = s["flips"]
        worst = [
            "n too small" if s[key] is None else number(s[key])
            for key in ("worst_group_before", "worst_group_fixed", "worst_group_prevalence")
        ]
        lines.append(
            f"| {name} | {number(s['cross_group_auroc_before'])} → {number(s['cross_group_auroc_after'])} "
            f"({number(s['oracle'])}) | {interval(s['ci'], sign=True).strip()} | {number(s['gap_closed'])} "
            f"| {number(s['clean_auroc_delta'], 3, sign=True)}{interval(s['clean_auroc_ci'], sign=True)} "
            f"| {' → '.join(worst)} | {s['identity_share']:.0%} "
            f"| {s['random_beaten']} of {s['random_sets']} | {number(s['insertion_residual'])} "
            f"| {flips['edit']}, {flips['threshold']}, {flips['both']} |"
        )
    refused = [
        f"{n}: {'; '.join(s['refused'])}" for n, s in figures["suppression"].items() if s["refused"]
    ]
    made = table(
        "| artifact | cross-group AUROC (oracle) | change, 95 % interval | gap closed | artifact-free AUROC "
        "| worst group: before → unchanged threshold → prevalence-matched | rows unchanged "
        "| random latents beaten | insertion left | flipped by edit, threshold, both |",
        lines,
    )
    return made + (
        "\n\nRefused, no recipe is written: " + ". ".join(refused) + "." if refused else ""
    )


def method_table(figures: Figures) -> str:
    """Return the gap that each method closes for each artifact, and what it costs."""
    measured = {a: m for a, m in figures["methods"].items() if "reason" not in m}
    names = list(dict.fromkeys(name for methods in measured.values() for name in methods))
    lines = []
    for name in names:
        cells, gaps = [], []
        for methods in measured.values():
            one = methods.get(name, {})
            if "reason" in one or not one:
                cells.append("–")
                continue
            gaps.append(one["gap_closed"])
            cells.append(number(one["gap_closed"]) + interval(one["ci"], sign=True))
        mean = sum(gaps) / len(gaps) if len(gaps) == len(measured) and None not in gaps else None
        lines.append(f"| {name} | {number(mean)} | {' | '.join(cells)} |")
    head = table(f"| method | mean | {' | '.join(measured)} |", lines)
    refused = [f"{a}: {m['reason']}" for a, m in figures["methods"].items() if "reason" in m]
    return head + ("\n\nNot measured: " + "; ".join(refused) + "." if refused else "")


def verdict_table(figures: Figures) -> str:
    return table(
        "| artifact | badge | seen | leaned on | suppression helps | cost | not measured, or no recipe, because |",
        [
            f"| {row['concept']} | {row['badge']} | {number(row['seen'])} "
            f"| {'–' if row['relied_on'] is None else 'yes' if row['relied_on'] else 'no'} "
            f"| {row['helps'] or '–'} | {number(row['cost'], 3, sign=True)} | {row['reason'] or ''} |"
            for row in figures["verdict"]
        ],
    )


def cost_without_trap(figures: Figures) -> str:
    """Return in a sentence which artifacts' suppression costs a head that was fitted without a trap."""
    worse = [
        f"{artifact} {number(points[0]['before'])} → {number(points[0]['after'])}{interval(points[0]['ci'], sign=True)}"
        for artifact, points in figures["curves"].items()
        if points[0]["ci"][1] < 0
    ]
    if not worse:
        return "Where there is no trap (.5), suppression costs no artifact significantly."
    return f"Where there is no trap (.5), suppression costs significantly: {', '.join(worse)}."


def curve_table(figures: Figures) -> str:
    """Return the cross-group AUROC over the strength of the trap, for each artifact."""
    strengths = [point["strength"] for point in next(iter(figures["curves"].values()))]
    lines = []
    for artifact, points in figures["curves"].items():
        cells = [
            f"{number(p['before'])} → {number(p['after'])} ({number(p['oracle'])})" for p in points
        ]
        lines.append(f"| {artifact} | {' | '.join(cells)} |")
    return table(f"| artifact | {' | '.join(f'{s:g}' for s in strengths)} |", lines)


def few_labels_cell(one: Figures) -> str:
    refused = f"; {one['refused']:.0%} refused" if one["refused"] else ""
    return f"{number(one['mean'])} ({number(one['lowest'])}{refused})"


def few_labels_table(figures: Figures) -> str:
    sizes = sorted(next(iter(figures["few_labels"].values())), key=int)
    lines = [
        f"| {artifact} | " + " | ".join(few_labels_cell(row[n]) for n in sizes) + " |"
        for artifact, row in figures["few_labels"].items()
    ]
    return table(f"| artifact | {' | '.join(f'{n} + {n}' for n in sizes)} |", lines)


def side_effects_table(figures: Figures) -> str:
    """Return what is left of each artifact, and which other concepts are read worse or better."""
    lines = []
    for artifact, found in figures["side_effects"].items():
        residual = [
            f"{number(one['before'])} → {number(one['after'])}"
            for one in (found["residual"][kind] for kind in ("linear", "mlp"))
        ]
        changed = {
            sign: [
                f"{name} {number(one['before'])} → {number(one['after'])}"
                for name, one in found["concepts"].items()
                if None not in one["ci"] and (one["ci"][1] < 0 if sign < 0 else one["ci"][0] > 0)
            ]
            for sign in (-1, 1)
        }
        lines.append(
            f"| {artifact} | {' | '.join(residual)} | {len(found['concepts'])} "
            f"| {', '.join(changed[-1]) or 'none'} | {', '.join(changed[1]) or 'none'} |"
        )
    return table(
        "| artifact | linear probe | MLP | other concepts | read significantly worse | read significantly better |",
        lines,
    )


def with_change(one: Figures, digits: int = 2) -> str:
    if "reason" in one:
        return one["reason"]
    return (
        f"{number(one['before'], digits)} → {number(one['after'], digits)}"
        f"{interval(one['ci'], 3, sign=True)}"
    )


def strata_sentence(figures: Figures) -> str:
    """Return in a sentence in how many strata the AUROC of the target falls or rises significantly."""
    measured = [
        one
        for columns in figures["strata"].values()
        for strata in columns.values()
        for one in strata.values()
        if "before" in one
    ]
    worse = sum(one["ci"][1] < 0 for one in measured)
    better = sum(one["ci"][0] > 0 for one in measured)
    return (
        "AUROC of the target by the trap heads, before → after suppression, and the 95 % interval of the change, in "
        f"each group of patients that the manifest names. Of {len(measured)} that are large enough, {better} change "
        f"significantly for the better and {worse} for the worse."
    )


def strata_table(figures: Figures) -> str:
    """Return a line for each stratum, a column for each artifact."""
    strata = list(
        dict.fromkeys(
            (column, value)
            for columns in figures["strata"].values()
            for column, values in columns.items()
            for value in values
        )
    )
    lines, left_out = [], []
    for column, value in strata:
        cells = [
            with_change(columns[column][value]) if value in columns.get(column, {}) else "–"
            for columns in figures["strata"].values()
        ]
        if any("→" in cell for cell in cells):
            lines.append(f"| {column}: {value} | {' | '.join(cells)} |")
        else:
            left_out.append(f"{column} {value}")
    text = table(f"| stratum | {' | '.join(figures['strata'])} |", lines)
    return text + (
        f"\n\nn too small for every artifact: {', '.join(left_out)}." if left_out else ""
    )


def zero_shot_table(figures: Figures) -> str:
    return table(
        "| artifact | images | accuracy |",
        [
            f"| {artifact} | {one.get('n', '–')} | {with_change(one, 3)} |"
            for artifact, one in figures["zero_shot"].items()
        ],
    )


def pairs_table(figures: Figures) -> str:
    return table(
        "| artifact | pairs | mean change of p: before → after | pairs that move less after | |",
        [
            f"| {artifact} | {one['n']} | {number(one['before'], 3)} → {number(one['after'], 3)} "
            f"| {sum(abs(p['after']) < abs(p['before']) for p in one['pairs'])} of {one['n']} "
            f"| {one['reason'] or ''} |"
            for artifact, one in figures["pairs"].items()
        ],
    )


def benchmarks_body(figures: Figures) -> str:
    """Return the section of the benchmarks that are no part of an audit."""
    harmful, trap = figures["harmful_recipes"], figures["trap"]
    low, high = harmful["harmful_share_ci"]
    free = harmful["without_a_trap"]
    by_labels = ", ".join(
        f"{harmful['written_by_labels'][kind]} with {text}" for kind, text in LABEL_KINDS.items()
    )
    return "\n\n".join(
        [
            "## Further benchmarks",
            "### How often is a recipe written that harms?",
            "Random sets of a quarter or a half of the real groups, random artifacts, and labels that are right, "
            "swapped for 20 or 40 % of the images, or shuffled; the effect of every written recipe is measured on "
            "all other images. `python tests/benchmarks/bench_harmful_recipes.py RUN`",
            f"In {harmful['draws']} draws {harmful['written']} recipes were written ({by_labels}). "
            f"{harmful['harmful']} of them have an effect of 0 or below: {harmful['harmful_share']:.1%} "
            f"(exact 95 % interval {low:.1%} to {high:.1%}). The smallest effect on the cross-group AUROC is "
            f"{number(harmful['smallest_effect'], 3, sign=True)}, the median "
            f"{number(harmful['median_effect'], 3, sign=True)}. A head that was fitted without a trap changes by "
            f"{number(free['median'], 3, sign=True)} in AUROC (median), by "
            f"{number(free['smallest'], 3, sign=True)} at worst; {free['share_that_loses_more_than_.03']:.0%} lose "
            "more than .03.",
            "### A model that never saw a word",
            "Gap closed with n + n labels on a frozen ImageNet trunk, as in the table of few labels above. "
            "`python tests/benchmarks/bench_word_free_trunk.py RUN`",
            few_labels_table({"few_labels": trunk_rows(figures["word_free_trunk"])}),
            "### Artifacts that go together",
            "The trap of the second artifact of each pair, and latents of the first, of the second, of both fitted "
            "apart, and of both where the second was fitted on what the first leaves (`concepts teach SECOND --after "
            "FIRST`). Gap closed with the interval of the change; change of the artifact-free AUROC; mean and lowest "
            "change of the AUROC at which probes read every other labelled concept. "
            "`python tests/benchmarks/bench_joint_latents.py RUN`",
            joint_table(figures["joint_latents"]),
            "### The ruler trap at full size",
            f"Phantoms, {trap['n_scored']:,} scored images, trap heads of {trap['n_trap']:,}: cross-group AUROC "
            f"{number(trap['cross_group_auroc_before'], 3)} → {number(trap['cross_group_auroc_after'], 3)}"
            f"{interval(trap['ci'], 3, sign=True)} (without the trap {number(trap['oracle'], 3)}), gap closed "
            f"{number(trap['gap_closed'])}; artifact-free AUROC {number(trap['clean_auroc_delta'], 3, sign=True)}"
            f"{interval(trap['clean_auroc_ci'], 3, sign=True)}; worst group {number(trap['worst_group_before'])} → "
            f"{number(trap['worst_group_fixed'])} at the unchanged and {number(trap['worst_group_prevalence'])} at "
            f"the prevalence-matched threshold; insertion left {number(trap['insertion_residual'])}. "
            "`python tests/benchmarks/bench_trap.py`",
        ]
    )


def trunk_rows(figures: Figures) -> Figures:
    """Return the artifacts that could be measured."""
    return {name: row for name, row in figures.items() if isinstance(row, dict)}


def joint_table(figures: Figures) -> str:
    lines = [
        f"| {pair.replace('+', ', then ')} | {kind} | {number(one['gap_closed'])}{interval(one['ci'], sign=True)} "
        f"| {number(one['clean_auroc_delta'], 3, sign=True)}{interval(one['clean_auroc_ci'], sign=True)} "
        f"| {one['identity_share']:.0%} | {number(one['others_mean'], 3, sign=True)} "
        f"| {number(one['others_lowest'], 3, sign=True)} |"
        for pair, kinds in figures.items()
        for kind, one in ((kind, kinds[kind]) for kind in JOINT_KINDS)
    ]
    return table(
        "| first, then second | latents | gap closed | artifact-free AUROC | rows unchanged | other concepts, mean "
        "| other concepts, lowest |",
        lines,
    )


def suppression_body(figures: Figures) -> str:
    parts = [
        "### Verdict on the classifier of the run",
        "Whether the head that the run predicts with, which was not fitted in a trap, leans on an artifact. "
        "`dermaudit verdict --run RUN`",
        verdict_table(figures),
        "### Recipes of the audit",
        suppression_table(figures),
        "### Methods side by side, cross-fitted",
        "Share of the gap to a head without the trap that a method closes in cross-group AUROC (the target "
        "without the artifact against the rest with it), and the 95 % interval of the change. "
        "`dermaudit bench suppress --run RUN`",
        method_table(figures),
        "### Trap curves",
        "Cross-group AUROC before → after suppression by a concept latent (and of a head without the trap), by the "
        "strength of the trap: P(artifact | target) where the head is fitted; at .5 there is no trap. "
        "`dermaudit bench suppress --run RUN --sweeps`",
        "![Trap curves](../images/trap_curves.svg)",
        cost_without_trap(figures),
        curve_table(figures),
        "### Few labels",
        "Share of the gap that a concept latent closes when it is fitted with n images with and n without the "
        "artifact: mean, and in brackets the lowest, of five random draws. A fit is refused where its images are "
        "not told apart; then nothing is suppressed in its fold.",
        few_labels_table(figures),
        "### What is left, and what else changes",
        "AUROC of the artifact before → after suppression by probes that are fitted anew on edited training rows "
        "(.5: nothing is left), and AUROC of every other labelled concept by a linear probe that was fitted "
        "before the edit. Significantly: the 95 % interval of the change leaves out 0.",
        side_effects_table(figures),
        "### Groups of patients, and the zero-shot classifier",
        strata_sentence(figures),
        strata_table(figures),
        "Share of images that the zero-shot classifier of the model gets right, before → after suppression, and the "
        "95 % interval of the change:",
        zero_shot_table(figures),
    ]
    if "pairs" in figures:
        parts += [
            "### Real photographs with and without an artifact",
            "The same photograph with an artifact, and with it retouched or painted out: mean |Δp| of the target "
            "between the two, by trap heads that did not see the photograph, before → after suppression. So few pairs "
            "support no interval; `docs/results/data/suppression_real.json` lists each. "
            "`dermaudit bench suppress --run RUN --pairs PAIRS.csv`",
            pairs_table(figures),
        ]
    return "\n\n".join(parts)
