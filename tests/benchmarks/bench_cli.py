"""`dermaudit --help`: seconds of a whole process beside `python -c pass` and `import torch`.

Run: python tests/benchmarks/bench_cli.py
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "dermaudit --help": [sys.executable, "-m", "dermaudit", "--help"],
    "dermaudit suppress --help": [sys.executable, "-m", "dermaudit", "suppress", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(7):  # in turn, so that drift of the machine meets all alike
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    floor = statistics.median(times["python -c pass"])
    print(f"{'command':<28}{'median s':>10}{'x of bare python':>18}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<28}{median:>10.3f}{median / floor:>18.1f}")


if __name__ == "__main__":
    main()
