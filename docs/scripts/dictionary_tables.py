"""The page of dictionaries: stability, controls, and what the choices change."""

from __future__ import annotations

from typing import Any

from result_text import interval, number, table

from dermaudit.sae.controls.table import ENSEMBLE, FIGURES, compared

Figures = dict[str, Any]
TITLES = {"phantoms": "Phantoms", "real": "Real dermoscopic images"}
INTRODUCTION = """# Dictionaries

An SAE whose latents change with the seed cannot be signed. `dermaudit fit --consensus` fits many SAEs of one recipe
in one pass, keeps the decoder directions that they agree on (*kept*), and fits an SAE that begins at them; its other
latents are residual and are not named. Two such dictionaries are compared that share neither seeds nor groups of
images. PW-MCC is the mean cosine of directions that are matched one to one; it rises when fewer are kept, so the
number is always beside it.

Written by `make results`. Figures are of held-out images."""


def dictionary_page(results: dict[str, Figures]) -> str:
    """Return docs/results/dictionary.md from {"phantoms" or "real": figures}."""
    parts = [INTRODUCTION, "![FVU over L0 of the controls](../images/controls.svg)"]
    for name, figures in results.items():
        pooled = figures["sites"]["visual.pooled"]
        controls = pooled["controls"]
        parts += [
            f"## {TITLES[name]}",
            "`dermaudit fit --consensus --run RUN; dermaudit sae measure --run RUN`",
            "### The dictionaries of the run",
            sites_table(figures["sites"], figures["fits"]),
            "Names (`dermaudit name --run RUN`), each half named on its own images: latents of the two halves with a "
            "cosine of .7 or more, those that are named in both, and how many of these have the same name.",
            names_table(figures["names"]),
            "### Controls (pooled site)",
            "An encoder is fitted to the directions of each method, at the same L0 and with the same rows. Lift share: "
            f"mean over {controls['this SAE']['n_concepts']} labelled artifacts, 95 % interval over groups. "
            "Monosemanticity: above chance, by the model's own embeddings. Bottleneck: a logistic head on all codes. "
            "*This SAE* is the consensus dictionary; residual latents are left out of its lift share and bottleneck. "
            "Other ways to train one stand beside it: one fit; decoder-aligned (w_enc · w_dec = 1, arXiv 2605.18629); "
            "OrtSAE (arXiv 2509.22033); archetypal, whose directions stay near positive sums "
            "of centres of k-means (arXiv 2502.12892); an ensemble (arXiv 2505.16077), whose L0 is the sum of five.",
            controls_table(controls),
            compared(controls, controls["this SAE"]["pw_mcc"]),
            "### Widths, clustering and number of fits (pooled site)",
            "Another halving of the groups than above. *Dictionary* is the SAE of the consensus, "
            "*single fits* are SAEs of one seed with the whole training; rank correlation of activations on test "
            "images, of pairs with a cosine of .7 or more. `python tests/benchmarks/bench_dictionary.py RUN`",
            widths_table(figures["dictionary"]["widths"]),
            fvu_sentence(figures["dictionary"]["widths"]),
            "### Lift shares of two halves",
            "The best latent of all sites for each artifact, in two dictionaries that share no image and no seed.",
            halves_table(figures["dictionary"]["lift_shares_of_halves"]),
            seconds_sentence(figures["dictionary"]["seconds"]),
        ]
    return "\n\n".join(parts) + "\n"


def controls_list(results: dict[str, Figures]) -> str:
    """Return for each data set where training is better than the controls and where it is not."""
    lines = []
    for name, figures in results.items():
        controls = figures["sites"]["visual.pooled"]["controls"]
        lines.append(f"- {TITLES[name]}: {compared(controls, controls['this SAE']['pw_mcc'])}")
    return "\n".join(lines)


def sites_table(sites: dict[str, Figures], fits: dict[str, Figures]) -> str:
    lines = []
    for site, found in sites.items():
        stability, fit = found["stability"], fits[site]
        agreed = fit["consensus"]
        rank = stability["rank_correlation"]
        lines.append(
            f"| {site} | {fit['d_sae']} | {fit['k']:g} | {agreed['fits']} | {agreed['latents']} "
            f"| {number(fit['fvu'], 3)} | {number(stability['pw_mcc'])}{interval(stability['ci'])} "
            f"| {number(stability['share_above_0.9'])}{interval(stability['share_above_0.9_ci'])} "
            f"| {' and '.join(map(str, stability['latents']))} | {number(rank['value'])} (n = {rank['n']}) |"
        )
    return table(
        "| site | latents | k | fits | kept | FVU | PW-MCC of two halves | share above .9 | kept by the halves "
        "| rank correlation |",
        lines,
    )


def names_table(names: dict[str, Figures]) -> str:
    return table(
        "| site | pairs | named in one at least | named in both | same name | by chance |",
        [
            f"| {site} | {one['n_pairs']} | {one['n_named_in_one']} | {one['n_named_in_both']} "
            f"| {number(one['same'])}{interval(one['interval'])} | {number(one['by_chance'])} |"
            for site, one in names.items()
        ],
    )


