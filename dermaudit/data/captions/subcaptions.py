"""The text views of an image that MAKE trains on (arXiv 2505.09372), written into a manifest.

- `subcaption_1` … `subcaption_K`: the sentences of the caption, or the sentences of a language model;
- `ontology_caption`: the diagnosis with the broader ones above it, from an ontology or the `ontology` column;
- `concept_caption`: the concepts that the caption mentions.

A blank cell means that an image lacks this view. A view that exists is kept; a caption without content
("No caption") becomes blank.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dermaudit.console import track

from ..layouts.dermoscopy import DIAGNOSES
from ..manifest.blank_cells import known
from ..manifest.manifest import Manifest
from ..manifest.validate import put, texts
from .concept_words import ConceptWords
from .decompose import Decomposer
from .ontology import SEPARATOR, Ontology
from .sentences import sentences

ONTOLOGY_CAPTION = "A skin image diagnosed as {}."
CONCEPT_CAPTION = "On the skin one sees {}."
# Lists of concepts that people, or a language model, made for the image.
_SUBCAPTION = re.compile(r"subcaption_\d+")
_CONCEPT_COLUMNS = ("skin_concept", "skin_concept_standarized")
Texts = list[str | None]


@dataclass
class TextViewCounts:
    """What was written: `views` counts rows per view, `kept` those that existed before.

    Rows count from 0. `unknown` {disease: {n, nearest}} are labels that the ontology lacks.
    """

    n_images: int = 0
    views: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    empty_captions: list[int] = field(default_factory=list)
    no_sentence: list[int] = field(default_factory=list)
    n_subcaptions: int = 0
    cut: int = 0  # captions with more sentences than are kept
    no_diagnosis: int = 0
    unknown: dict[str, dict[str, Any]] = field(default_factory=dict)
    denied: int = 0  # concepts that a caption says are absent


def text_views(
    manifest: Manifest,
    *,
    most: int,
    words: ConceptWords,
    ontology: Ontology | None = None,
    decomposer: Decomposer | None = None,
    replace: bool = False,
) -> tuple[Manifest, TextViewCounts]:
    """Return the manifest with its views, and the counts. `replace` also makes views that exist."""
    counts = TextViewCounts(n_images=manifest.n)
    table = manifest.table
    captions = _captions(table)
    counts.empty_captions = [row for row, of_row in enumerate(captions) if not of_row]
    if "caption" in table.column_names:
        # An image should not be trained to match "No caption".
        table = _put(table, "caption", [known(cell) and cell for cell in texts(table, "caption")])
    table = _put_subcaptions(table, captions, most, decomposer, counts, replace)
    paths = _paths(table, ontology, counts)
    views = {
        "ontology_caption": [_fill(ONTOLOGY_CAPTION, path) for path in paths],
        "concept_caption": _concept_captions(table, captions, words, counts),
    }
    for name, new in views.items():
        old = [None] * table.num_rows if replace else texts(table, name)
        column = [was or made for was, made in zip(old, new, strict=True)]
        counts.kept[name] = sum(map(bool, old))
        counts.views[name] = sum(map(bool, column))
        if any(column) or name in table.column_names:
            table = _put(table, name, column)
    if ontology is not None and any(paths):
        old = texts(table, "ontology")
        joined = [was or SEPARATOR.join(path) or None for was, path in zip(old, paths, strict=True)]
        table = _put(table, "ontology", joined)
    return Manifest(table.combine_chunks(), manifest.root, manifest.path), counts


def _put(table: pa.Table, name: str, cells: Texts) -> pa.Table:
    return put(table, name, pa.array(cells, pa.string()))


def _captions(table: pa.Table) -> list[list[str]]:
    """Return the captions of each row: its own, and further ones of the same image (layout derm1m)."""
    found = [[caption] if (caption := known(cell)) else [] for cell in texts(table, "caption")]
    for captions, cell in zip(found, texts(table, "more_captions"), strict=True):
        try:
            more = json.loads(cell) if cell else []
        except (json.JSONDecodeError, RecursionError):
            more = []
        captions += [one for one in more if isinstance(one, str)] if isinstance(more, list) else []
    return found


def _put_subcaptions(
    table: pa.Table,
    captions: list[list[str]],
    most: int,
    decomposer: Decomposer | None,
    counts: TextViewCounts,
    replace: bool,
) -> pa.Table:
    """Write `subcaption_1` …; rows that have one keep all of theirs, unless `replace`."""
    numbers = {n: int(n[11:]) for n in table.column_names if _SUBCAPTION.fullmatch(n)}
    old = {number: texts(table, name) for name, number in numbers.items()}
    kept = [
        not replace and any(cells[row] for cells in old.values()) for row in range(len(captions))
    ]
    new = _subcaptions(captions, kept, most, decomposer, counts)
    width = max([len(of_row) for of_row in new] + [n for n in old if any(kept)], default=0)
    for k in range(1, width + 1):
        before = old.get(k, [None] * len(new))
        column = [
            was if keep else (made[k - 1] if len(made) >= k else None)
            for was, keep, made in zip(before, kept, new, strict=True)
        ]
        table = _put(table, f"subcaption_{k}", column)
    counts.kept["subcaptions"] = sum(kept)
    counts.views["subcaptions"] = sum(map(bool, new)) + sum(kept)
    return table.drop_columns([name for name, number in numbers.items() if number > width])


def _subcaptions(
    captions: list[list[str]],
    kept: list[bool],
    most: int,
    decomposer: Decomposer | None,
    counts: TextViewCounts,
) -> list[list[str]]:
    """Return at most `most` new sub-captions of each row, [] for rows that keep theirs."""
    wanted = list(
        dict.fromkeys(
            caption
            for of_row, keep in zip(captions, kept, strict=True)
            if not keep
            for caption in of_row
        )
    )
    split = {caption: sentences(caption) for caption in track(wanted, "sentences")}
    if decomposer is not None:
        # A caption without a sentence cannot be split further.
        asked = [caption for caption in wanted if split[caption]]
        answers = track(decomposer.split(asked), "asking the model", len(asked))
        split |= {c: answer for c, answer in zip(asked, answers, strict=True) if answer}
    new: list[list[str]] = []
    for row, of_row in enumerate(captions):
        found = [] if kept[row] else list(dict.fromkeys(s for c in of_row for s in split[c]))
        if of_row and not kept[row] and not found:
            counts.no_sentence.append(row)
        counts.cut += len(found) > most
        new.append(found[:most])
        counts.n_subcaptions += len(new[-1])
    return new


def _paths(table: pa.Table, ontology: Ontology | None, counts: TextViewCounts) -> list[list[str]]:
    """Return the names from the broadest disease to the diagnosis of each row, [] where unknown.

    A disease that the ontology lacks keeps the path of its `ontology` column.
    """
    paths: list[list[str]] = []
    unknown: Counter[str] = Counter()
    for cell, written in zip(texts(table, "label"), texts(table, "ontology"), strict=True):
        label = known(cell)
        path = [name for name in map(known, (written or "").split(SEPARATOR.strip())) if name]
        node = None if ontology is None else find_disease(ontology, label, path)
        if ontology is not None and node is not None:
            path = ontology.path(node)
        elif label is None and not path:
            counts.no_diagnosis += 1
        elif ontology is not None:
            unknown[label or path[-1]] += 1
        paths.append(path)
    for name, n in unknown.most_common():
        counts.unknown[name] = {"n": n, "nearest": ontology.closest(name) if ontology else None}
    return paths


def find_disease(ontology: Ontology, label: str | None, path: list[str]) -> int | None:
    """Return the node that a label and a path (either may be empty) mean together.

    A label may name several diseases ("eczema, nummular eczema") and a name may occur twice in the
    tree. Of all these nodes the one whose ancestors agree most with the path and the label is chosen,
    then the deepest, then the first.
    """
    names = _readings(label) if label else []
    if not any(ontology.find(name) is not None for name in names):
        names = path[-1:]
    nodes = list(
        dict.fromkeys(
            node
            for name in names
            if ontology.find(name) is not None
            for node in ontology.find_all(name)
        )
    )
    mentioned = {node for name in [*path, *names] for node in ontology.find_all(name)}
    return max(
        nodes,
        key=lambda node: (len(mentioned & set(ontology.ancestors(node))), ontology.depth[node]),
        default=None,
    )


def _readings(label: str) -> list[str]:
    """Return the label, its parts between commas, and the name of an ISIC code."""
    plain = label.replace("_", " ")
    name = DIAGNOSES.get(label.lower(), "").removeprefix("a ")
    return [one for one in (plain, *plain.split(","), name) if one.strip()]


def _concept_captions(
    table: pa.Table, captions: list[list[str]], words: ConceptWords, counts: TextViewCounts
) -> Texts:
    lists = [texts(table, name) for name in _CONCEPT_COLUMNS if name in table.column_names]
    made: Texts = []
    for row, of_row in enumerate(track(captions, "concepts")):
        listed = [name for cells in lists for name in map(known, (cells[row] or "").split(","))]
        found = [name.lower() for name in listed if name]
        for caption in of_row:
            mentions = words.find(caption)
            found += mentions.present
            counts.denied += len(mentions.denied)
        made.append(_fill(CONCEPT_CAPTION, list(dict.fromkeys(found))))
    return made


def _fill(template: str, words: list[str]) -> str | None:
    return template.format(", ".join(words)) if words else None
