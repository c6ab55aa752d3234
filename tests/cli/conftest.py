"""Each command runs as a user runs it: arguments in, exit code, stdout and stderr out."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))


@pytest.fixture
def ellzero(capfd, tmp_path, monkeypatch):
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        from ellzero.cli.app import run as command

        code = command([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run
