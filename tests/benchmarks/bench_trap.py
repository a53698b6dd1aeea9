"""The ruler trap on phantoms, at full size: what suppressing the ruler does to trap heads, cross-fitted.

P(ruler | melanoma) = .9 and P(ruler | other) = .1 in head training. Renders 9,400 phantoms, so it takes some
minutes.
Run: python tests/benchmarks/bench_trap.py [n]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

BIAS = """
[diagnosis]
akiec = 0.08
bcc = 0.08
bkl = 0.10
df = 0.06
mel = 0.50
nv = 0.12
vasc = 0.06
[artifact.default]
ruler = 0.5
"""


def run(*args: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "dermaudit", *args, "--json"], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    n = sys.argv[1] if len(sys.argv) > 1 else "9400"
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "bias.toml"
        table.write_text(BIAS)
        data, where = f"{folder}/data", f"{folder}/run"
        run(
            "data", "phantom", "--n", n, "--seed", "5000", "--bias-table", str(table), "--out", data
        )
        run(
            "embed",
            data,
            "--model",
            "phantom-vit",
            "--run",
            where,
            "--site",
            "visual.pooled",
            "--threads",
            "1",
        )
        run("fit", "--run", where, "--threads", "1", "--seeds", "0")
        found = run("recipe", "make", "--run", where, "--concept", "ruler", "--threads", "1")[
            "suppression"
        ]["ruler"]
    keys = (
        "n_scored", "n_trap", "cross_group_auroc_before", "cross_group_auroc_after", "ci", "oracle", "gap_closed",
        "worst_group_before", "worst_group_fixed", "worst_group_prevalence", "clean_auroc_delta", "clean_auroc_ci",
        "random_beaten", "insertion_residual", "refused",
    )  # fmt: skip
    print(json.dumps({key: found[key] for key in keys}, indent=1))


if __name__ == "__main__":
    main()
