"""A fresh process for what is decided at load: instruction set, import order, forks.

It runs without ``site``, so that the package comes from the folder asked for and never from an editable install.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import ellzero


@pytest.fixture
def run_python(tmp_path):
    """``run_python(code, **environment) -> CompletedProcess``: Python in a fresh process of at most ten minutes."""

    def run(code: str, path: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"  # a file, so that spawned workers can import it
        script.write_text(code)
        source = path or str(Path(ellzero.__file__).parent.parent)
        folders = [source, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        kept = {name: value for name, value in os.environ.items() if name not in ("ELLZERO_ISA", "OMP_NUM_THREADS")}
        return subprocess.run(
            [sys.executable, "-S", str(script)],
            env=kept | {"PYTHONPATH": os.pathsep.join(folders)} | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
