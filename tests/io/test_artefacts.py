"""One-file artefacts: what goes in comes out, bit by bit, and any damage is refused by name."""

import json
import os

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ellzero.errors import InputError
from ellzero.io import artefacts, container, versions

MODEST = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = st.sampled_from(["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">f4", ">i8"])
ARRAYS = DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
NAMES = st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def bits(array):
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


@MODEST
@given(tensors=st.dictionaries(NAMES, ARRAYS, max_size=4), meta=st.dictionaries(st.text(max_size=4), JSON, max_size=3))
def test_round_trip(tmp_path, tensors, meta):
    path = tmp_path / "a.safetensors"
    artefacts.save(path, tensors, meta, "thing", 3)
    loaded, found = artefacts.load(path, "thing", version=3)
    assert found == meta
    assert set(loaded) == set(tensors)
    for name, array in tensors.items():
        assert loaded[name].shape == array.shape
        assert loaded[name].dtype == array.dtype.newbyteorder("=")
        assert bits(loaded[name]) == bits(array)
        assert loaded[name].flags.writeable


@MODEST
@given(tensors=st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_the_library_reads_the_same(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    artefacts.save(path, tensors, {}, "thing")
    theirs = safetensors.numpy.load_file(path)
    assert {name: bits(array) for name, array in theirs.items()} == {n: bits(a) for n, a in tensors.items()}


def test_equal_content_gives_equal_bytes(tmp_path):
    a, b = {"x": np.ones(3), "y": np.zeros((2, 2), "f4")}, {"y": np.zeros((2, 2), "f4"), "x": np.ones(3)}
    artefacts.save(tmp_path / "1", a, {"p": 1, "q": (1, 2)}, "thing")
    artefacts.save(tmp_path / "2", b, {"q": [1, 2], "p": 1}, "thing")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_every_tensor_is_aligned(tmp_path):
    """So that a file can be mapped: each tensor starts at a multiple of its item size."""
    kinds = ["i1", "f8", "?", "f4", "f2", "i8"]
    artefacts.save(tmp_path / "a", {kind: np.ones(3, kind) for kind in kinds}, {"odd": 1}, "thing")
    header = container.parse(tmp_path / "a")
    for kind in kinds:
        assert (header.start + header.places[kind].start) % np.dtype(kind).itemsize == 0


def test_views_are_saved_by_value(tmp_path):
    x = np.arange(12.0).reshape(3, 4)
    views = {"t": x.T, "s": x[:, ::2], "r": x[::-1], "scalar": np.float32(2.5)}
    artefacts.save(tmp_path / "a", views, {}, "thing")
    loaded, _ = artefacts.load(tmp_path / "a", "thing")
    for name, view in views.items():
        np.testing.assert_array_equal(loaded[name], view)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"w": np.arange(6, dtype="f4").reshape(2, 3), "b": np.array([True, False]), "none": np.zeros((0, 2))}
    artefacts.save(path, tensors, {"k": 4, "note": "ü"}, "thing", 1)
    return path


def test_every_changed_byte_is_refused(small):
    content = small.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        small.write_bytes(damaged)
        with pytest.raises(InputError):
            artefacts.load(small, "thing")
        damaged[place] = content[place] ^ 0x29  # turns the padding's spaces into tabs, which JSON would forgive
        small.write_bytes(damaged)
        with pytest.raises(InputError):
            artefacts.load(small, "thing")


def test_every_truncation_and_extension_is_refused(small):
    content = small.read_bytes()
    for stop in range(len(content)):
        small.write_bytes(content[:stop])
        with pytest.raises(InputError):
            artefacts.load(small, "thing")
    small.write_bytes(content + b"\0")
    with pytest.raises(InputError, match="bytes"):
        artefacts.load(small, "thing")


@MODEST
@given(junk=st.binary(max_size=200))
def test_junk_is_refused(tmp_path, junk):
    path = tmp_path / "junk"
    path.write_bytes(junk)
    with pytest.raises(InputError):
        artefacts.load(path, "thing")
    path.write_bytes(len(junk).to_bytes(8, "little") + junk)
    with pytest.raises(InputError):
        artefacts.load(path, "thing")


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ([], b"", "header"),
        ({"a": 3}, b"", "header"),
        ({"a": {**ENTRY, "dtype": "F7"}}, b"0000", "unknown dtype"),
        ({"a": {**ENTRY, "dtype": []}}, b"0000", "header"),
        ({"a": {**ENTRY, "shape": [-1]}}, b"0000", "whole numbers"),
        ({"a": {**ENTRY, "shape": [1.0]}}, b"0000", "whole numbers"),
        ({"a": {**ENTRY, "shape": [2]}}, b"0000", "does not take"),
        ({"a": {**ENTRY, "shape": [10**30, 10**30]}}, b"0000", "does not take"),
        ({"a": {**ENTRY, "data_offsets": [4, 8]}}, b"00000000", "starts at byte 4"),
        ({"a": ENTRY, "b": ENTRY}, b"0000", "starts at byte 0"),
        ({"a": ENTRY, "__metadata__": {"x": 1}}, b"0000", "metadata"),
        ({"a": ENTRY, "__metadata__": {"ellzero": "["}}, b"0000", "damaged"),
        ({"a": ENTRY, "__metadata__": {"ellzero": "{}"}}, b"0000", "damaged"),
        ({"a": ENTRY, "__metadata__": {"ellzero": '{"format":1.5,"kind":"thing","version":1}'}}, b"0000", "damaged"),
        ({"a": ENTRY, "__metadata__": {"other": "x"}}, b"0000", "did not write"),
        ({"a": ENTRY}, b"0000", "did not write"),
        ({"a": ENTRY}, b"000", "cut short"),
    ],
)
def test_made_up_headers(tmp_path, header, data, message):
    raw = json.dumps(header).encode()
    path = tmp_path / "a"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    with pytest.raises(InputError, match=message):
        artefacts.load(path, "thing")


def test_a_name_that_stands_twice(tmp_path):
    raw = b'{"a":%s,"a":%s}' % ((json.dumps(ENTRY).encode(),) * 2)
    path = tmp_path / "a"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"0000")
    with pytest.raises(InputError, match="twice"):
        artefacts.load(path, "thing")


