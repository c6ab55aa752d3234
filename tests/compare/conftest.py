"""A small real task for the tests of the comparison: scikit-learn's diabetes set, least squares and top-k ridge."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def task():
    from small_task import Diabetes

    return Diabetes()


@pytest.fixture
def run(task, tmp_path):
    from ellzero.compare import compare

    return compare(task, seeds=2, trials=3, out=tmp_path / "run")
