"""Built-in sets: their facts, and a clear word where a file is not there."""

import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest

from ellzero.data import sets
from ellzero.errors import InputError

SHIPPED = {
    "digits": (1797, 64, 10),
    "diabetes": (442, 10, None),
    "breast_cancer": (569, 30, 2),
    "wine": (178, 13, 3),
    "iris": (150, 4, 3),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_tables(name):
    rows, columns, classes = SHIPPED[name]
    table = sets.load(name)
    assert table.X.shape == (rows, columns)
    assert table.X.dtype == np.float64
    assert np.isfinite(table.X).all()
    assert len(set(table.columns)) == columns
    if classes is None:
        assert table.labels is None
    else:
        assert len(table.labels) == classes
        assert np.unique(table.y).tolist() == list(range(classes))
    assert sets.available(name)


def test_texts():
    shakespeare, wikipedia = sets.texts("tinyshakespeare"), sets.texts("wikitext2")
    assert len(shakespeare) == 7222
    assert shakespeare[0].startswith("First Citizen:")
    assert wikipedia[0] == "= Homarus gammarus ="
    assert all(text and text == text.strip() for text in [*shakespeare, *wikipedia])
    assert len(sets.raw_text("tinyshakespeare")) == 1_115_394
    assert len(sets.raw_text("wikitext2").encode()) == 1_121_681
    with pytest.raises(InputError, match="did you mean 'tinyshakespeare'"):
        sets.texts("tinyshakspeare")


def test_the_notice_names_every_shipped_file():
    folder = sets._HERE
    notice = (folder / "NOTICE.md").read_text()
    files = [path.name for path in folder.iterdir() if path.suffix not in (".py", ".md", "") and path.is_file()]
    assert len(files) == 3
    for name in files:
        assert f"`{name}`" in notice


def test_listing_loads_no_scikit_learn():
    code = "import sys; from ellzero.data import sets; sets.names(); print('sklearn' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# Sets under ELLZERO_DATA: the readers on files made here, and the real ones where they are ---------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ELLZERO_DATA", str(tmp_path))
    for folder in ("linear/uci_airfoil", "networks"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def gz(path, content):
    path.write_bytes(gzip.compress(content if isinstance(content, bytes) else content.encode()))


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("ELLZERO_DATA", str(tmp_path))
    assert sets.data_root() == tmp_path
    assert "lacks linear/colon.mat" in sets.missing("linear/colon.mat")
    assert not sets.available("colon")
    assert not sets.available("mnist")
    assert not sets.available("uci_bike")
    for value, message in (("", "is not set"), (str(tmp_path / "none"), "want an existing folder")):
        monkeypatch.setenv("ELLZERO_DATA", value)
        with pytest.raises(InputError, match=message):
            sets.load("colon")
        assert message in sets.missing("x")
    with pytest.raises(InputError, match="did you mean 'digits'"):
        sets.load("digit")


def test_uci(root):
    folder = root / "linear/uci_airfoil"
    gz(folder / "data.csv.gz", "1,2,3\n4,5,6\n7,8,9\n")
    gz(folder / "test_mask.csv.gz", "\n".join(["0,1" + ",0" * 8, "0,0" + ",0" * 8, "1,0" + ",0" * 8]))
    train, test = sets.uci("airfoil", fold=1)
    assert (train.X.tolist(), train.y.tolist()) == ([[4, 5], [7, 8]], [6, 9])
    assert (test.X.tolist(), test.y.tolist()) == ([[1, 2]], [3])
    assert sets.uci("airfoil")[1].y.tolist() == [9]
    assert sets.load("uci_airfoil").y.tolist() == [3, 6, 9]
    for name, fold, message in (
        ("airfoil", 10, "fold"),
        ("airfoyl", 0, "did you mean 'airfoil'"),
        ("bike", 0, "lacks"),
    ):
        with pytest.raises(InputError, match=message):
            sets.uci(name, fold)
    gz(folder / "test_mask.csv.gz", "0,1\n")
    with pytest.raises(InputError, match=r"want \(3, 10\)"):
        sets.uci("airfoil")
    gz(folder / "data.csv.gz", "1,x\n")
    with pytest.raises(InputError, match="not a table of numbers"):
        sets.load("uci_airfoil")
    (folder / "data.csv.gz").write_bytes(b"\x1f\x8b123")
    with pytest.raises(InputError, match="cannot be read"):
        sets.load("uci_airfoil")


def test_feature_selection(root):
    from scipy.io import savemat

    path = root / "linear/colon.mat"
    savemat(path, {"X": np.array([[1, 2], [3, 4], [5, 6]], "u1"), "Y": np.array([[-1], [1], [-1]], "i2")})
    table = sets.load("colon")
    assert table.X.dtype == np.float64
    assert (table.y.tolist(), table.labels) == ([0, 1, 0], ("-1", "1"))
    savemat(path, {"X": np.ones((2, 2))})
    with pytest.raises(InputError, match="with X and Y"):
        sets.load("colon")
    for content in (b"", b"not a mat file" * 20):
        path.write_bytes(content)
        with pytest.raises(InputError, match="with X and Y"):
            sets.load("colon")


def test_mnist(root):
    images, labels = (root / f"networks/mnist-t10k-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1"))
    pixels = bytes(range(12))
    gz(images, struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 3) + pixels)
    gz(labels, struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes((7, 3)))
    found = sets.mnist()
    assert found.images.tolist() == np.arange(12).reshape(2, 2, 3).tolist()
    assert found.labels.tolist() == [7, 3]
    table = sets.load("mnist")
    np.testing.assert_allclose(table.X, np.arange(12).reshape(2, 6) / 255)
    assert table.columns[-1] == "pixel_1_2"
    gz(labels, struct.pack(">4BI", 0, 0, 8, 1, 1) + bytes((7,)))
    with pytest.raises(InputError, match="1 labels for 2 images"):
        sets.mnist()
    gz(labels, struct.pack(">4BI", 0, 0, 8, 1, 9) + bytes((7,)))
    with pytest.raises(InputError, match="cut short"):
        sets.mnist()
    for content in (b"", b"GIF89a" * 9):
        gz(images, content)
        with pytest.raises(InputError, match="not an IDX file"):
            sets.mnist()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("colon", (62, 2000)), ("madelon", (2600, 500)), ("uci_airfoil", (1503, 5)), ("mnist", (10_000, 784))],
)
def test_the_real_files(name, shape):
    if not sets.available(name):
        pytest.skip(f"{name}: its files are not under ELLZERO_DATA")
    table = sets.load(name)
    assert table.X.shape == shape
    assert np.isfinite(table.X).all()


def test_runs_of_the_published_table():
    runs = sets.scaling_runs()
    assert {len(values) for values in runs.values()} == {48}
    assert set(runs["sparsity"]) == {0, 0.5, 0.75, 0.875}
    assert runs["nonzeros"].min() == 24 * 12 * 768**2 / 128
    assert 1.5 < runs["loss"].min() < runs["loss"].max() < 3.2
