"""Where a run was made: only what is loaded is named, and looking loads nothing."""

import builtins
import json
import subprocess
import sys

import pytest

from ellzero.compare.environment import available_threads, environment


def test_it_is_json_and_names_what_is_loaded():
    here = json.loads(json.dumps(environment()))
    assert here["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert here["threads"]["cores"] == available_threads() >= 1
    assert set(here["kernels"]) == {"isa", "live", "n_threads"}
    assert here["cpu"]


def test_torch_is_named_when_it_is_loaded():
    torch = pytest.importorskip("torch")
    here = environment()
    assert (here["versions"]["torch"], here["threads"]["torch"]) == (torch.__version__, torch.get_num_threads())


def test_looking_loads_neither_torch_nor_sklearn():
    code = (
        "import sys\nfrom ellzero.compare.environment import environment\nenvironment()\n"
        "assert not {'torch', 'sklearn', 'plotly'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_procfs_there_is_still_a_processor(monkeypatch):
    def refuse(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", refuse)
    name = sys.modules["ellzero.compare.environment"]._cpu()
    monkeypatch.undo()
    assert name