def controls_table(controls: dict[str, Figures]) -> str:
    lines = [
        f"| {name} | {one['latents']} | {number(one['l0'])} | {number(one['fvu'], 3)} "
        f"| {number(one['lift_share'])}{interval(one['lift_share_ci'])} | "
        + " | ".join(number(one[key], 3) for key, _, _ in FIGURES[2:])
        + " |"
        for name, one in controls.items()
    ]
    header = " | ".join(label for _, label, _ in FIGURES)
    return table(f"| dictionary | latents | L0 | {header} |", lines)


def spread(values: list[float] | None, digits: int = 2) -> str:
    if values is None:
        return "–"
    mean, low, high = values
    return number(mean, digits) + (
        f" ({number(low, digits)} to {number(high, digits)})" if low < high else ""
    )


def widths_table(widths: dict[str, Figures]) -> str:
    lines = []
    for h, found in sorted(widths.items(), key=lambda pair: int(pair[0])):
        for name, one in found.items():
            if not isinstance(one, dict):
                continue
            lines.append(
                f"| {h}, k = {found['k']:g} | {name} | {number(one['latents'][0], 0)} | {spread(one['pw_mcc'])} "
                f"| {spread(one['above'])} | {spread(one.get('rank_correlation'))} | {spread(one.get('fvu'), 3)} |"
            )
    return table(
        "| latents | | kept | PW-MCC of two halves | share above .9 | rank correlation | FVU |",
        lines,
    )


def fvu_sentence(widths: dict[str, Figures]) -> str:
    parts = [
        f"{one['dictionary']['fvu'][0] / one['single fits']['fvu'][0] - 1:+.0%} with {h} latents"
        for h, one in sorted(widths.items(), key=lambda pair: int(pair[0]))
    ]
    return f"FVU of the dictionary against a single fit at the same k: {', '.join(parts)}."


def halves_table(shares: dict[str, list[float]]) -> str:
    lines = [
        f"| {name} | {number(one)} | {number(two)} | {number(abs(one - two))} |"
        for name, (one, two) in shares.items()
    ]
    means = [sum(pair[i] for pair in shares.values()) / len(shares) for i in (0, 1)]
    lines.append(f"| mean | {number(means[0])} | {number(means[1])} | |")
    return table("| artifact | half 1 | half 2 | difference |", lines)


def seconds_sentence(seconds: Figures) -> str:
    plural = "s" if seconds["threads"] > 1 else ""
    return (
        f"Ten fits in one pass take {seconds['ratio']:.1f} times as long as one "
        f"({seconds['threads']} thread{plural}, 64 latents)."
    )


def controls_figure(results: dict[str, Figures]) -> str:
    """Return an SVG: FVU over L0 of the SAE and of its controls, a panel for each data set."""
    side, left, top = 250, 50, 40
    colours = [
        "#0072B2",
        "#56B4E9",
        "#999999",
        "#D55E00",
        "#E69F00",
        "#009E73",
        "#CC79A7",
        "#F0E442",
        "#882255",
        "#44AA99",
        "#661100",
        "#000000",
    ]
    body: list[str] = []
    names: list[str] = []
    for panel, (data, figures) in enumerate(results.items()):
        controls = dict(figures["sites"]["visual.pooled"]["controls"])
        controls.pop(ENSEMBLE, None)  # its L0 is that of five fits
        names = list(controls)
        x0 = left + panel * (side + 60)
        most = max(point[0] for one in controls.values() for point in one["curve"])
        body.append(f'<text x="{x0}" y="{top - 10}" font-weight="bold">{TITLES[data]}</text>')
        for value in (0, 0.25, 0.5, 0.75, 1):
            y = top + side * (1 - value)
            body.append(
                f'<line x1="{x0}" x2="{x0 + side}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
            )
        for value in (0, most / 2, most):
            x = x0 + side * value / most
            body.append(
                f'<text x="{x:.1f}" y="{top + side + 16}" text-anchor="middle">{value:.0f}</text>'
            )
        for colour, name in zip(colours, names, strict=True):
            points = [
                (x0 + side * l0 / most, top + side * (1 - min(1.0, fvu)))
                for l0, fvu in controls[name]["curve"]
            ]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            body.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            )
            body += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points
            ]
    for i, (colour, name) in enumerate(zip(colours, names, strict=True)):
        x, y = left + (i % 3) * 200, top + side + 40 + 18 * (i // 3)
        body.append(
            f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/><text x="{x + 10}" y="{y}">{name}</text>'
        )
    width, height = left + 2 * (side + 60), top + side + 40 + 18 * -(-len(names) // 3) + 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="8" y="16">FVU over L0 on test images</text>\n' + "\n".join(body) + "\n</svg>\n"
    )
