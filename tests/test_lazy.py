"""Packages hand names out on first touch."""

import subprocess
import sys

import pytest

import ellzero
import ellzero.parts


def test_names_and_modules_resolve_and_unknown_ones_say_so():
    for name in ellzero.__all__:
        assert getattr(ellzero, name) is not None
    assert set(ellzero.__all__) <= set(dir(ellzero))
    with pytest.raises(AttributeError, match="module 'ellzero' has no attribute 'nonsense'"):
        ellzero.nonsense  # noqa: B018


def test_a_name_is_kept_after_its_first_touch():
    ellzero.Budget  # noqa: B018
    assert vars(ellzero)["Budget"] is ellzero.Budget


def test_importing_loads_nothing_heavy():
    code = "import sys, ellzero; print([m for m in ('torch', 'sklearn', 'numpy', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
