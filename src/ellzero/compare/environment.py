"""Where a comparison ran: versions, processor and threads, so that a figure can be read years later.

Lives here: ``environment``. Does not live here: anything that changes a setting; it only looks.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from typing import Any

import ellzero

__all__ = ["available_threads", "environment"]


def available_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _kernels() -> dict[str, Any]:
    shown = importlib.import_module("ellzero.kernels").show_config()
    return {name: shown[name] for name in ("isa", "live", "n_threads") if name in shown}


def environment() -> dict[str, Any]:
    """Versions, processor, threads and the live kernels, as JSON. Loads nothing that is not loaded already."""
    threads: dict[str, Any] = {"cores": available_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    versions = {"ellzero": ellzero.__version__, "python": platform.python_version()}
    for name in ("numpy", "scipy", "sklearn", "torch", "transformers"):
        if name in sys.modules:
            versions[name] = str(sys.modules[name].__version__)
    if "torch" in sys.modules:
        threads["torch"] = sys.modules["torch"].get_num_threads()
    return {
        "versions": versions,
        "cpu": _cpu(),
        "platform": platform.platform(),
        "threads": threads,
        "kernels": _kernels(),
    }
