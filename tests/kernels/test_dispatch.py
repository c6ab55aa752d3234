"""Which module is live: forced and chosen instruction sets, import orders, one pool, forks, the built wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ellzero import kernels
from ellzero.errors import InputError
from ellzero.kernels import _dispatch, show_config

ROOT = Path(__file__).parents[2]
needs_native = pytest.mark.skipif(not kernels.live, reason="no compiled module is live")

CHECK = """
import numpy as np
from ellzero import kernels
from ellzero.kernels import reference

draw = np.random.default_rng(0)
def check_top_k():
    for dtype in (np.float32, np.float64):
        for n, k in ((0, 0), (1, 1), (127, 5), (128, 128), (1000, 7), (9001, 32), (9001, 3000)):
            for x in (draw.standard_normal((40, n)), draw.integers(-2, 2, (40, n)), np.full((40, n), np.nan)):
                x = x.astype(dtype)
                x[:, ::11] = -np.inf
                x[:, 3::17] = np.nan
                for n_threads in (1, 4):
                    found = kernels.top_k(x, k, n_threads=n_threads)
                    values, indices = reference.top_k(x, k)
                    assert np.array_equal(found.indices, indices), (dtype, n, k)
                    assert np.array_equal(found.values, values, equal_nan=True), (dtype, n, k)
check_top_k()
print(kernels.isa)
"""


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512", "neon", "reference"])
def test_each_forced_instruction_set(isa, run_python):
    if isa not in [*show_config()["available"], "reference"]:
        pytest.skip(f"{isa}: {show_config()['problems'].get(isa, 'not for this machine')}")
    done = run_python(CHECK, ELLZERO_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]


def test_all_built_modules_agree_bit_for_bit(run_python):
    code = """
import hashlib, numpy as np
from ellzero.kernels import top_k
x = np.random.default_rng(0).standard_normal((50, 5000))
found = [top_k(x.astype(dtype), 40) for dtype in (np.float32, np.float64)]
print(hashlib.sha256(b"".join(a.tobytes() for pair in found for a in pair)).hexdigest())
"""
    names = [*show_config()["available"], "reference"]
    assert len({run_python(code, ELLZERO_ISA=isa).stdout for isa in names}) == 1


@pytest.mark.parametrize("name", ["avx51", "sse9"])
def test_unknown_instruction_set_is_refused(name, run_python):
    done = run_python("import ellzero.kernels", ELLZERO_ISA=name)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ellzero.errors.InputError: ELLZERO_ISA: got '{name}', want one of base, avx2")


def test_what_the_cpu_lacks_is_refused_by_feature(monkeypatch):
    monkeypatch.setattr(_dispatch, "_wanted", lambda: _dispatch._X86)
    monkeypatch.setattr(_dispatch, "cpu_features", lambda: frozenset({"avx2", "fma"}))
    with pytest.raises(InputError, match="ELLZERO_ISA: got 'avx2', but this CPU lacks bmi1, bmi2"):
        _dispatch.choose("avx2")
    with pytest.raises(InputError, match="which is not for"):
        _dispatch.choose("neon")


def test_the_choice_falls_back_step_by_step(monkeypatch):
    loads = {"avx512": (None, "too new"), "avx2": (None, "not built"), "base": (kernels, "")}
    monkeypatch.setattr(_dispatch, "_wanted", lambda: _dispatch._X86)
    monkeypatch.setattr(_dispatch, "_load", loads.__getitem__)
    choice = _dispatch.choose("")
    assert (choice.isa, choice.module) == ("base", kernels)
    assert choice.problems == {"avx512": "too new", "avx2": "not built"}
    loads["base"] = (None, "not built")
    choice = _dispatch.choose("")
    assert (choice.isa, choice.module) == ("reference", None)


def test_features_without_a_module_come_from_the_system(monkeypatch):
    with_module = _dispatch.cpu_features()

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(_dispatch.importlib, "import_module", missing)
    assert with_module <= _dispatch.cpu_features()


def test_show_config_prints_a_line_per_fact():
    config = show_config()
    assert config["isa"] == kernels.isa
    assert config["live"] == (kernels.native is not None)
    assert len(str(config).splitlines()) == len(config)
    assert config["n_threads"] >= 1


@pytest.mark.parametrize(
    ("core", "features", "below"),
    [
        ("SkylakeX", _dispatch._X86["avx512"], False),
        ("Haswell", _dispatch._X86["avx512"], True),
        ("Haswell", _dispatch._X86["avx2"], False),
        ("Nehalem", _dispatch._X86["avx2"], True),
        ("Nehalem", (), False),
    ],
)
def test_a_blas_core_below_the_cpu_is_seen(core, features, below, monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    pool = {"user_api": "blas", "internal_api": "openblas", "version": "0.3", "num_threads": 2}
    pool |= {"architecture": core, "filepath": "numpy.libs/x.so"}
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: [pool])
    monkeypatch.setattr(_dispatch, "cpu_features", lambda: frozenset(features))
    assert show_config()["blas_core"] == core
    assert show_config()["blas_below_cpu"] is below


def test_the_real_blas_core_is_reported(run_python):
    if show_config()["blas"] is None or not show_config()["blas"].startswith("openblas"):
        pytest.skip("NumPy's BLAS is not OpenBLAS")
    if not set(_dispatch._X86["avx2"]) <= _dispatch.cpu_features():
        pytest.skip("this CPU has nothing above Nehalem")
    done = run_python(
        "import numpy, ellzero; print(ellzero.show_config()['blas_below_cpu'])", OPENBLAS_CORETYPE="Nehalem"
    )
    assert done.stdout.split() == ["True"], done.stderr


ORDERS = {
    "kernels first": "from ellzero import kernels\nimport torch",
    "torch first": "import torch\nfrom ellzero import kernels",
    "scikit-learn first": "import sklearn.linear_model\nfrom ellzero import kernels\nimport torch",
}


@needs_native
@pytest.mark.parametrize("order", ORDERS)
def test_import_orders_share_one_pool(order, run_python):
    pytest.importorskip("torch")
    code = (
        ORDERS[order]
        + CHECK
        + """
