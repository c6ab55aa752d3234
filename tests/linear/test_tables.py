"""Tables of named coefficients: sorted, with frequencies where known, saved and printed."""

import csv

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ellzero.errors import InputError
from ellzero.linear import Lasso, coefficient_table

X = np.random.default_rng(0).standard_normal((60, 4))
Y = X @ [3.0, 0.0, -5.0, 0.0] + 2


def test_the_largest_come_first_and_zeros_stay_out():
    fitted = Lasso(0.1).fit(X, Y)
    table = coefficient_table(fitted)
    assert table.names == ("x2", "x0")
    np.testing.assert_array_equal(table.coefficients, fitted.coef_[[2, 0]])
    assert table.intercept == fitted.intercept_
    assert coefficient_table(fitted, zeros=True).names == ("x2", "x0", "x1", "x3")
    assert coefficient_table(fitted, names="abcd").names == ("c", "a")


def test_names_come_from_the_pipeline_or_the_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    for model in (Lasso(0.1), make_pipeline(StandardScaler(), Lasso(0.1))):
        table = coefficient_table(model.fit(frame, Y))
        assert table.names == ("c", "a")
    plain = table.to_frame()
    assert list(plain.columns) == ["column", "coefficient"]
    assert list(plain["column"]) == ["c", "a"]


def test_frequencies_follow_their_columns(tmp_path):
    table = coefficient_table(Lasso(0.1).fit(X, Y), names="abcd", frequencies=[0.9, 0.1, 1.0, 0.0])
    np.testing.assert_array_equal(table.frequencies, [1.0, 0.9])
    assert str(table).splitlines()[1].endswith("100%")
    table.save(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["column", "coefficient", "frequency"]
    assert rows[1] == ["(intercept)", repr(table.intercept), ""]
    assert rows[2] == ["c", repr(float(table.coefficients[0])), "1.0"]


def test_bad_input():
    fitted = Lasso(0.1).fit(X, Y)
    with pytest.raises(InputError, match="names: got 3, want 4"):
        coefficient_table(fitted, names="abc")
    with pytest.raises(InputError, match="frequencies"):
        coefficient_table(fitted, frequencies=np.full(4, 2.0))
    with pytest.raises(InputError, match="frequencies: got shape"):
        coefficient_table(fitted, frequencies=np.ones(3))
    with pytest.raises(InputError, match="without coef_"):
        coefficient_table(Lasso())
