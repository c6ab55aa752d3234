"""The main job, end to end: compare three wings, take one point home, apply it in a fresh process.

Run it with ``make demo``; it writes into ``runs/demo`` and ends by naming the reports.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from ellzero.data import sets

RUNS = Path("runs/demo")
COMPARISONS = {
    "regression": ["--seeds", "3", "--trials", "4"],
    "autoencoder": ["--budgets", "4,8,16,32", "--methods", "pca,relu-l1,topk,batchtopk"],
    "network": ["--budgets", "0.02,0.05,0.1,0.3", "--seeds", "2"],
}


def ellzero(*arguments: str) -> float:
    """Run one command as a user would; the seconds it took."""
    print(f"\n$ ellzero {' '.join(arguments)}", flush=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ellzero.cli", *arguments], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Three comparisons, then take and apply."""
    if RUNS.exists():
        shutil.rmtree(RUNS)
    RUNS.mkdir(parents=True)
    seconds = {
        task: ellzero("compare", task, *options, "--out", str(RUNS / task)) for task, options in COMPARISONS.items()
    }
    model, table, predictions = RUNS / "model", RUNS / "patients.csv", RUNS / "predictions.csv"
    seconds["take"] = ellzero(
        "take", str(RUNS / "regression"), "--method", "omp", "--budget", "8", "--out", str(model), "--refit", "all"
    )
    write_patients(table)
    seconds["apply"] = ellzero("apply", str(model), str(table), "--out", str(predictions))
    print("\nseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    print(f"predictions: {predictions}")
    for task in COMPARISONS:
        print(f"report: {RUNS / task / 'report.html'}")


def write_patients(path: Path) -> None:
    """New rows as a user has them: the ten measurements of ten patients; the model makes its products itself."""
    patients = sets.load("diabetes")
    lines = [",".join(patients.columns), *(",".join(repr(float(value)) for value in row) for row in patients.X[:10])]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