a = torch.randn(300, 300)
want = a @ a
x = torch.randn(64, 20_000)
kept = kernels.top_k(x.numpy(), 9).indices
for _ in range(10):
    torch.testing.assert_close(a @ a, want)
    assert np.array_equal(kernels.top_k(x.numpy(), 9).indices, kept)
config = kernels.show_config()
print(config["one_pool"], config["openmp"])
"""
    )
    done = run_python(code, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [kernels.isa, "True", "True"]


@needs_native
def test_runs_without_an_openmp_runtime(run_python):
    code = """
import importlib, numpy as np
module = importlib.import_module("ellzero.kernels._base".replace("ellzero.kernels.", ""))
assert module.openmp_address() == 0 and module.max_threads() == 1
assert not module.attach_openmp("/no/such/library.so") and not module.attach_openmp("libc.so.6")
x = np.random.default_rng(0).standard_normal((300, 5000))
values, indices = np.empty((300, 3)), np.empty((300, 3), np.int64)
module.top_k(x, values, indices, 8)
assert (values[:, 0] == x.max(axis=1)).all()
print("done")
"""
    done = run_python(code, path=str(Path(_dispatch.__file__).parent))
    assert done.stdout.split() == ["done"], done.stderr


FORK = """
import multiprocessing, os, sys
import numpy as np
%s
def child(queue):
    from ellzero import kernels
    x = np.random.default_rng(0).standard_normal((64, 20_000))
    found = kernels.top_k(x, 9, n_threads=4)
    queue.put((kernels.show_config()["n_threads"], found.values.tobytes()))

context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
threads, values = queue.get(timeout=60)
process.join()
from ellzero import kernels
x = np.random.default_rng(0).standard_normal((64, 20_000))
assert values == kernels.top_k(x, 9).values.tobytes()
print(threads, kernels.show_config()["n_threads"])
"""


@needs_native
@pytest.mark.parametrize("loaded", ["before the fork", "in the child, after torch's pool"])
def test_a_forked_child_uses_one_thread(loaded, run_python):
    before = {
        "before the fork": "from ellzero import kernels\n"
        "kernels.top_k(np.zeros((64, 20_000)), 9, n_threads=4)  # the pool exists now\n",
        "in the child, after torch's pool": "import torch\ntorch.set_num_threads(4)\n"
        "torch.randn(2000, 2000).exp().sum()  # the pool exists now\n",
    }[loaded]
    if "torch" in before:
        pytest.importorskip("torch")
    done = run_python(FORK % before, OMP_NUM_THREADS="4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "4"]


@needs_native
def test_data_loader_workers(run_python):
    pytest.importorskip("torch")
    code = """
import numpy as np, torch
from ellzero.kernels import reference
from ellzero.kernels.torch_ops import top_k

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        x = torch.randn(32, 20_000, generator=torch.Generator().manual_seed(i))
        return x, *top_k(x, 5)

if __name__ == "__main__":
    torch.set_num_threads(4)
    (torch.randn(500, 500) @ torch.randn(500, 500)).exp().sum()
    top_k(torch.randn(64, 20_000), 5)  # the parent's pool exists now
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Rows(), batch_size=2, num_workers=2, multiprocessing_context=context)
        for x, values, indices in loader:
            found = top_k(x, 5)
            assert torch.equal(found.values, values) and torch.equal(found.indices, indices)
            assert np.array_equal(indices.numpy(), reference.top_k(x.numpy(), 5)[1])
    print("done")
"""
    done = run_python(code, OMP_NUM_THREADS="4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]


def build_wheel(tmp_path, **environment):
    """Build the wheel of a copy of the sources; skips by name where the build tools are not installed."""
    pytest.importorskip("scikit_build_core")
    pytest.importorskip("nanobind")
    source, out = tmp_path / "source", tmp_path / "wheel"
    junk = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "*.so", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=junk)
    (source / "README.md").touch()
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(out)]
    done = subprocess.run(command, cwd=source, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("ellzero-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    return wheel, str(tmp_path / "installed")


@pytest.mark.slow
@needs_native
def test_the_built_wheel(tmp_path, run_python):
    wheel, installed = build_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not any("gomp" in name for name in names)
    assert sum(name.endswith(".so") for name in names) == len(_dispatch._wanted())
    done = run_python(CHECK + "print(kernels.__file__)", path=installed)
    assert done.returncode == 0, done.stderr
    isa, path = done.stdout.split()
    assert isa == kernels.isa
    assert path.startswith(installed)


@pytest.mark.slow
def test_the_wheel_without_a_compiler(tmp_path, run_python):
    wheel, installed = build_wheel(tmp_path, CXX="/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    done = run_python(CHECK + "print(kernels.__file__)", path=installed)
    assert done.returncode == 0, done.stderr
    isa, path = done.stdout.split()
    assert isa == "reference"
    assert path.startswith(installed)
