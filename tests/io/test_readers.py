"""Readers: numbers come out exactly, and whatever is not a clean table is refused by column and line."""

import gzip
import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from ellzero.errors import InputError
from ellzero.io import delimited, read_matrix, read_table, read_texts
from ellzero.io.readers import Table

MODEST = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
FINITE = st.floats(allow_nan=False, allow_infinity=False)
MATRICES = hnp.arrays("f8", st.tuples(st.integers(1, 5), st.integers(2, 4)), elements=FINITE)
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5).filter(
        lambda s: s == s.strip() and s and not s.lstrip("-+.").isnumeric() and s.lower() not in MISSING
    ),
    min_size=4,
    max_size=4,
    unique=True,
)
MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-nan", "<na>", "missing", "inf", "infinity", "+inf", "-inf"}


def written(path, content):
    path.write_text(content) if isinstance(content, str) else path.write_bytes(content)
    return path


# Round trips --------------------------------------------------------------------------------------------------------


@MODEST
@given(values=MATRICES, names=NAMES, separator=st.sampled_from(",;\t"))
def test_csv_round_trip(tmp_path, values, names, separator):
    import csv

    names = names[: values.shape[1]]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows([names, *[map(repr, row) for row in values.tolist()]])
    # the separator is told from the first line, so a name that is full of another one is out of its reach
    if max(",;\t", key=separator.join(names).count) != separator:
        return
    found, columns = read_matrix(tmp_path / "a.csv")
    assert columns == tuple(names)
    np.testing.assert_array_equal(found, values)


@MODEST
@given(values=MATRICES, names=NAMES)
def test_jsonl_round_trip(tmp_path, values, names):
    names = names[: values.shape[1]]
    lines = [json.dumps(dict(zip(names, row))) for row in values.tolist()]
    found, columns = read_matrix(written(tmp_path / "a.jsonl", "\n".join(lines)))
    assert columns == tuple(names)
    np.testing.assert_array_equal(found, values)


@MODEST
@given(values=MATRICES, kind=st.sampled_from(["f4", "f8", "i4", "u1", "?", ">f8"]), order=st.sampled_from("CF"))
def test_binary_round_trips(tmp_path, values, kind, order):
    with np.errstate(all="ignore"):
        values = np.asarray(np.clip(values, 0, 100).astype(kind), order=order)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", X=values, other=values[:1])
    safetensors.numpy.save_file({"only": np.ascontiguousarray(values.astype(values.dtype.newbyteorder("=")))}, tmp_path / "a.safetensors")  # fmt: skip  # noqa: E501
    for suffix in ("npy", "npz", "safetensors"):
        found, columns = read_matrix(tmp_path / f"a.{suffix}")
        assert columns is None
        assert found.dtype.kind == "f"
        assert found.dtype.itemsize == (4 if kind == "f4" else 8)
        np.testing.assert_array_equal(found, values)


@MODEST
@given(values=MATRICES, layout=st.sampled_from(["csr", "csc", "coo", "bsr", "dia"]), new=st.booleans())
def test_sparse_round_trip(tmp_path, values, layout, new):
    values = np.where(abs(values) > 1, values, 0)
    matrix = (sparse.csr_array if new else sparse.csr_matrix)(values).asformat(layout)
    sparse.save_npz(tmp_path / "a.npz", matrix)
    found, _ = read_matrix(tmp_path / "a.npz")
    assert sparse.issparse(found)
    assert found.format == ("csc" if layout == "csc" else "csr")
    np.testing.assert_array_equal(found.toarray(), values)
    table = read_table(tmp_path / "a.npz", target=0)
    np.testing.assert_array_equal(table.y, values[:, 0])
    np.testing.assert_array_equal(table.X.toarray(), values[:, 1:])


@MODEST
@given(values=MATRICES, names=NAMES)
def test_parquet_round_trip(tmp_path, values, names):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = names[: values.shape[1]]
    parquet.write_table(arrow.table(list(values.T), names=names), tmp_path / "a.parquet")
    found, columns = read_matrix(tmp_path / "a.parquet")
    assert columns == tuple(names)
    np.testing.assert_array_equal(found, values)


def test_npy_is_mapped(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3), "f4"))
    found, _ = read_matrix(tmp_path / "a.npy")
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable


