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
    worst = [found[f"worst_group_{at}"] for at in ("before", "fixed", "prevalence")]
    print(f"{found['n_scored']} images, {found['n']}; trap heads of {found['n_trap']} images")
    print(
        f"cross-group AUROC {found['cross_group_auroc_before']:.3f} -> {found['cross_group_auroc_after']:.3f} "
        f"{found['ci']}, without the trap {found['oracle']:.3f}: gap closed {found['gap_closed']:.2f}"
    )
    print("worst group: before, unchanged threshold, prevalence-matched:", worst)
    print(f"artifact-free AUROC {found['clean_auroc_delta']:+.4f} {found['clean_auroc_ci']}")
    print(f"random latents beaten {found['random_beaten']} of {len(found['random_changes'])}")
    print(f"insertion residual {found['insertion_residual']}; refused {found['refused']}")


if __name__ == "__main__":
    main()
