"""Make the calibration of names from runs of rendered images: python docs/scripts/calibrate_names.py RUN [RUN …]

Each is a run of `dermaudit demo --run RUN --seed N --seeds 0`, with a seed that no reported figure uses. The labels of
rendered images are exact; a name is right if those of test images do not refute it
(`dermaudit.concepts.naming.judging`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.concepts.naming.calibration import FILE, figures_of
from dermaudit.concepts.naming.methods import fused
from dermaudit.concepts.naming.naming import RunNamer, judge_of
from dermaudit.concepts.naming.scores import word_scores
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.files import write_text
from dermaudit.sae.run_data import RunData
from dermaudit.towers import load_model

Rows = dict[str, list[list[Any]]]


def rows_of(run: Path) -> Rows:
    """Return the rows of a run: concept, figures of the scores, and whether the name (the set) is right."""
    data, vocabulary = RunData.open(run), Vocabulary.load()
    vectors = vocabulary.text_vectors(load_model(data.run.meta["model"]["name"]))
    found: Rows = {"name": [], "set": []}
    for site in data.sites:
        evidence = RunNamer(data, fused.name_latents, vocabulary, *vectors).evidence(site)
        scores = word_scores(evidence)
        judge = judge_of(data, site, np.flatnonzero(data.rows("test")), vocabulary)
        figures = figures_of(scores.scores)
        for j, word in enumerate(scores.scores.argmax(1)):
            if scores.without_evidence(j) is not None or evidence.types[word] in fused.NOT_NAMES:
                continue
            concept = vocabulary.concepts[word].id
            words = fused.candidates(scores.scores[j], evidence.types)
            judged = [judge.of(j, vocabulary.concepts[one].id) for one in words]
            if judged[0] is None:
                continue
            row = [concept, *(round(float(value), 6) for value in figures[j])]
            found["name"].append([*row, int(not judged[0].wrong)])
            found["set"].append([*row, int(any(one and not one.wrong for one in judged))])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parts = [rows_of(run) for run in parser.parse_args().runs]
    lines = []
    for kind in ("name", "set"):
        rows = [row for part in parts for row in part[kind]]
        lines.append(
            f' "{kind}": [\n'
            + ",\n".join("  " + str(row).replace("'", '"') for row in rows)
            + "\n ]"
        )
        print(f"{kind}: {len(rows)} rows, {np.mean([row[4] for row in rows]):.0%} right")
    write_text(FILE, '{\n "format_version": 1,\n' + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