def test_bfloat16_is_widened_exactly(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    x = torch.linspace(-5, 5, 12).reshape(3, 4).to(torch.bfloat16)
    save_file({"X": x}, tmp_path / "a.safetensors")
    found, _ = read_matrix(tmp_path / "a.safetensors")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, x.float().numpy())
    save_file({"X": x.to(torch.float8_e4m3fn)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="F8_E4M3"):
        read_matrix(tmp_path / "b.safetensors")


# What a table is ----------------------------------------------------------------------------------------------------


def test_the_target(tmp_path):
    path = written(tmp_path / "a.csv", "a,y,b\n1,2,3\n4,5,6\n")
    for target, name, y in ((None, "y", [2, 5]), ("b", "b", [3, 6]), (0, "a", [1, 4]), ("-1", "b", [3, 6])):
        table = read_table(path, target)
        assert table.target == name
        assert table.y.tolist() == y
        assert table.columns == tuple(n for n in "ayb" if n != name)
        assert table.X.shape == (2, 2)
        assert len(table) == 2
    plain = read_table(written(tmp_path / "b.csv", "1,2,3\n4,5,6\n"))
    assert (plain.target, plain.columns, plain.y.tolist()) == ("2", ("0", "1"), [3, 6])
    assert read_table(written(tmp_path / "c.csv", "y,target\n1,2\n")).target == "target"
    for target, message in (("yy", "did you mean 'y'"), (3, "index from -3 to 2"), (-4, "index"), (True, "index")):
        with pytest.raises(InputError, match=message):
            read_table(path, target)
    with pytest.raises(InputError, match="at least two"):
        read_table(written(tmp_path / "d.csv", "a\n1\n"))


def test_x_and_y_in_one_archive(tmp_path):
    X, y = np.arange(6.0).reshape(3, 2), np.array([1, 2, 3])
    np.savez(tmp_path / "a.npz", X=X, y=y, z=y[:, None] * 2, columns=np.array(["p", "q"]))
    safetensors.numpy.save_file({"X": X, "y": y}, tmp_path / "a.safetensors")
    table = read_table(tmp_path / "a.npz")
    assert (table.columns, table.target, table.y.tolist()) == (("p", "q"), "y", [1, 2, 3])
    assert read_table(tmp_path / "a.npz", "z").y.tolist() == [2, 4, 6]
    assert read_table(tmp_path / "a.npz", 0).target == "p"
    np.testing.assert_array_equal(read_table(tmp_path / "a.safetensors").X, X)
    with pytest.raises(InputError, match="no array 'w'"):
        read_table(tmp_path / "a.npz", "w")
    infinite = np.array([1, np.inf, 2])
    for bad, message in ((y[:2], "3 rows and y has 2"), (X, "one number per row"), (infinite, "'y' holds inf")):
        np.savez(tmp_path / "b.npz", X=X, y=bad)
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", X=X, columns=np.array(["p"]))
    with pytest.raises(InputError, match="names 1 columns"):
        read_table(tmp_path / "c.npz")


def test_a_choice_among_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", first=np.ones((2, 2)), second=np.zeros((2, 2)))
    assert read_matrix(tmp_path / "a.npz", "second")[0].sum() == 0
    with pytest.raises(InputError, match="arrays first, second; name one"):
        read_matrix(tmp_path / "a.npz")
    with pytest.raises(InputError, match="did you mean 'first'"):
        read_matrix(tmp_path / "a.npz", "frist")
    np.savez(tmp_path / "none.npz")
    with pytest.raises(InputError, match="none"):
        read_matrix(tmp_path / "none.npz")
    sparse.save_npz(tmp_path / "s.npz", sparse.eye_array(3, format="csr"))
    with pytest.raises(InputError, match="want no name"):
        read_matrix(tmp_path / "s.npz", "X")
    with pytest.raises(InputError, match="want no name"):
        read_matrix(written(tmp_path / "a.csv", "1,2\n"), "X")


@MODEST
@given(
    text=st.text('0123456789.,;-+eE \n\t\r#na_x"', max_size=30)
    | st.lists(
        st.lists(
            st.sampled_from(["1", "-2.5", "1e3", " 3 ", "+.5", "", "x", "#", "1_0", "inf"]), min_size=2, max_size=2
        ),
        max_size=4,
    ).map(lambda rows: "\n".join(map(",".join, rows)))
)
def test_the_quick_way_reads_what_the_exact_way_reads(tmp_path, text):
    path = written(tmp_path / "a.csv", text.encode())
    content = text.replace("\r\n", "\n").rstrip("\n")
    for separator in ",;\t":
        try:
            quick = delimited._quick_csv(path, content, separator)
        except InputError:
            continue
        if quick is not None:
            rows, lines = delimited._csv_rows(path, content, separator)
            kept = int(quick.columns is not None)
            exact = delimited._numbers(path, rows[kept:], lines[kept:], quick.columns)
            np.testing.assert_array_equal(quick.values, exact)


def test_lenient_where_nothing_is_lost(tmp_path):
    """Byte order mark, Windows line ends, spaces, quotes, truth values, gzip, blank lines at the end."""
    content = '\ufeff"a, b", c ,d\r\n 1 ,"2",TRUE\r\n3,4e1,false\r\n\r\n\r\n'
    for path in (written(tmp_path / "a.csv", content.encode()), tmp_path / "a.csv.gz"):
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(content.encode()))
        found, columns = read_matrix(path)
        assert columns == ("a, b", "c", "d")
        assert found.tolist() == [[1, 2, 1], [3, 40, 0]]
    found, columns = read_matrix(written(tmp_path / "b.jsonl", "[1, true]\n\n[2, 3.5]\n"))
    assert columns is None
    assert found.tolist() == [[1, 1], [2, 3.5]]


