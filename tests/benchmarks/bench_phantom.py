"""Phantoms a second on one core: OMP_NUM_THREADS=1 python tests/benchmarks/bench_phantom.py [size]

Prints wall-clock and CPU rates (on a busy machine only the second is the renderer's own), with and
without masks. Needs `dermaudit` installed or PYTHONPATH at the repository.
"""

from __future__ import annotations

import sys
import time

from dermaudit.phantom import render, sample


def rate(n: int, size: int, masks: bool) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for index in range(n):
        render(sample(1000, index), size, masks=masks)
    return n / (time.perf_counter() - wall), n / (time.process_time() - cpu)


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 96
    rate(20, size, False)
    for masks in (False, True):
        wall, cpu = rate(300, size, masks)
        kind = "with masks" if masks else "images alone"
        print(f"{size} px, {kind}: {cpu:.0f} images/s of CPU time, {wall:.0f} by the clock")


if __name__ == "__main__":
    main()