def test_kind_and_foreign_files(small, tmp_path):
    with pytest.raises(InputError, match="holds 'thing', want 'think'"):
        artefacts.load(small, "think")
    safetensors.numpy.save_file({"w": np.ones(3)}, tmp_path / "foreign", metadata={"format": "pt"})
    with pytest.raises(InputError, match="did not write"):
        artefacts.load(tmp_path / "foreign", "thing")
    with pytest.raises(InputError, match="no such file"):
        artefacts.load(tmp_path / "nothing", "thing")
    with pytest.raises(InputError, match="is a folder"):
        artefacts.load(tmp_path, "thing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular"):
        artefacts.load(tmp_path / "pipe", "thing")


def test_unreadable_file(small, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        artefacts.load(small, "thing")


def test_newer_versions_are_refused_by_name(small, monkeypatch):
    artefacts.save(small, {}, {}, "thing", 4)
    with pytest.raises(
        InputError, match=r"'thing' version 4, written by a newer ellzero; this one reads up to version 3"
    ):
        artefacts.load(small, "thing", version=3)
    monkeypatch.setattr(artefacts, "FORMAT", 2)
    artefacts.save(small, {}, {}, "thing", 1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="file format 2, written by a newer"):
        artefacts.load(small, "thing")


def test_older_versions_are_brought_forward(small, monkeypatch):
    monkeypatch.setattr(versions, "_UPGRADES", {})

    @versions.upgrade("thing", since=1)
    def rename(tensors, meta):
        return {"weight": tensors["w"]}, {**meta, "steps": ["1 to 2"]}

    with pytest.raises(InputError, match="no step from version 2"):
        artefacts.load(small, "thing", version=3)

    @versions.upgrade("thing", since=2)
    def double(tensors, meta):
        return {"weight": 2 * tensors["weight"]}, {**meta, "steps": [*meta["steps"], "2 to 3"]}

    tensors, meta = artefacts.load(small, "thing", version=3)
    np.testing.assert_array_equal(tensors["weight"], [[0, 2, 4], [6, 8, 10]])
    assert meta == {"k": 4, "note": "ü", "steps": ["1 to 2", "2 to 3"]}
    assert artefacts.load(small, "thing", version=2)[1]["steps"] == ["1 to 2"]
    with pytest.raises(InputError, match="two steps"):
        versions.upgrade("thing", since=1)(rename)


def test_inspect_reads_the_header_alone(small):
    seen = artefacts.inspect(small)
    assert (seen["kind"], seen["version"], seen["meta"]) == ("thing", 1, {"k": 4, "note": "ü"})
    assert seen["tensors"] == {"w": ("F32", (2, 3)), "b": ("BOOL", (2,)), "none": ("F64", (0, 2))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": {"a": [1, 2]}}, "got list, want a NumPy array"),
        ({"tensors": {"a": np.array(["x"])}}, "got dtype"),
        ({"tensors": {"a": np.array([object()])}}, "got dtype object"),
        ({"tensors": {"a": np.array([1j])}}, "got dtype complex128"),
        ({"tensors": {"__metadata__": np.ones(1)}}, "__metadata__"),
        ({"tensors": {"": np.ones(1)}}, "want text"),
        ({"tensors": {3: np.ones(1)}}, "want text"),
        ({"tensors": [np.ones(1)]}, "want a dictionary"),
        ({"meta": {"a": {"b": [float("inf")]}}}, r"meta\['a'\]\['b'\]\[0\]: got inf"),
        ({"meta": {"a": {1: 2}}}, "got the key 1"),
        ({"meta": {"a": np.float32(1)}}, "got float32"),
        ({"meta": {"a": b"x"}}, "got bytes"),
        ({"meta": "x"}, "want a dictionary"),
        ({"kind": ""}, "kind"),
        ({"kind": None}, "kind"),
        ({"version": 0}, "version"),
        ({"version": 1.0}, "version"),
    ],
)
def test_bad_input_leaves_the_old_file(small, change, message):
    before = small.read_bytes()
    arguments = {"tensors": {"a": np.ones(1)}, "meta": {}, "kind": "thing", "version": 1} | change
    with pytest.raises(InputError, match=message):
        artefacts.save(small, **arguments)
    assert small.read_bytes() == before
    assert os.listdir(small.parent) == [small.name]


