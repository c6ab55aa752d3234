"""With the base dependencies alone every module imports, or says which extra brings what it misses."""

import subprocess
import sys

import pytest

EXTRAS = ("torch", "jaxtyping", "beartype", "plotly", "pyarrow", "pandas", "transformers", "tokenizers")

PRELUDE = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""

IMPORT_ALL = """
import importlib, pkgutil, ellzero
wrong, torch_only = [], []
for info in pkgutil.walk_packages(ellzero.__path__, "ellzero.", onerror=lambda name: None):
    if info.name.rsplit(".", 1)[-1] in ("__main__", "_base", "_avx2", "_avx512", "_neon"):
        continue
    try:
        importlib.import_module(info.name)
    except ImportError as error:
        name = getattr(error, "name", None) or str(error)
        (torch_only if name.split(".")[0] in ("torch", "jaxtyping") else wrong).append((info.name, str(error)))
assert not wrong, wrong
packages = [name for name, _ in torch_only if name.count(".") == 1]
assert not packages, f"a package's own __init__ needs torch: {packages}"
"""


def run(code):
    return subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, text=True)


def test_every_module_imports_or_misses_torch_alone():
    done = run(IMPORT_ALL)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["methods", "--wing", "linear"], ["config"]])
def test_the_command_line_answers(arguments):
    done = run(f"sys.argv = ['ellzero', *{arguments!r}]\nfrom ellzero.cli import main\nmain()")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_missing_extra_is_one_line_with_the_remedy(tmp_path):
    out = str(tmp_path / "run")
    done = run(
        f"sys.argv = ['ellzero', 'compare', 'network', '--budgets', '0.1', '--out', {out!r}]\n"
        "from ellzero.cli import main\nmain()"
    )
    assert done.returncode == 2
    assert "pip install 'ellzero[torch]'" in done.stderr
    assert "Traceback" not in done.stderr
