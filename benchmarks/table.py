"""What the benchmarks share: jobs that take turns, and a Markdown table that keeps one row per operation.

A run replaces the rows that it measured and leaves the others, so that long operations can be measured one by one.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_info

from ellzero import show_config

__all__ = ["Spent", "Times", "race", "ratio", "setting", "write"]

HEAD = ("operation", "ours", "peer", "ours / peer", "reach", "worst relative gap", "bound", "setting")
INTRO = """# Speed of the linear wing

Written by `benchmarks/linear.py --markdown FILE`, `benchmarks/pursuit.py` and `benchmarks/ease.py` with the same flag.
Jobs take turns in one process (R's in one of its own, timed inside R). Seconds are medians of the processor clock,
with the wall clock in brackets where other work shared the processor; ratios are of processor seconds, turn by turn.
A gap is relative to the objective at w = 0, recomputed by one function for everyone from the coefficients alone, with
the best of the dual points known: the scaled residual of the fit itself and that of a fit to 1e-10. What a program's
own residual certifies stands beside it where that is more.
"""


class Spent(NamedTuple):
    """Seconds that a job measured by itself, in place of those around it."""

    cpu: float
    wall: float


class Times(NamedTuple):
    """Seconds of one job, turn by turn."""

    cpu: list[float]
    wall: list[float]

    def __str__(self) -> str:
        return f"{statistics.median(self.cpu):.3g} s ({statistics.median(self.wall):.3g})"


def race(jobs: dict[str, Callable[[], Any]], repeats: int, once: Collection[str] = ()) -> dict[str, Times]:
    """Let the jobs take turns; prints medians and spread. The first turn is warm-up, except for what runs ``once``."""
    times = {name: Times([], []) for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            if turn and name in once:
                continue
            cpu, wall = time.process_time(), time.perf_counter()
            own = job()
            spent = own if isinstance(own, Spent) else Spent(time.process_time() - cpu, time.perf_counter() - wall)
            if turn or name in once or not repeats:
                times[name].cpu.append(spent.cpu)
                times[name].wall.append(spent.wall)
    for name, (cpu, wall) in times.items():
        print(f"  {name:38} {statistics.median(cpu):9.3f} s  ({min(cpu):.3f} to {max(cpu):.3f} s, {len(cpu)} turns); "
              f"wall {statistics.median(wall):.3f} s", flush=True)  # fmt: skip
    return times


def ratio(ours: Times, peer: Times) -> float:
    """The median of the ratios turn by turn; of medians where one of them ran fewer turns."""
    if len(ours.cpu) != len(peer.cpu):
        return statistics.median(ours.cpu) / statistics.median(peer.cpu)
    return statistics.median(a / b for a, b in zip(ours.cpu, peer.cpu))


def setting() -> str:
    """Threads, the live kernels and the live BLAS cores, as a cell of the table."""
    pools = {(lib["architecture"], lib["num_threads"]) for lib in threadpool_info() if lib["user_api"] == "blas"}
    blas = ", ".join(f"{core} on {threads}" for core, threads in sorted(pools))
    return f"kernels {show_config()['isa']}; BLAS {blas} thread(s); load {os.getloadavg()[0]:.0f} on {os.cpu_count()}"


def write(path: Path | None, rows: list[tuple[str, ...]], blocks: dict[str, str] | None = None) -> None:
    """Put rows (by their first cell) and blocks of printed text (by their heading) into the file at ``path``."""
    for row in rows:
        print("  " + " | ".join(row), flush=True)
    if path is None:
        return
    text = path.read_text() if path.exists() else ""
    lines = [line for line in text.splitlines() if re.match(r"\| (?!operation \||--- \|)", line)]
    table = {line[2:].split(" | ")[0]: line for line in lines}
    table.update({row[0]: f"| {' | '.join(row)} |" for row in rows})
    held = dict(re.findall(r"^## `(.+?)`\n\n```text\n(.*?)```\n", text, flags=re.MULTILINE | re.DOTALL))
    held.update(blocks or {})
    head = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    parts = [INTRO, "\n".join([*head, *(table[name] for name in sorted(table))]) + "\n"]
    parts += [f"## `{name}`\n\n```text\n{shown.rstrip()}\n```\n" for name, shown in sorted(held.items())]
    path.write_text("\n".join(parts))


def number(value: float) -> str:
    """A gap in two digits."""
    return np.format_float_scientific(value, precision=1)
