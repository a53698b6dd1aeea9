"""Make the reference that a bundled model ships, from two runs of that model on the same images (`make reference`).

    python docs/scripts/reference.py RUN DICTIONARY

From RUN it copies the head, the concept latents, the recipes, and the figures of what was refused; the hashes of the
images that a concept was taught with are replaced by one hash of their list. From DICTIONARY, whose SAEs are consensus
dictionaries, it copies the SAEs, their names, and the best latent of each labelled concept.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from dermaudit.concepts.naming.reference_names import UNNAMED
from dermaudit.files import read_json, sha256_file, sha256_json, write_json
from dermaudit.sae.evaluation.reconstruction import accumulate
from dermaudit.sae.run_data import RunData
from dermaudit.sae.training.reference import FACTS, distance_facts
from dermaudit.sae.training.site_rows import SiteRows
from dermaudit.towers.loading.names import bundled_folder
from dermaudit.towers.loading.reference import FORMAT_VERSION

#: What the reference keeps of a row of concepts.parquet: the name, the evidence for it, and how often the latent is
#: active and how its label fits on the images of the reference.
NAME_COLUMNS = ("site", "latent", *UNNAMED, "label_concept", "frequency", "label_auprc", "wrong")


def main(run: str, dictionary: str) -> None:
    data = RunData.open(run)
    model = data.run.meta["model"]
    out = bundled_folder() / model["name"] / "reference"
    if not out.parent.is_dir():
        sys.exit(f"{model['name']} is not a bundled model")
    shutil.rmtree(out, ignore_errors=True)
    files = data.run.files
    for concept in data.suppressions:
        data.run.require(f"recipe:{concept}")
        for path in (
            files.recipe(concept),
            files.effects(concept),
            files.suppression_reason(concept),
        ):
            if path.is_file():
                copy(path, out / path.relative_to(data.run.path))
        copy_concept_latent(files.concept_latent(concept), out / "concept_latents" / concept)
    for name in data.heads:
        copy(files.head(name), out / "heads" / files.head(name).name)
    copy_dictionary(RunData.open(dictionary), model, out)
    facts = data.data_facts
    body = {
        "format_version": FORMAT_VERSION,
        "model": {key: model[key] for key in ("name", "fingerprint")},
        "made_from": {
            "images": data.n,
            "manifest_sha256": data.run.meta["data"]["manifest_sha256"],
            **{key: facts.get(key) for key in ("layout", "licence", "source")},
        },
        "files": {
            path.relative_to(out).as_posix(): sha256_file(path)
            for path in sorted(out.rglob("*"))
            if path.is_file()
        },
    }
    write_json(out / "reference.json", {"body": body, "sha256": sha256_json(body)})
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {len(body['files'])} files, {size / 1e3:.0f} kB")


def copy_dictionary(data: RunData, model: dict, out: Path) -> None:
    """Copy the SAEs of a run, with what their names and their distance from other images are made from."""
    if data.run.meta["model"]["fingerprint"] != model["fingerprint"]:
        sys.exit("the two runs are of different models")
    for site in data.sites:
        if data.agreement(site) is None:
            sys.exit(f"the SAE at {site} is no consensus dictionary: dermaudit fit --consensus")
        folder = out / "sae" / site
        for name in ("cfg.json", "sae_weights.safetensors", "consensus.json"):
            copy(data.run.files.sae(site) / name, folder / name)
        rows = SiteRows.open(data.run, site, data.splits)
        sums = accumulate(data.sae(site), rows.split("test"))
        metrics = {k: v for k, v in data.sae_metrics(site).items() if k != "held_out"}
        stability = data.stability(site) or {}
        write_json(
            folder / FACTS,
            {
                "metrics": metrics,
                "stability": {k: v for k, v in stability.items() if k != "per_latent"},
                "distance_from": distance_facts(sums),
            },
        )
    names = [{key: row[key] for key in NAME_COLUMNS} for row in data.concepts]
    write_json(
        out / "names.json", {"vocabulary": data.naming["vocabulary_sha256"], "latents": names}
    )
    write_json(out / "labels.json", data.label_rows)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def copy_concept_latent(source: Path, target: Path) -> None:
    """Copy a taught concept latent without the list of its images."""
    if not source.is_dir():
        return
    for path in source.iterdir():
        if path.name != "provenance.json":
            copy(path, target / path.name)
    known = read_json(source / "provenance.json")
    images = known.pop("images")
    write_json(target / "provenance.json", {**known, "images_sha256": sha256_json(images)})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
