"""The choice of the compiled module that fits this CPU.

Lives here: the list of instruction sets, the choice at load, ``ELLZERO_ISA``, and ``show_config``. Does not live
here: any kernel. The best module that both was built and runs on this CPU is live; ``ELLZERO_ISA`` forces one of
``base``, ``avx2``, ``avx512``, ``neon`` or ``reference`` (plain NumPy).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ellzero.errors import InputError, suggestion

__all__ = ["choose", "cpu_features", "show_config"]

# Per instruction set, best last: the CPU features that its module was compiled for.
_X86 = {
    "base": (),
    "avx2": ("avx2", "fma", "bmi1", "bmi2"),
    "avx512": ("avx2", "fma", "bmi1", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
}
_ARM = {"base": (), "neon": ("neon",)}
KNOWN = ("base", "avx2", "avx512", "neon", "reference")


class Choice(NamedTuple):
    """Which module is live, and why."""

    isa: str
    module: ModuleType | None
    forced: bool
    problems: dict[str, str]


def _wanted() -> dict[str, tuple[str, ...]]:
    return _ARM if platform.machine().lower() in ("aarch64", "arm64") else _X86


def cpu_features() -> frozenset[str]:
    """The features among those we ask for that this CPU and its operating system offer."""
    try:
        return frozenset(importlib.import_module("ellzero.kernels._base").cpu_features())
    except ImportError:
        pass
    if _wanted() is _ARM:
        return frozenset({"neon"})
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return frozenset(flags)


def _openmp_runtimes() -> list[str]:
    """Files of the OpenMP runtimes that are loaded now; several mean several pools of threads."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    files = {fields[5] for fields in (line.split(maxsplit=5) for line in lines) if len(fields) == 6}
    return sorted(path for path in files if os.path.basename(path).startswith(("libgomp", "libomp", "libiomp5")))


def _forked_beside_a_pool() -> bool:
    """Whether this process was forked (and not executed anew) with an OpenMP runtime already in memory.

    The modules note a fork that happens after they are loaded. If they are first loaded in a child, the parent's
    pool may already have been there (torch's, shared by ours): its threads are gone and entering it would hang.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    forked_without_exec = 0x40  # PF_FORKNOEXEC of the Linux kernel, in the ninth field
    return bool(int(fields[6]) & forked_without_exec) and bool(_openmp_runtimes())


_SERIAL = _forked_beside_a_pool()  # asked before our own modules bring a runtime


def _attach_openmp(module: ModuleType) -> None:
    """Give the module the OpenMP pool that torch uses or will use, else the system's, else none (one thread).

    The loader knows libraries by their short name: one ``libgomp.so.1`` in memory serves whoever asks next. So take
    what is loaded; else the one that torch brings (without importing torch), since torch may need its version.
    """
    if _SERIAL:
        return module.run_serial()
    spec = importlib.util.find_spec("torch")
    folders = (spec.submodule_search_locations or []) if spec else []
    bundled = [str(file) for folder in folders for file in sorted(Path(folder, "lib").glob("libgomp*.so*"))]
    loaded = ["libgomp.so.1", *bundled]
    if not any(module.attach_openmp(file, loaded_only=True) for file in loaded):
        any(module.attach_openmp(file) for file in [*bundled, "libgomp.so.1"])
    return None


def _load(isa: str) -> tuple[ModuleType | None, str]:
    lacking = sorted(set(_wanted()[isa]) - cpu_features())
    if lacking:
        return None, f"this CPU lacks {', '.join(lacking)}"
    try:
        module = importlib.import_module(f"ellzero.kernels._{isa}")
        _attach_openmp(module)
        return module, ""
    except ModuleNotFoundError:
        return None, "not built"
    except ImportError as error:
        return None, f"cannot be loaded: {error}"


def choose(request: str | None = None) -> Choice:
    """Load the module named by ``request`` (default: ``ELLZERO_ISA``), else the best one that loads.

    Raises
    ------
    InputError
        If the request names no instruction set, or one that this CPU lacks or that was not built.
    """
    request = os.environ.get("ELLZERO_ISA", "") if request is None else request
    request = request.strip().lower()
    if request == "reference":
        return Choice("reference", None, True, {})
    if request:
        if request not in KNOWN:
            raise InputError(
                f"ELLZERO_ISA: got {request!r}, want one of {', '.join(KNOWN)}{suggestion(request, KNOWN)}"
            )
        if request not in _wanted():
            raise InputError(f"ELLZERO_ISA: got {request!r}, which is not for {platform.machine()}")
        module, problem = _load(request)
        if module is None:
            raise InputError(f"ELLZERO_ISA: got {request!r}, but {problem}; want an instruction set that loads")
        return Choice(request, module, True, {})
    problems = {}
    for isa in reversed(_wanted()):
        module, problem = _load(isa)
        if module is not None:
            return Choice(isa, module, False, problems)
        problems[isa] = problem
    return Choice("reference", None, False, problems)


CHOICE = choose()


def _blas() -> dict[str, Any]:
    """What NumPy's BLAS runs, and the better core that this CPU offers but that it does not use."""
    facts: dict[str, Any] = {"blas": None, "blas_core": None, "blas_threads": None, "blas_below_cpu": None}
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return facts
    found = [pool for pool in threadpool_info() if pool.get("user_api") == "blas"]
    if not found:
        return facts
    pool = next((pool for pool in found if "numpy" in pool["filepath"]), found[0])
    core = pool.get("architecture")
    facts.update(blas=f"{pool['internal_api']} {pool['version']}", blas_core=core, blas_threads=pool["num_threads"])
    if pool["internal_api"] == "openblas" and core is not None:
        facts["blas_below_cpu"] = _blas_level(core) < _cpu_level()
    return facts