def test_table_checks_itself():
    with pytest.raises(InputError, match="one number per row"):
        Table(np.ones((2, 1)), np.ones(3), ("a",), "y")
    with pytest.raises(InputError, match="one per column"):
        Table(np.ones((2, 1)), np.ones(2), ("a", "b"), "y")


# Refusals -----------------------------------------------------------------------------------------------------------

CSV = [
    ("", "is empty"),
    ("\n\n", "is empty"),
    ("a,b\n", "column names and no rows"),
    ("a,b\n1,2\n3\n", "line 3 has 1 cells, want 2 as in line 1"),
    ("1,2\n3,4,5\n", "line 2 has 3 cells, want 2 as in line 1"),
    ('a,b\n"1\n",2\n3\n', "line 4 has 1 cells"),
    ("a,b\n1,2\n\n3,4\n", "line 3 is empty"),
    ("a,city\n1,Oslo\n2,Rome\n", r"column 'city' holds text \('Oslo'\): encode it .*OneHotEncoder, or drop it"),
    ("age,b\n1,2\n,3\nNA,4\n", r"column 'age' has 2 missing values \(the first in line 3\): fill .*SimpleImputer"),
    ("a,b\n1,nan\n", "column 'b' has 1 missing value "),
    ("a,b\n1,inf\n2,3\n", "column 'b' holds infinity in line 2"),
    ("a,b\n1,1e999\n", "column 'b' holds infinity"),
    ("a,b\n1,1_000\n", "column 'b' holds text"),
    ("1,2\nx,4\n", "column '0' holds text"),
    ("a,a\n1,2\n", "column name 'a' stands twice"),
    (",a\n0,2\n", "column 0 has no name .*index=False"),
    (",\n1,2\n", "column 0 has no name"),
    ("a,b\n1,true\n2,\n", "column 'b' has 1 missing value"),
    ("a,b\ntrue,1\nOslo,2\n", "column 'a' holds text"),
    ('a,b\n1,"2\n', "not valid CSV"),
    ('a,b\n1,"2"3\n', "not valid CSV"),
    ("a;b\n1,5;2\n", r"column 'a' holds text \('1,5'\)"),
    (b"a,b\n1,\xff\n", "byte 6 is not UTF-8"),
    (b"a,b\n1,2\0\n", "column 'b' holds text"),
    ("a,b\n1," + "x" * 200 + "\n", "xxx"),
]


