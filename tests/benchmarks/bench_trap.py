"""The ruler trap on phantoms, at full size: what suppression does to the worst group.

P(ruler | melanoma) = .9 and P(ruler | other) = .1 in head training, swapped in test, at least 1,000
images each and 30 in every group. Renders 9,400 phantoms, so it takes some minutes.
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
    before, after = found["worst_group_before"], found["worst_group_after"]
    print(
        f"trap of n_fit {found['n_fit']}, n_test {found['n_test']} ({found['test_is']}), groups {found['n']}"
    )
    print(f"worst group {before:.3f} -> {after:.3f}, lift {after - before:+.3f} {found['ci']}")
    print(
        f"at the unchanged threshold {found['worst_group_after_fixed_threshold']:.3f}, with the head refitted "
        f"{found['worst_group_after_refit']:.3f}"
    )
    print(f"a head fitted without the trap: {found['worst_group_without_trap']:.3f}")
    print(f"artifact-free AUROC {found['clean_auroc_delta']:+.4f} (n {found['clean_n']})")
    print(f"random sets beaten {found['random_sets_beaten']} of {found['random_sets']}")
    print(f"insertion residual {found['insertion_residual']}; latents {found['latents']}")


if __name__ == "__main__":
    main()
