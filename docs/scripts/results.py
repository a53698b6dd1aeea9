"""Run the audits, keep their figures, and write every page that shows them.

    make results                                  # runs both audits and the benchmarks (an hour), writes the pages
    python docs/scripts/results.py --pages        # writes the pages from the figures that are kept
    python docs/scripts/results.py --check        # exit 1 when a page differs from the figures

The figures are kept in docs/results/data/*.json: what `dermaudit demo --json` and `dermaudit audit
--json` print, without times, memory and paths. No figure of README or of docs/results is typed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command import dermaudit
from dictionary_tables import controls_figure, controls_list, dictionary_page
from model_tables import model_figures, models_page
from names_tables import names_figures, names_page
from result_figures import curve_figure, suppression_figure
from result_text import interval, number, table
from suppression_tables import benchmarks_body, suppression_body

from dermaudit.audit.summary import FOUND_HEADER, found_rows

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "results" / "data"
NOT_FIGURES = ("seconds", "peak_rss_gb", "run", "report")
Figures = dict[str, Any]

COMMANDS = {
    "phantoms": "make demo",
    "real": (
        "dermaudit data convert $DERMAUDIT_DATA/dermoscopy --out data/dermoscopy; "
        "dermaudit audit data/dermoscopy --model dermoscopy-small --run runs/dermoscopy"
    ),
}
#: The benchmarks of suppression, tests/benchmarks/bench_<name>.py, and their arguments.
BENCHMARKS = {
    "harmful_recipes": ("RUN", "660"),
    "word_free_trunk": ("RUN",),
    "joint_latents": ("RUN",),
    "trap": (),
}


def measure(folder: Path) -> None:
    """Run both audits below `folder` and keep their figures."""

    results = {"phantoms": dermaudit("demo", "--run", folder / "demo", "--force", "--json")}
    compare = ("bench", "suppress", "--sweeps", "--json", "--run")
    compared = {"phantoms": dermaudit(*compare, folder / "demo")}
    data = os.environ.get("DERMAUDIT_DATA")
    if data:
        images = folder / "dermoscopy"
        dermaudit("data", "convert", Path(data) / "dermoscopy", "--out", images)
        model = ("--model", "dermoscopy-small")
        results["real"] = dermaudit("audit", images, *model, "--run", folder / "real", "--json")
        pairs = Path(data) / "dermoscopy" / "extras" / "pairs.csv"
        compared["real"] = dermaudit(*compare, folder / "real", "--pairs", pairs)
        results["models"] = json.dumps(model_figures(images))
        results["suppression_benchmarks"] = json.dumps(benchmarks(folder / "real"))
    else:
        sys.stderr.write("DERMAUDIT_DATA is not set: the figures of the real images are kept\n")
    results |= {f"suppression_{name}": text for name, text in compared.items()}
    runs = {"phantoms": folder / "demo"} | ({"real": folder / "real"} if data else {})
    names = {name: names_figures(run) for name, run in runs.items()}
    known = json.loads((DATA / "names.json").read_text(encoding="utf-8"))
    results["names"] = json.dumps(known | names)
    kept = json.loads((DATA / "dictionary.json").read_text(encoding="utf-8"))
    measured = {name: dictionary_figures(run) for name, run in runs.items()}
    results["dictionary"] = json.dumps(kept | measured)
    for name, text in results.items():
        figures = {k: v for k, v in json.loads(text).items() if k not in NOT_FIGURES}
        DATA.mkdir(parents=True, exist_ok=True)
        text = json.dumps(figures, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (DATA / f"{name}.json").write_text(text, encoding="utf-8")


def dictionary_figures(run: Path) -> Figures:
    """Return what docs/results/dictionary.md shows of a run, whose SAEs become consensus dictionaries."""

    script = ROOT / "tests" / "benchmarks" / "bench_dictionary.py"
    path = run / "bench_dictionary.json"
    of_run = ("--run", run, "--json")
    subprocess.run([sys.executable, str(script), str(run), "--json", str(path)], check=True)
    fits = json.loads(dermaudit("fit", "--consensus", "--no-metrics", "--force", *of_run))["sae"]
    sites = json.loads(dermaudit("sae", "measure", *of_run))["sites"]
    names = json.loads(dermaudit("name", *of_run))["two_halves"]
    shown = ("d_sae", "k", "l0", "fvu", "consensus")
    return {
        "dictionary": json.loads(path.read_text(encoding="utf-8")),
        "fits": {site: {key: one[key] for key in shown} for site, one in fits.items()},
        "names": names,
        "sites": {
            site: {key: one[key] for key in ("stability", "controls") if key in one}
            for site, one in sites.items()
        },
    }


def benchmarks(run: Path) -> dict[str, Figures]:
    """Run the benchmarks of suppression on the run of the real images."""
    found = {}
    for name, argv in BENCHMARKS.items():
        script = ROOT / "tests" / "benchmarks" / f"bench_{name}.py"
        command = [sys.executable, str(script), *(str(run) if a == "RUN" else a for a in argv)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout[done.stdout.index("{") :])  # the trunk prints a line
    return found


def load() -> dict[str, Figures]:
    """Return {"phantoms" or "real": figures of the audit}, with those of `bench suppress` as `methods`."""

    def read(name: str) -> Figures:
        return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))

    results = {}
    for name in COMMANDS:
        compared = read(f"suppression_{name}")
        methods = compared.pop("suppression")
        results[name] = {**read(name), **compared, "methods": methods}
    return results


# ---- tables and the figure


def demo_output(figures: Figures) -> str:
    """Return the table that `dermaudit demo` prints at its end, as a block of code."""
    rows = [row[:-1] for row in [FOUND_HEADER, *found_rows(figures)]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "```\n" + "\n".join(line.rstrip() for line in lines) + "\n```"


def lift_table(figures: Figures) -> str:
    concepts = sorted(
        (c for c in figures["concepts"].items() if c[1]["lift_share"] is not None),
        key=lambda c: (c[1]["type"] != "artifact", -c[1]["lift_share"]),
    )
    return table(
        "| concept | type | positive test images | AUPRC of the best latent | probe AUPRC | lift share |",
        [
            f"| {name} | {c['type']} | {c['n_pos']} | {number(c['auprc'], 3)}{interval(c['auprc_ci'], 3)} "
            f"| {number(c['probe_auprc'], 3)} | {number(c['lift_share'])}{interval(c['lift_share_ci'])} |"
            for name, c in concepts
        ],
    )


def bottleneck_table(figures: Figures) -> str:
    b = figures["bottleneck"]
    kinds = {
        "sae": "SAE codes",
        "vocabulary": "predefined vocabulary",
        "random": "random words (control)",
        "probe": "linear probe on all dimensions",
    }
    return table(
        f"| bottleneck of {b['nec']} concepts, {b['task']} against the rest | test AUROC |",
        [
            f"| {text} | {number(b[kind]['auroc'], 3)}{interval(b[kind]['ci'], 3)} |"
            for kind, text in kinds.items()
            if b.get(kind)
        ],
    )


def headline_table(results: dict[str, Figures]) -> str:
    lines = []
    for name in results["phantoms"]["suppression"]:
        cells = []
        for figures in results.values():
            concept, s = figures["concepts"].get(name), figures["suppression"].get(name)
            lift = (
                f"{number(concept['lift_share'])}{interval(concept['lift_share_ci'])}"
                if concept
                else "–"
            )
            change = "not measured"
            if s and s["cross_group_auroc_before"] is not None:
                before, after = (number(s[f"cross_group_auroc_{w}"]) for w in ("before", "after"))
                change = f"{before} → {after}{interval(s['ci'], sign=True)}"
                change += " (refused)" if s["refused"] else ""
            cells += [lift, change]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return table(
        "| artifact | phantoms: lift share | phantoms: cross-group AUROC | real: lift share "
        "| real: cross-group AUROC |",
        lines,
    )


# ---- pages

PAGES: dict[str, tuple[str, str, Callable[[Figures], str]]] = {
    "suppression": (
        "Suppression",
        "In each of five folds over groups a head is fitted where the artifact and melanoma occur together "
        "(P = .9), and each method on the same training rows; figures are of val and test images, each "
        "scored in the fold where it was held out. The cross-group AUROC compares melanomas without the "
        "artifact with other images that have it; the oracle is a head without the trap. The worst group is "
        "the lowest of the two sensitivities and two specificities, with and without the artifact: before, "
        "after suppression at the unchanged threshold, and at the prevalence-matched threshold, which calls as "
        "many images positive as before.",
        suppression_body,
    ),
    "concepts": (
        "Concepts",
        "The lift share is the AUPRC of the best single latent above the prevalence, as a share of what "
        "a supervised linear probe reaches.",
        lift_table,
    ),
    "bottlenecks": (
        "Concept bottlenecks",
        "Every bottleneck uses the same number of concepts.",
        bottleneck_table,
    ),
}


def gpu_page(figures: Figures) -> str:
    """Return the page of what was measured on a GPU."""
    embed, fit = figures["embed"], figures["fit"]
    rows = [
        ("images/s of the forward pass", embed["cpu"]["forward"], embed["cuda"]["forward"]),
        (
            "images/s of `embed` (decoding by 8 threads)",
            embed["cpu"]["embed"],
            embed["cuda"]["embed"],
        ),
        ("rows/s of a fit (TopK, d = 768, h = 6144, k = 32)", fit["cpu"], fit["cuda"]),
    ]
    rates = [
        f"| {text} | {cpu:,.0f} | {cuda:,.0f} | {cuda / cpu:.1f} |" for text, cpu, cuda in rows
    ]
    steps = [
        f"| {', '.join(map(str, s['sizes']))} | {s['name']} | {s['theirs_ms']:.0f} | {s['ours_ms']:.0f} "
        f"| {s['ratio']:.2f} | {s['share_of_limit']:.2f} |"
        for s in figures["steps"]
    ]
    return (
        "\n\n".join(
            [
                "# On a GPU",
                f"One {figures['gpu']} beside {figures['cores']} CPU cores, torch {figures['torch']}; not part of "
                "`make results`. `python tests/benchmarks/bench_gpu.py`",
                table("| | CPU | GPU | ratio |", rates),
                f"The embeddings of the two devices differ by at most {embed['difference']:.0e}.",
                "One training step of an SAE beside sae-lens, both on the GPU (ratio: their time through ours):",
                table(
                    "| d, h, k, batch | peer | peer, ms | ours, ms | ratio | share of the limit |",
                    steps,
                ),
                "Small dictionaries are limited by the start of the kernels, where sae-lens is as fast or faster.",
            ]
        )
        + "\n"
    )


def page(title: str, text: str, body: Callable[[Figures], str], results: dict[str, Figures]) -> str:
    parts = [
        f"# {title}",
        text,
        "Written by `make results`. Held-out images only, 95 % intervals over groups.",
    ]
    names = {"phantoms": "Phantoms", "real": "Real dermoscopic images"}
    for name, figures in results.items():
        parts += [
            f"## {names[name]} ({figures['n_images']} images)",
            f"`{COMMANDS[name]}`",
            body(figures),
        ]
    return "\n\n".join(parts) + "\n"


def pages(results: dict[str, Figures]) -> dict[Path, str]:
    """Return {file: its text} of every page that shows figures."""
    written = {
        ROOT / "docs" / "results" / f"{name}.md": page(*parts, results)
        for name, parts in PAGES.items()
    }
    further = json.loads((DATA / "suppression_benchmarks.json").read_text(encoding="utf-8"))
    written[ROOT / "docs" / "results" / "suppression.md"] += "\n" + benchmarks_body(further) + "\n"
    gpu = json.loads((DATA / "gpu.json").read_text(encoding="utf-8"))
    written[ROOT / "docs" / "results" / "gpu.md"] = gpu_page(gpu)
    models = json.loads((DATA / "models.json").read_text(encoding="utf-8"))
    written[ROOT / "docs" / "results" / "models.md"] = models_page(models)
    dictionaries = json.loads((DATA / "dictionary.json").read_text(encoding="utf-8"))
    written[ROOT / "docs" / "results" / "dictionary.md"] = dictionary_page(dictionaries)
    names = json.loads((DATA / "names.json").read_text(encoding="utf-8"))
    written[ROOT / "docs" / "results" / "names.md"] = names_page(names)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, body in (
        ("demo", demo_output(results["phantoms"])),
        ("results", headline_table(results)),
        ("controls", controls_list(dictionaries)),
    ):
        block = f"<!-- {name}: generated -->\n{body}\n<!-- {name}: end -->"
        pattern = f"<!-- {name}: generated -->.*?<!-- {name}: end -->"
        text = re.sub(pattern, lambda _, block=block: block, text, flags=re.S)
    written[readme] = text
    images = ROOT / "docs" / "images"
    written[images / "suppression.svg"] = suppression_figure(results)
    written[images / "trap_curves.svg"] = curve_figure(results)
    written[images / "controls.svg"] = controls_figure(dictionaries)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pages", action="store_true", help="write the pages, run nothing")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    if not (options.pages or options.check):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder))
    changed = [
        path
        for path, text in pages(load()).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if options.check:
        for path in changed:
            sys.stderr.write(
                f"{path.relative_to(ROOT)} differs from docs/results/data; run: make results\n"
            )
        return 1 if changed else 0
    for path, text in pages(load()).items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