def test_a_file_that_shrinks_while_it_is_read(small):
    header = container.parse(small)
    with open(small, "r+b") as file:
        file.truncate(header.start + 2)
        with pytest.raises(InputError, match="cut short"):
            container.read(file, header, "w")


def test_bad_backend(small):
    with pytest.raises(InputError, match="did you mean 'numpy'"):
        artefacts.load(small, "thing", backend="nunpy")


class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self):
        self.torch = pytest.importorskip("torch")

    def test_round_trip_of_every_dtype(self, tmp_path):
        torch = self.torch
        x = torch.linspace(-3, 3, 12).reshape(3, 4)
        kinds = ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]
        kinds += ["int8", "int16", "int32", "int64", "uint8", "bool"]
        tensors = {kind: x.to(getattr(torch, kind)) for kind in kinds}
        tensors |= {"view": x.T, "half view": x.to(torch.bfloat16)[:, ::2], "scalar": torch.tensor(1.5), "parameter":
                    torch.nn.Parameter(x), "scalar bf16": torch.tensor(2.0, dtype=torch.bfloat16)}  # fmt: skip
        artefacts.save(tmp_path / "a", tensors, {}, "thing")
        loaded, _ = artefacts.load(tmp_path / "a", "thing", backend="torch")
        theirs = __import__("safetensors.torch").torch.load_file(tmp_path / "a")
        for name, tensor in tensors.items():
            for found in (loaded[name], theirs[name]):
                assert found.dtype == tensor.dtype
                assert found.shape == tensor.shape
                assert torch.equal(found.double(), tensor.detach().double())

    def test_numpy_cannot_hold_bfloat16(self, tmp_path):
        artefacts.save(tmp_path / "a", {"w": self.torch.ones(2, dtype=self.torch.bfloat16)}, {}, "thing")
        with pytest.raises(InputError, match="backend='torch'"):
            artefacts.load(tmp_path / "a", "thing")

    def test_refused_tensors(self, tmp_path):
        torch = self.torch
        for tensor, message in (
            (torch.eye(2).to_sparse(), "layout"),
            (torch.ones(2, dtype=torch.complex64), "complex"),
        ):
            with pytest.raises(InputError, match=message):
                artefacts.save(tmp_path / "a", {"w": tensor}, {}, "thing")
