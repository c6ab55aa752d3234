"""The registry keeps one entry per name and kind, and its index imports nothing heavy."""

import json
import subprocess
import sys

import pytest

from ellzero import registry
from ellzero.errors import InputError


@pytest.fixture
def empty(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", {})


def part():
    """Does one thing.

    And more.
    """


def test_register_keeps_the_first_docstring_line_and_the_object(empty):
    assert registry.register(id="S001", source="Someone (2000)", kind="score", example=lambda: 1)(part) is part
    entry = registry.lookup("score", "part")
    assert (entry.summary, entry.paper, entry.target) == ("Does one thing.", "S001", part)
    assert set(entry.row()) == {
        "name", "kind", "wing", "paper", "source", "claim", "extra", "summary", "module", "qualname",
    }  # fmt: skip
    assert [e.name for e in registry.entries("score")] == ["part"]
    assert list(registry.entries("penalty")) == []
    assert list(registry.entries(wing="linear")) == []


def test_two_objects_under_one_name_are_refused(empty):
    registry.register(source="a", kind="score", name="x")(part)
    registry.register(source="a", kind="score", name="x")(part)  # a reload of the same object is fine
    with pytest.raises(InputError, match="score 'x' is registered twice"):
        registry.register(source="a", kind="score", name="x")(lambda: None)


def test_bad_kinds_and_names_are_named(empty):
    with pytest.raises(InputError, match="kind: got 'scores'"):
        registry.register(source="a", kind="scores")
    registry.register(source="a", kind="score")(part)
    with pytest.raises(InputError, match="did you mean 'part'"):
        registry.lookup("score", "parts")


def test_the_index_is_read_without_any_method():
    code = (
        "import sys; from ellzero.registry import index; rows = index(); "
        "assert len(rows) > 50, len(rows); "
        "heavy = {'torch', 'sklearn', 'plotly', 'transformers', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_write_index_round_trips(tmp_path):
    path = tmp_path / "index.json"
    registry.write_index(path)
    rows = registry.index(path)
    assert rows == json.loads(path.read_text())
    assert rows == sorted(rows, key=lambda row: (row["kind"], row["name"]))
