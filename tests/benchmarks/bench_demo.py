"""`dermaudit demo` as a whole: seconds, and peak resident memory of the process tree.

Run: python tests/benchmarks/bench_demo.py [threads]
The goal is 3 minutes on 2 cores and 4 GB (one thread computes) after installation.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def tree_memory(pid: int, kind: str = "VmRSS") -> int:
    """Resident bytes of a process and all below it (Linux); `kind` RssAnon: without the pages of files."""
    total, waiting = 0, [pid]
    while waiting:
        current = waiting.pop()
        try:
            status = Path(f"/proc/{current}/status").read_text()
            for thread in Path(f"/proc/{current}/task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
        except OSError:
            continue
        total += sum(
            int(line.split()[1]) * 1024
            for line in status.splitlines()
            if line.startswith(f"{kind}:")
        )
    return total


def main() -> None:
    threads = sys.argv[1] if len(sys.argv) > 1 else "1"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "dermaudit",
            "demo",
            "--run",
            f"{folder}/demo",
            "--threads",
            threads,
            "--json",
        ]
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        result = json.loads(process.stdout.read())
    print(
        f"demo: {seconds:.0f} s (goal 180), peak {peak / 1e9:.2f} GB of the process tree (goal 4), {threads} threads"
    )
    for stage, value in result["seconds"].items():
        print(f"  {stage:<12}{value:>8.1f} s")


if __name__ == "__main__":
    main()