# OpenBLAS's x86 cores with 512-bit and with 256-bit kernels; what is not listed runs on less.
_WIDE = ("skylakex", "cooperlake", "sapphirerapids", "zen4", "zen5")
_MIDDLE = ("haswell", "zen", "excavator", "broadwell")


def _blas_level(core: str) -> int:
    name = core.lower()
    return 2 if name in _WIDE else 1 if name in _MIDDLE else 0


def _cpu_level() -> int:
    features = cpu_features()
    return 2 if set(_X86["avx512"]) <= features else 1 if set(_X86["avx2"]) <= features else 0


class Config(dict):
    """A dictionary that prints one fact per line."""

    def __str__(self) -> str:
        return "\n".join(f"{name:16} {value}" for name, value in self.items())


def show_config() -> Config:
    """Which compiled module is live, which others load, threads, OpenMP pools and the vendor BLAS.

    Returns
    -------
    Config : a dictionary that prints as one line per fact: ``isa`` and ``live``; ``forced`` (by ``ELLZERO_ISA``);
        ``available``, and ``problems`` of what does not load; ``cpu``; ``n_threads``; ``openmp_runtimes`` (files
        loaded now) and ``one_pool`` (ours is the one that torch uses, None before torch is loaded); ``blas``,
        ``blas_core``, ``blas_threads`` of NumPy, and ``blas_below_cpu``: whether its core is older than the CPU's.
    """
    available, problems = [], dict(CHOICE.problems)
    for isa in _wanted():
        module, problem = _load(isa)
        if module is None:
            problems[isa] = problem
        else:
            available.append(isa)
    native = CHOICE.module
    return Config(
        isa=CHOICE.isa,
        live=native is not None,
        forced=CHOICE.forced,
        available=available,
        problems=problems,
        cpu=sorted(cpu_features()),
        n_threads=native.max_threads() if native else 1,
        openmp=bool(native and native.openmp_address()),
        openmp_runtimes=_openmp_runtimes(),
        one_pool=_shares_torch_pool(native),
        **_blas(),
    )


def _shares_torch_pool(native: ModuleType | None) -> bool | None:
    torch = sys.modules.get("torch")
    if native is None or torch is None or not native.openmp_address():
        return None
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        theirs = ctypes.cast(loaded.omp_get_max_threads, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
    return theirs == native.openmp_address()
