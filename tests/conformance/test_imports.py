"""What an import loads, which way imports point, and that shape annotations are really checked."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ellzero

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "sklearn", "matplotlib", "transformers", "plotly", "pandas", "pyarrow", "jaxtyping", "beartype")


def fresh(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    ["ellzero", "ellzero.cli", "ellzero.io", "ellzero.data", "ellzero.parts", "ellzero.linear", "ellzero.network",
     "ellzero.autoencoder", "ellzero.models", "ellzero.training", "ellzero.compare", "ellzero.compare.tasks",
     "ellzero.registry", "ellzero.data.sets", "ellzero.data.generators", "ellzero.io.readers"],
)  # fmt: skip
def test_an_import_loads_nothing_heavy_and_prints_nothing(module):
    code = f"import sys, {module}; sys.exit([m for m in {HEAVY!r} if m in sys.modules] or None)"
    assert fresh(code) == ""


def test_the_top_package_loads_no_scipy_either():
    assert fresh("import sys, ellzero; print('scipy' in sys.modules)") == "False"


def test_listing_methods_loads_no_torch():
    code = "import sys; from ellzero.cli import main\ntry: main()\nexcept SystemExit as e: assert not e.code\n"
    code += f"print([m for m in {HEAVY!r} if m in sys.modules])"
    assert fresh(code, "methods", "--json").splitlines()[-1] == "[]"


def test_every_name_of_a_lazy_package_is_there():
    pytest.importorskip("torch")
    packages = ["ellzero", *(f"ellzero.{name}" for name in ("io", "data", "parts", "models", "training", "linear",
                "network", "autoencoder", "compare", "solvers", "kernels"))]  # fmt: skip
    fresh(
        f"import importlib\nfor p in map(importlib.import_module, {packages!r}):\n"
        "    for n in getattr(p, '__all__', ()): getattr(p, n)\n"
        "    assert set(getattr(p, '__all__', ())) <= set(dir(p)), p"
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ellzero.nothing


def test_imports_point_down():
    pytest.importorskip("importlinter")
    done = subprocess.run([str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], capture_output=True,
                          text=True, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


def test_the_contract_covers_every_package():
    import tomllib

    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    covered = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    package = Path(ellzero.__file__).parent
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    assert packages <= covered


def test_every_module_says_what_lives_there():
    package = Path(ellzero.__file__).parent
    silent = [str(path.relative_to(package)) for path in sorted(package.rglob("*.py"))
              if not (ast.get_docstring(ast.parse(path.read_text())) or "").strip()]  # fmt: skip
    assert not silent


def test_nothing_pickles():
    """No module imports pickle or joblib, and ``torch.load`` is only called with ``weights_only=True``."""
    package = Path(ellzero.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"pickle", "joblib", "dill", "cloudpickle", "shelve"}, f"{path}: line {node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                safe = given.get("weights_only") == "True" or given.get("allow_pickle") == "False"
                assert safe, f"{path}: line {node.lineno}"


def test_a_wrong_rank_is_caught():
    """Shape strings are checked, not decoration: under the import hook a tensor of the wrong rank is refused."""
    pytest.importorskip("torch")
    pytest.importorskip("jaxtyping")
    pytest.importorskip("beartype")
    code = """
import torch, jaxtyping
modules = ["ellzero.models.transformer", "ellzero.parts.gradients"]
with jaxtyping.install_import_hook(modules, "beartype.beartype"):
    from ellzero.models.transformer import rotate
    from ellzero.parts.gradients import Masked
heads, angle, support = torch.zeros(2, 3, 4, 8), torch.zeros(2, 4, 4), torch.ones(2, 3, dtype=torch.bool)
assert rotate(heads, angle).shape == heads.shape
assert Masked().apply(torch.ones(2, 3), support).shape == (2, 3)
for call in (lambda: rotate(heads[0], angle), lambda: rotate(heads, angle[:1]), lambda: rotate(heads.long(), angle),
             lambda: Masked().apply(torch.ones(3), support)):
    try:
        call()
    except jaxtyping.TypeCheckError:
        print("refused")
"""
    assert fresh(code).split() == ["refused"] * 4
