"""Make the reference that a bundled model ships, from a run of that model (`make reference`).

    python docs/scripts/reference.py RUN

It copies the head, the concept latents, the recipes, and the figures of what was refused. The hashes of the images that
a concept was taught with are replaced by one hash of their list.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from dermaudit.concepts.inference.reference import FORMAT_VERSION
from dermaudit.files import read_json, sha256_file, sha256_json, write_json
from dermaudit.sae.run_data import RunData
from dermaudit.towers.loading.names import bundled_folder


def main(run: str) -> None:
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
    main(sys.argv[1])
