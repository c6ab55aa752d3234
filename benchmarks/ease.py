"""EASE against one Cholesky inverse of the same size: time and peak memory.

    python benchmarks/ease.py [--items 6000] [--users 20000] [--per-user 60] [--dtype float32] [--repeats 3]
                              [--without-solve] [--markdown FILE]

The bound is LAPACK's own potrf and potri in place on a ready matrix (one triangle of it), and beside it scipy's
``cho_solve`` on the identity (``--without-solve`` leaves it out). Jobs take turns; the first turn is warm-up, except
with ``--repeats 0``, which is for sizes where a job takes minutes: one turn, and it counts. Times are of the processor
clock, which other work on the machine disturbs least: set OMP_NUM_THREADS=1, as waiting threads count too. Memory is
the process's peak beyond what the interactions hold, in arrays of items x items, measured in a fresh process.

The reach at 20,000 items is twice the time of potrf and potri, and 2.2 arrays. Measured there in float32 (100,000
users, 6.8 million interactions, one thread): 1.15 times the time (75.9 s against 65.7 s), and 1.08 arrays.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import linalg, sparse
from table import race, ratio, setting, write

from ellzero.recommend import EASE
from ellzero.recommend.ease import gram
from ellzero.rng import rng


def make_interactions(users: int, items: int, per_user: int, dtype: str) -> sparse.csr_array:
    """Each user takes items drawn by a long-tailed popularity."""
    generator = rng(0, "benchmark ease")
    weight = 1 / np.arange(1, items + 1) ** 0.7
    columns = generator.choice(items, size=users * per_user, p=weight / weight.sum())
    rows = np.repeat(np.arange(users), per_user)
    matrix = sparse.csr_array((np.ones(len(rows), dtype=dtype), (rows, columns)), shape=(users, items))
    matrix.data[:] = 1
    return matrix


def in_place_inverse(matrix: np.ndarray) -> np.ndarray:
    """potrf and potri on a column-major matrix, one triangle."""
    potrf, potri = linalg.lapack.get_lapack_funcs(("potrf", "potri"), (matrix,))
    return potri(potrf(matrix, lower=1, overwrite_a=1, clean=0)[0], lower=1, overwrite_c=1)[0]


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, or ``VmHWM`` at its peak since the last reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def peak_arrays(options: argparse.Namespace) -> float:
    """Peak memory of one fit beyond that before it, in items x items arrays."""
    matrix = make_interactions(options.users, options.items, options.per_user, options.dtype)
    EASE(dtype=options.dtype).fit(matrix[:50, :50])  # the libraries' own buffers are not the method's
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    EASE(200.0, dtype=options.dtype).fit(matrix)
    return (resident("VmHWM") - before) / (options.items**2 * np.dtype(options.dtype).itemsize)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=6000)
    parser.add_argument("--users", type=int, default=20000)
    parser.add_argument("--per-user", type=int, default=60)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without-solve", action="store_true", help="leave scipy's cho_solve out")
    parser.add_argument("--peak", action="store_true", help="print the peak memory of one fit, and nothing else")
    parser.add_argument("--markdown", type=Path, help="the table to put the row into")
    options = parser.parse_args()
    if options.peak:
        print(peak_arrays(options))
        return
    matrix = make_interactions(options.users, options.items, options.per_user, options.dtype)
    lower = gram(matrix, options.dtype).T  # row-major and upper is column-major and lower
    lower[np.diag_indices_from(lower)] += 200
    jobs = {
        "EASE.fit": lambda: EASE(200.0, dtype=options.dtype).fit(matrix),
        "its Gram matrix": lambda: gram(matrix, options.dtype),
        "potrf + potri": lambda: in_place_inverse(lower.copy(order="F")),
        "scipy cho_solve": lambda: linalg.cho_solve(
            linalg.cho_factor(lower, lower=True), np.eye(options.items, dtype=options.dtype)
        ),
    }
    if options.without_solve:
        del jobs["scipy cho_solve"]
    print(f"{options.users} users, {options.items} items, {matrix.nnz} interactions, {options.dtype}; {setting()}")
    times = race(jobs, options.repeats)
    quotients = {peer: ratio(times["EASE.fit"], times[peer]) for peer in list(jobs)[2:]}
    for peer, quotient in quotients.items():
        print(f"EASE.fit / {peer}: {quotient:.2f}")
    command = [sys.executable, __file__, *sys.argv[1:], "--peak"]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"peak memory of a fit: {peak:.2f} arrays of items x items (reach: at most 2.2)")
    operation = f"EASE, {options.items} items, {matrix.nnz} interactions, {options.dtype}"
    bound = f"items^3 operations; the Gram matrix takes {times['its Gram matrix']}"
    cells = (str(times["EASE.fit"]), f"potrf + potri {times['potrf + potri']}", f"{quotients['potrf + potri']:.2f}")
    rows = [(operation, *cells, "at most 2", "", bound, setting())]
    rows.append((f"{operation}: memory", f"{peak:.2f} arrays", "", "", "at most 2.2", "", "1 array is the answer", ""))
    write(options.markdown, rows)


if __name__ == "__main__":
    main()