@pytest.mark.parametrize(("content", "message"), CSV)
def test_bad_csv(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read_table(written(tmp_path / "a.csv", content))
    assert len(str(caught.value).splitlines()) == 1


JSONL = [
    ("", "is empty"),
    ("{}", "is empty"),
    ('{"a": 1}\n{"a": 1', "line 2 is not valid JSON"),
    ('{"a": 1, "a": 2}', "name 'a' stands twice"),
    ('{"a": 1, "b": 2}\n{"a": 1}', "line 2 lacks 'b'"),
    ('{"a": 1}\n{"a": 1, "b": 2}', "line 2 has 'b' besides"),
    ('{"a": 1}\n[1]', "line 2 holds .*, want an object"),
    ('[1]\n{"a": 1}', "line 2 holds .*, want a list"),
    ("3", "want an object or a list"),
    ("[1, 2]\n[3]", "line 2 has 1 values, want 2"),
    ('{"a": 1, "b": "x"}', "column 'b' holds text"),
    ('{"a": 1, "b": [1]}', "column 'b' holds a list"),
    ('{"a": 1, "b": {}}', "column 'b' holds an object"),
    ('{"a": 1, "b": null}', "column 'b' has 1 missing value .*row 1"),
    ('{"a": 1, "b": NaN}', "column 'b' has 1 missing value"),
    ('{"a": 1, "b": -Infinity}', "column 'b' holds -inf in row 1"),
    ('{"a": 1, "b": ' + "9" * 400 + "}", "beyond the range"),
    ("[" * 100_000, "line 1 is not valid JSON"),
]


@pytest.mark.parametrize(("content", "message"), JSONL)
def test_bad_jsonl(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_matrix(written(tmp_path / "a.jsonl", content))


class Trap:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


ARRAYS = [
    (np.array([[Trap()]], dtype=object), "Python objects.*never read"),
    (np.ones(3), r"shape \(3,\) \(1 axes\), want 2 axes"),
    (np.ones((2, 3, 4)), "3 axes"),
    (np.ones((0, 3)), "no entries"),
    (np.ones((3, 0)), "no entries"),
    (np.array([["a"]]), "holds text"),
    (np.array([[1j]]), "complex"),
    (np.array([["2020-01-01"]], dtype="M8[D]"), "dates"),
    (np.zeros((2, 2), dtype=[("a", "f4")]), "records"),
    (np.array([[1, np.nan], [np.nan, np.nan]]), r"column '0' has 1 missing value \(NaN, the first in row 1"),
    (np.array([[1, 2], [1, -np.inf]], "f2"), "column '1' holds -inf in row 1"),
]


@pytest.mark.parametrize(("values", "message"), ARRAYS)
def test_bad_arrays(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", X=values)
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        with pytest.raises(InputError, match=message):
            read_matrix(path)


def test_longdouble_becomes_float64(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 2), np.longdouble))
    assert read_matrix(tmp_path / "a.npy")[0].dtype == np.float64


def test_bad_sparse(tmp_path):
    good = {"format": b"csr", "shape": (2, 3), "data": np.ones(2), "indices": [0, 2], "indptr": [0, 1, 2]}
    for change, message in [
        ({"indices": [0, 3]}, "not a valid sparse"),
        ({"indices": [0, -1]}, "not a valid sparse"),
        ({"indptr": [0, 5, 2]}, "not a valid sparse"),
        ({"indptr": [0, 2]}, "not a valid sparse"),
        ({"format": b"xyz"}, "format 'xyz'"),
        ({"format": b"\xff"}, "not a valid sparse"),
        ({"shape": (0, 3), "indices": [], "indptr": [0], "data": np.ones(0)}, "above 0"),
        ({"shape": (3,), "indptr": [0, 2]}, "sparse matrix"),
        ({"data": np.array([1, np.inf])}, "column '2' holds inf in row 1"),
        ({"data": np.array([1, 1j])}, "complex"),
        ({"format": b"coo", "row": [0, 5], "col": [0, 1]}, "not a valid sparse"),
        ({"format": b"dia"}, "not a valid sparse"),
    ]:
        np.savez(tmp_path / "a.npz", **(good | change))
        with pytest.raises(InputError, match=message):
            read_matrix(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **good)
    assert read_matrix(tmp_path / "a.npz")[0].toarray().tolist() == [[1, 0, 0], [0, 0, 1]]


def test_bad_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for values, message in [
        (arrow.array(["Oslo", "Rome"]), r"column 'c' holds text \('Oslo'\)"),
        (arrow.array(["x", "y"]).dictionary_encode(), "column 'c' holds categories"),
        (arrow.array([1, None]), r"column 'c' has 1 missing value \(the first in row 1"),
        (arrow.array([None, True]), "1 missing value"),
        (arrow.array([None, None]), "2 missing values"),
        (arrow.array([1.0, float("nan")]), "1 missing value"),
        (arrow.array([1.0, float("inf")]), "column 'c' holds inf"),
        (arrow.array([[1], [2]]), "values of type list"),
        (arrow.array([0, 1], arrow.timestamp("s")), "values of type timestamp"),
    ]:
        parquet.write_table(arrow.table([arrow.array([1, 2]), values], names=["a", "c"]), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / "a.parquet")
    for names, message in ((["a", "a"], "twice"), (["__index_level_0__", "b"], "index=False")):
        parquet.write_table(arrow.table([[1], [2]], names=names), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / "a.parquet")
    parquet.write_table(arrow.table([arrow.array([], "f8")], names=["a"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no entries"):
        read_table(tmp_path / "a.parquet")
    kinds = [arrow.array([True, False]), arrow.array([1, 2], arrow.decimal128(4, 1)), arrow.array([3, 4], "u1")]
    parquet.write_table(arrow.table(kinds, names=list("abc")), tmp_path / "a.parquet")
    assert read_matrix(tmp_path / "a.parquet")[0].tolist() == [[1, 1, 3], [0, 2, 4]]


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet", "safetensors", "csv.gz"])
def test_torn_files(tmp_path, suffix):
    """Cut at any place, a binary file is refused, and never a crash or a shorter table."""
    values = np.arange(12.0).reshape(4, 3)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    elif suffix == "npz":
        np.savez_compressed(path, X=values)
    elif suffix == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table(list(values.T), names=list("abc")), path)
    elif suffix == "safetensors":
        safetensors.numpy.save_file({"X": values}, path)
    else:
        path.write_bytes(gzip.compress(b"1,2\n3,4\n"))
    content = path.read_bytes()
    for stop in range(0, len(content), 1 + len(content) // 150):
        path.write_bytes(content[:stop])
        with pytest.raises(InputError):
            read_matrix(path)


@MODEST
@given(place=st.integers(0, 10_000), value=st.integers(1, 255), suffix=st.sampled_from(["npy", "npz"]))
def test_damaged_files_never_crash(tmp_path, place, value, suffix):
    values = np.arange(12.0).reshape(4, 3)
    path = tmp_path / f"a.{suffix}"
    np.save(path, values) if suffix == "npy" else np.savez(path, X=values)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= value
    path.write_bytes(content)
    try:
        found, _ = read_matrix(path)
    except InputError:
        return
    assert found.ndim == 2
    assert np.isfinite(found).all()


def test_a_damaged_parquet_name_is_refused(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table([[1.5], [2.5]], names=["first", "second"]), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"first", b"fi\xffst"))
    with pytest.raises(InputError, match=r"not a \.parquet file, or is damaged"):
        read_table(path)


def test_places_and_suffixes(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_table(tmp_path)
    with pytest.raises(InputError, match=r"did you mean '\.parquet'"):
        read_table(written(tmp_path / "a.parqet", "x"))
    with pytest.raises(InputError, match="suffix '', want"):
        read_table(written(tmp_path / "a", "x"))
    with pytest.raises(InputError, match=r"suffix '.npy', want one of .csv, .tsv, .jsonl"):
        read_table(written(tmp_path / "a.npy.gz", "x"))
    np.savez(tmp_path / "b.npz", X=np.ones((1, 1)))
    with pytest.raises(InputError, match="give it that suffix"):
        read_matrix((tmp_path / "b.npz").rename(tmp_path / "b.npy"))
    np.save(tmp_path / "c.npy", np.ones((1, 1)))
    with pytest.raises(InputError, match=r"not an \.npz"):
        read_matrix((tmp_path / "c.npy").rename(tmp_path / "c.npz"))
    with pytest.raises(InputError, match=r"not an \.npz"):
        read_table(tmp_path / "c.npz")


@pytest.mark.parametrize("suffix", ["csv", "npy", "npz", "jsonl"])
def test_unreadable(tmp_path, monkeypatch, suffix):
    path = written(tmp_path / f"a.{suffix}", "1,2\n")

    def refuse(*_, **__):  # a superuser may read anything, so the refusal of the system is imitated
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        read_matrix(path)


def test_missing_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'ellzero\[data\]'"):
        read_table(written(tmp_path / "a.parquet", b"x"))


# Texts --------------------------------------------------------------------------------------------------------------


def test_texts(tmp_path):
    path = written(tmp_path / "a.txt", "\none\ntwo \n \t\n\n three\n")
    assert read_texts(path) == ["one\ntwo", "three"]
    assert read_texts(written(tmp_path / "b.txt", "one\n two\n")) == ["one", "two"]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("ä\nb".encode()))
    assert read_texts(tmp_path / "b.txt.gz") == ["ä", "b"]
    assert read_texts(tmp_path) == ["one\ntwo \n \t\n\n three", "one\n two"]
    lines = '{"text": "a\\nb", "id": 1}\n{"text": " "}\n{"text": "c"}'
    assert read_texts(written(tmp_path / "c.jsonl", lines)) == ["a\nb", "c"]


def test_bad_texts(tmp_path):
    for name, content, message in [
        ("a.txt", " \n ", "holds no text"),
        ("a.txt", b"\xff\xfe", "byte 0 is not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}', "line 2 has the fields body, want a field 'text'"),
        ("a.jsonl", '{"text": 3}', "line 1"),
        ("a.jsonl", '["a"]', "line 1"),
        ("a.jsonl", '{"text": ""}', "holds no text"),
        ("a.doc", "x", "suffix '.doc', want one of .txt, .jsonl"),
    ]:
        with pytest.raises(InputError, match=message):
            read_texts(written(tmp_path / name, content))
    with pytest.raises(InputError, match="no such file"):
        read_texts(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no \.txt file"):
        read_texts(tmp_path / "empty")
