"""What suppression costs: beside plain prediction, for stored embeddings, and as a service under load.

    python tests/benchmarks/bench_suppress.py [images of a batch] [requests]

One thread of torch. Prints one JSON object. The bundled model and recipe for the ruler; images are random colours.
"""

from __future__ import annotations

import http.client
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dermaudit.concepts.inference.opened import open_model
from dermaudit.concepts.inference.options import SuppressOptions
from dermaudit.concepts.inference.suppressed_model import SuppressedModel

ROWS = 100_000
CLIENTS = 8


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((450, 450)).save(data, "JPEG")
    return data.getvalue()


def cost(model: SuppressedModel, batch: int, repeats: int = 25) -> dict[str, float]:
    """Seconds of a batch with and without suppression, in pairs in one process; the ratio of each pair."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 160, 160, 3), dtype=np.uint8)
    x = model.tower.preprocess(list(pixels))
    plain, suppressed = [], []
    with torch.no_grad():
        for i in range(repeats + 2):
            times = {}
            for kind in ("plain", "edit") if i % 2 else ("edit", "plain"):
                started = time.perf_counter()
                embedded = model.tower.encode_image(x, normalize=True)
                if kind == "edit":
                    embedded = model.suppressor(embedded)
                model.head.probs(embedded.numpy())
                times[kind] = time.perf_counter() - started
            if i >= 2:  # the first two warm up
                plain.append(times["plain"])
                suppressed.append(times["edit"])
    ratios = [b / a for a, b in zip(plain, suppressed, strict=True)]
    return {
        "batch": batch,
        "plain_seconds": statistics.median(plain),
        "suppressed_seconds": statistics.median(suppressed),
        "median_ratio": statistics.median(ratios),
    }


def stored(model: SuppressedModel, folder: Path) -> dict[str, float]:
    """Seconds for ROWS stored embeddings: predicted, written in parts, joined to one CSV file, as `suppress` does;
    and the memory that twice as many add.
    """
    from dermaudit.concepts.inference.images import CACHED_ROWS, Embedded
    from dermaudit.concepts.inference.prediction_table import Parts, table_of

    generator = np.random.default_rng(0)
    block = generator.normal(size=(CACHED_ROWS, model.tower.d_pooled)).astype(np.float32)
    block /= np.linalg.norm(block, axis=1, keepdims=True)

    def predict(n: int, name: str) -> tuple[float, float]:
        started = time.perf_counter()
        parts = Parts(folder / name, {})
        for first in range(0, n, CACHED_ROWS):
            rows = block[: min(CACHED_ROWS, n - first)]
            names = [str(i) for i in range(first, first + len(rows))]
            images = Embedded(names, [""] * len(rows), rows)
            parts.write(table_of(images, model.predict_rows(rows), model), [], names[-1])
        parts.join()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        return time.perf_counter() - started, peak

    seconds, once = predict(ROWS, "once.csv")
    _, twice = predict(2 * ROWS, "twice.csv")
    return {"rows": ROWS, "seconds": seconds, "peak_mb": once, "peak_mb_of_twice": twice}


def load(folder: Path, requests: int) -> dict[str, float]:
    """CLIENTS clients at once against `dermaudit serve`."""
    command = [sys.executable, "-m", "dermaudit", "serve", "--concept", "ruler", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--model", "dermoscopy-small"], stderr=subprocess.PIPE, text=True, cwd=folder
    )
    assert server.stderr is not None
    port = int(server.stderr.readline().split(":")[2].split("/")[0])
    bodies = [picture(seed) for seed in range(32)]

    def client(number: int) -> list[tuple[int, float]]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        answers = []
        for i in range(requests // CLIENTS):
            started = time.perf_counter()
            connection.request("POST", "/predict", bodies[(number + i) % len(bodies)])
            answer = connection.getresponse()
            answer.read()
            answers.append((answer.status, time.perf_counter() - started))
        connection.close()
        return answers

    try:
        client(0)
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = [one for each in pool.map(client, range(CLIENTS)) for one in each]
        seconds = time.perf_counter() - started
    finally:
        server.terminate()
        server.wait()
        server.stderr.close()
    times = sorted(each for _, each in answers)
    return {
        "clients": CLIENTS,
        "requests": len(answers),
        "errors": sum(status != 200 for status, _ in answers),
        "images_per_second": len(answers) / seconds,
        "p50_ms": 1e3 * times[len(times) // 2],
        "p99_ms": 1e3 * times[int(0.99 * len(times))],
    }


def main() -> None:
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    requests = int(sys.argv[2]) if len(sys.argv) > 2 else 800
    torch.set_num_threads(1)
    options = SuppressOptions(
        concept=("ruler",), model="dermoscopy-small", images="-", dry_run=True
    )
    model = open_model(options).model
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "cost": cost(model, batch),
            "stored": stored(model, Path(folder)),
            "service": load(Path(folder), requests),
        }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
