"""Every entry of the registry: described, sourced, buildable, and listed in the index file as it is."""

import ast
import json
import subprocess
import sys

import pytest

from ellzero import registry
from ellzero.errors import InputError

pytest.importorskip("torch")
registry.load_all()
ENTRIES = list(registry.entries())
WITH_EXAMPLE = [entry for entry in ENTRIES if entry.example is not None]


def label(entry):
    return f"{entry.kind}-{entry.name}"


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_an_entry_says_what_it_is(entry):
    assert entry.summary, "the docstring's first line is empty"
    assert not entry.summary.startswith(f"{entry.qualname}("), "a dataclass without a docstring describes itself so"
    assert entry.source.strip()
    assert entry.kind in registry.KINDS
    assert entry.paper is None or (entry.paper[0] == "S" and 1 <= int(entry.paper[1:]) <= 170)
    assert entry.module.startswith("ellzero.")
    assert registry.lookup(entry.kind, entry.name) is entry


@pytest.mark.parametrize("entry", WITH_EXAMPLE, ids=label)
def test_its_example_is_built(entry):
    built = entry.example()
    assert built is not None
    if isinstance(entry.target, type):
        assert isinstance(built, entry.target)


def test_it_holds_something_of_every_floor():
    kinds = {entry.kind for entry in ENTRIES}
    assert kinds >= {"penalty", "constraint", "gradient", "allocation", "schedule", "generator", "dataset"}


def test_the_index_file_equals_the_decorators():
    """In a fresh process, so that nothing a test registered counts."""
    code = (
        "import json; from ellzero import registry; registry.load_all();"
        "print(json.dumps([entry.row() for entry in registry.entries()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    live = {(row["kind"], row["name"]): row for row in json.loads(done.stdout.splitlines()[-1])}
    listed = {(row["kind"], row["name"]): row for row in registry.index()} if registry.INDEX.exists() else {}
    wrong = [f"{kind} {name}" for kind, name in sorted(live.keys() | listed.keys())
             if live.get((kind, name)) != listed.get((kind, name))]  # fmt: skip
    assert not wrong, f"methods.json is out of date ({', '.join(wrong)}): run `python -m ellzero.registry`"


def test_the_index_repeats_itself(tmp_path):
    for name in ("a", "b"):
        registry.write_index(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert registry.index(tmp_path / "a") == [entry.row() for entry in registry.entries()]


def test_reading_the_index_imports_no_method():
    code = (
        "import sys; from ellzero import registry; registry.index(); print([m for m in sys.modules if 'ellzero.' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) <= {"ellzero.registry", "ellzero.errors", "ellzero.lazy"}


class TestRegister:
    @pytest.fixture(autouse=True)
    def _own_entries(self, monkeypatch):
        monkeypatch.setattr(registry, "_ENTRIES", {})

    def test_a_class_and_a_function(self):
        @registry.register(kind="penalty", source="Someone (2000)", id="S001", wing="linear", example=lambda: 3)
        class Thing:
            """One line.

            More lines.
            """

        @registry.register(kind="task", source="none", name="other")
        def build():
            """Another line."""

        penalty, task = registry.entries()
        assert (penalty.name, penalty.summary, penalty.target, penalty.example()) == ("Thing", "One line.", Thing, 3)
        assert (task.name, task.summary, task.target) == ("other", "Another line.", build)
        assert [entry.name for entry in registry.entries(wing="linear")] == ["Thing"]
        assert [entry.name for entry in registry.entries("task")] == ["other"]
        assert "target" not in penalty.row()
        json.dumps(penalty.row())

    def test_refusals(self):
        with pytest.raises(InputError, match="kind: got 'penalti'"):
            registry.register(kind="penalti", source="x")
        registry.register(kind="task", source="x", name="a")(TestRegister)
        registry.register(kind="task", source="x", name="a")(TestRegister)  # the same again is a reload
        with pytest.raises(InputError, match="registered twice"):
            registry.register(kind="task", source="x", name="a")(int)
        with pytest.raises(InputError, match="did you mean 'a'"):
            registry.lookup("task", "aa")
