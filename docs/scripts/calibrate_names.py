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

from dermaudit.concepts.naming.calibration import FILE, figures_of, label_figures
from dermaudit.concepts.naming.judging import Judge
from dermaudit.concepts.naming.methods import fused, words
from dermaudit.concepts.naming.methods.registry import NamingEvidence
from dermaudit.concepts.naming.naming import RunNamer, judge_of
from dermaudit.concepts.naming.scores import enough_images, word_scores
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.files import write_text
from dermaudit.sae.run_data import RunData
from dermaudit.towers import load_model

Rows = dict[str, list[list[Any]]]  # by kind of calibration


def rows_of(run: Path) -> Rows:
    """Return the rows of a run: concept, three figures, and whether labels of test images confirm it."""
    data, vocabulary = RunData.open(run), Vocabulary.load()
    vectors = vocabulary.text_vectors(load_model(data.run.meta["model"]["name"]))
    found: Rows = {"name": [], "set": [], "label": []}
    for site in data.sites:
        evidence = RunNamer(data, words.name_latents, vocabulary, *vectors).evidence(site)
        judge = judge_of(data, site, np.flatnonzero(data.rows("test")), vocabulary)
        for rows in (word_rows(evidence, judge), label_rows(evidence, judge)):
            for kind, more in rows.items():
                found[kind] += more
    return found


def word_rows(evidence: NamingEvidence, judge: Judge) -> Rows:
    """Return a row for the best word of each latent that a concept explains best, and one for its set of words."""
    scores, found = word_scores(evidence), Rows(name=[], set=[])
    figures = figures_of(scores.scores)
    for j, best in enumerate(scores.scores.argmax(1)):
        if scores.without_evidence(j) is not None or evidence.types[best] in words.NOT_NAMES:
            continue
        candidates = words.candidates(scores.scores[j], evidence.types)
        judged = [judge.of(j, evidence.vocabulary.concepts[word].id) for word in candidates]
        if judged[0] is not None:
            row = [evidence.vocabulary.concepts[best].id, *rounded(figures[j])]
            found["name"].append([*row, int(not judged[0].wrong)])
            found["set"].append([*row, int(any(one and not one.wrong for one in judged))])
    return found


def label_rows(evidence: NamingEvidence, judge: Judge) -> Rows:
    """Return a row for the best labelled concept of each latent, diagnoses left out."""
    known, lift = fused.label_lifts(evidence)
    kinds = {concept.id: concept.type for concept in evidence.vocabulary.concepts}
    found, figures = Rows(label=[]), label_figures(lift)
    for j in map(int, np.flatnonzero(enough_images(evidence.codes)[1])):
        concept = known[int(lift[:, j].argmax())]
        judged = judge.of(j, concept)
        explains = lift[:, j].max() >= fused.EXPLAINS
        if explains and judged is not None and kinds[concept] != "diagnosis":
            found["label"].append([concept, *rounded(figures[j]), int(not judged.wrong)])
    return found


def rounded(figures: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parts = [rows_of(run) for run in parser.parse_args().runs]
    lines = []
    for kind in ("name", "set", "label"):
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
