"""Settings travel as JSON; methods and tasks are found by name, module:object or entry point."""

import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_task import Diabetes, Largest

from ellzero.compare import specs
from ellzero.compare.specs import (
    changed,
    contenders,
    decode,
    digest,
    encode,
    find_task,
    load_object,
    rebuild_method,
    rebuild_task,
    task_record,
)  # fmt: skip
from ellzero.errors import InputError


@dataclass(frozen=True)
class Settings:
    a: Any = 1
    b: Any = None


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.builds(Settings, inner, inner)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module", autouse=True)
def importable():
    import sys

    sys.modules.setdefault(Settings.__module__, sys.modules[__name__])


@given(value=nested)
def test_settings_survive_json(value):
    travelled = json.loads(json.dumps(encode(value), allow_nan=False))
    assert decode(travelled) == value
    assert digest(travelled) == digest(encode(value))


@given(one=nested, other=nested)
def test_equal_digests_mean_equal_settings(one, other):
    same = json.dumps(encode(one), sort_keys=True) == json.dumps(encode(other), sort_keys=True)
    assert (digest(encode(one)) == digest(encode(other))) == same


def test_numpy_values_paths_and_functions():
    assert encode(np.float64(0.5)) == 0.5
    assert encode(np.int64(3)) == 3
    assert encode(Path("a/b")) == "a/b"
    assert encode(len) == {"object": "builtins:len"}
    assert decode(encode(np.linalg.norm)) is np.linalg.norm
    assert decode(encode(float("-inf"))) == float("-inf")
    array = encode(np.arange(3))
    assert array != encode(np.arange(3) + 1)
    with pytest.raises(InputError, match="cannot be rebuilt"):
        decode(array)
    with pytest.raises(InputError, match="want plain values"):
        encode(1j)
    with pytest.raises(InputError, match="is no class"):
        decode({"class": "os:getcwd", "fields": {}})


def test_a_plain_object_has_its_public_attributes():
    class Plain:
        def __init__(self):
            self.k, self._cache = 3, {}

    assert encode(Plain())["fields"] == {"k": 3}


def test_what_differs():
    assert changed(Largest(alpha=2.0), Largest()) == {"alpha": 2.0}
    assert changed(Largest(), Largest()) == {}


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nothing", "want module:object"),
        (":x", "want module:object"),
        ("no_such_module_at_all:x", "no module 'no_such_module_at_all'"),
        ("json.no_such:x", "no module 'json.no_such'"),
        ("json:dump_", "did you mean 'dump'"),
    ],
)
def test_objects_that_are_not_there(reference, words):
    with pytest.raises(InputError, match=words):
        load_object(reference)


def test_a_module_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # undone afterwards
    (tmp_path / "mine_alone.py").write_text("from small_task import Largest\nclass Mine(Largest): pass\nlist_ = []\n")
    (tmp_path / "wrong_alone.py").write_text("def (")
    (tmp_path / "needs_alone.py").write_text("import not_installed_at_all")
    assert load_object("mine_alone:Mine").__name__ == "Mine"
    (chosen,) = contenders(Diabetes(), ["mine_alone:Mine"])
    assert (chosen.name, chosen.origin) == ("largest", "mine_alone:Mine")
    with pytest.raises(InputError, match="invalid syntax"):
        load_object("wrong_alone:x")
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        load_object("needs_alone:x")
    with pytest.raises(InputError, match="is no method, it lacks name, dense"):
        contenders(Diabetes(), "mine_alone:list_")
    with pytest.raises(InputError, match="cannot be made without arguments"):
        contenders(Diabetes(), ["ellzero.protocol:Budget"])


def test_entry_points_join_their_task(monkeypatch):
    points = [
        EntryPoint("diabetes.plugged", "small_task:AtRandom", specs.GROUP),
        EntryPoint("other.elsewhere", "small_task:Largest", specs.GROUP),
    ]
    monkeypatch.setattr(specs, "entry_points", lambda group: points)

    class Fewer(Diabetes):
        def methods(self):
            return {"largest": Largest()}

    assert [(c.name, c.origin) for c in contenders(Fewer())] == [("largest", "task"), ("at_random", "entry point")]
    assert [c.name for c in contenders(Fewer(), ["plugged"])] == ["at_random"]
    with pytest.raises(InputError, match="did you mean 'plugged'"):
        contenders(Fewer(), ["pluged"])


def test_methods_by_name_object_and_mapping():
    task = Diabetes()
    assert [c.origin for c in contenders(task, ["largest"])] == ["task"]
    assert [c.origin for c in contenders(task, Largest())] == ["task"]
    assert [c.origin for c in contenders(task, {"x": Largest(alpha=3.0)})] == ["python"]


def test_methods_are_found_again():
    task = Diabetes()
    for item in ("largest", Largest(alpha=3.0), "small_task:AtRandom"):
        (chosen,) = contenders(task, [item])
        record = {"origin": chosen.origin, "spec": json.loads(json.dumps(encode(chosen.method)))}
        assert rebuild_method(task, chosen.name, record) == chosen.method


def test_tasks_are_found_again():
    record = json.loads(json.dumps(task_record(Diabetes(shuffle=3))))
    assert rebuild_task(record, Path("x")) == Diabetes(shuffle=3)
    with pytest.raises(InputError, match="without to_spec"):
        rebuild_task({**record, "spec": None}, Path("x"))
    with pytest.raises(InputError, match="did you mean 'regression'"):
        find_task("regresion")


def test_a_task_must_be_json():
    class Odd(Diabetes):
        def describe(self):
            return {"data": object()}

    with pytest.raises(InputError, match="must be JSON"):
        task_record(Odd())


@pytest.mark.parametrize("name", ["regression", "network", "autoencoder"])
def test_the_tasks_that_are_named_are_there(name):
    kind = find_task(name)
    assert kind.name == name
    for needed in ("from_options", "from_spec", "to_spec", "data", "refit_data", "test", "methods", "apply"):
        assert hasattr(kind, needed)
