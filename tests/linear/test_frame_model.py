"""A pipeline as a small file: the pipeline's predictions from the raw columns, and refusals by column."""

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, OneHotEncoder, PolynomialFeatures, RobustScaler
from sklearn.preprocessing import StandardScaler as Standard

from ellzero.errors import InputError
from ellzero.io import artefacts
from ellzero.linear import FrameModel, Lasso
from ellzero.linear.frame_model import KIND, VERSION

pandas = pytest.importorskip("pandas")


def table(n=120, gaps=False):
    draw = np.random.default_rng(0)
    frame = pandas.DataFrame({
        "age": draw.normal(50, 10, n), "bmi": draw.normal(25, 4, n), "rooms": draw.integers(1, 6, n),
        "city": draw.choice(["Oslo", "Paris", "Rome"], n), "grade": draw.choice([1, 2, 3], n),
        "member": draw.random(n) < 0.5,
    })  # fmt: skip
    y = (
        0.1 * frame["age"]
        - 0.3 * frame["bmi"]
        + (frame["city"] == "Paris") * 2.0
        + frame["grade"]
        + draw.normal(0, 0.1, n)
    )
    if gaps:
        frame.loc[::7, "bmi"] = np.nan
        frame.loc[::11, "city"] = None
    return frame, y.to_numpy()


NUMBERS, WORDS = ["age", "bmi", "rooms"], ["city", "grade"]
PIPES = {
    "scaled": ColumnTransformer([("n", Standard(), NUMBERS), ("c", OneHotEncoder(), WORDS)], remainder="passthrough"),
    "dropped": ColumnTransformer([("c", OneHotEncoder(drop="first"), WORDS), ("n", MinMaxScaler(), NUMBERS)]),
    "robust": ColumnTransformer([("n", make_pipeline(RobustScaler(), MaxAbsScaler()), NUMBERS),
                                 ("c", OneHotEncoder(handle_unknown="ignore"), WORDS), ("d", "drop", ["member"])]),
    "places": ColumnTransformer([("n", Standard(with_mean=False), [0, 2]), ("c", OneHotEncoder(), slice(3, 5))],
                                remainder=Standard(with_std=False)),
}  # fmt: skip
FILLED = {
    "filled": ColumnTransformer([
        ("n", make_pipeline(SimpleImputer(strategy="median"), Standard()), NUMBERS),
        ("c", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["city"]),
    ]),
    "scaled first": ColumnTransformer([("n", make_pipeline(Standard(), SimpleImputer()), NUMBERS)]),
    "gap is a category": ColumnTransformer([("n", SimpleImputer(), NUMBERS), ("c", OneHotEncoder(), ["city"])]),
}  # fmt: skip


def agree(pipe, frame, y, folder):
    pipe.fit(frame, y)
    FrameModel.of(pipe, "price").save(folder)
    loaded = FrameModel.load(folder)
    np.testing.assert_allclose(loaded.predict(frame), pipe.predict(frame), atol=1e-8)
    shuffled = frame[list(loaded.columns)[::-1]].iloc[::-1]
    np.testing.assert_allclose(loaded.predict(shuffled), pipe.predict(frame)[::-1], atol=1e-8)
    assert loaded.target == "price"
    return loaded


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("sparse", [True, False])
def test_it_predicts_what_the_pipeline_does(name, sparse, tmp_path):
    transformer = PIPES[name].set_params(sparse_threshold=1.0 if sparse else 0.0)
    agree(make_pipeline(transformer, VarianceThreshold(), Lasso(0.01)), *table(), tmp_path)


@pytest.mark.parametrize("name", FILLED)
def test_gaps_are_filled_as_in_training(name, tmp_path):
    agree(make_pipeline(FILLED[name], Lasso(0.001)), *table(gaps=True), tmp_path)


def test_a_bare_estimator_and_scikit_learns_own(tmp_path):
    frame, y = table()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    agree(Lasso(0.1), frame[NUMBERS], y, tmp_path / "a")
    agree(make_pipeline(Standard(), LinearRegression()), frame[NUMBERS], y, tmp_path / "b")


def test_only_what_counts_is_kept(tmp_path):
    frame, y = table()
    loaded = agree(make_pipeline(PIPES["scaled"], Lasso(0.3)), frame, y, tmp_path)
    assert set(loaded.columns) < set(frame.columns)
    assert "rooms" not in loaded.columns
    text = (tmp_path / "coefficients.csv").read_text().splitlines()
    assert text[0] == "column,coefficient"
    assert len(text) == 2 + len(loaded.terms)
    nothing = agree(make_pipeline(PIPES["scaled"], Lasso(1e6)), frame, y, tmp_path)
    assert nothing.columns == ()
    np.testing.assert_allclose(nothing.predict(frame), y.mean())


def test_a_table_that_does_not_fit_is_refused_by_column(tmp_path):
    frame, y = table()
    loaded = agree(make_pipeline(PIPES["scaled"], Lasso(0.01)), frame, y, tmp_path)
    with pytest.raises(InputError, match=r"lacks the column 'bmi'.*did you mean 'bmj'"):
        loaded.predict(frame.rename(columns={"bmi": "bmj"}))
    with pytest.raises(InputError, match=r"column 'bmi' has 1 missing value .*row 3.*SimpleImputer"):
        loaded.predict(frame.assign(bmi=frame["bmi"].where(frame.index != 3)))
    with pytest.raises(InputError, match="column 'city' holds 'Bonn', which the model has not seen"):
        loaded.predict(frame.assign(city=["Bonn", *frame["city"][1:]]))
    with pytest.raises(InputError, match="column 'city' has 1 missing value"):
        loaded.predict(frame.assign(city=[None, *frame["city"][1:]]))
    with pytest.raises(InputError, match=r"column 'age' holds text \('old'\)"):
        loaded.predict(frame.assign(age="old"))
    with pytest.raises(InputError, match="column 'age' holds an infinite value"):
        loaded.predict(frame.assign(age=np.inf))
    ignoring = agree(make_pipeline(PIPES["robust"], Lasso(0.01)), frame, y, tmp_path)
    assert np.isfinite(ignoring.predict(frame.assign(city="Bonn"))).all()


def test_what_cannot_be_taken_along_is_named():
    frame, y = table()
    with pytest.raises(InputError, match="transformer PolynomialFeatures"):
        FrameModel.of(make_pipeline(PolynomialFeatures(), Lasso()).fit(frame[NUMBERS], y))
    with pytest.raises(InputError, match="without column names"):
        FrameModel.of(Lasso().fit(frame[NUMBERS].to_numpy(), y))
    with pytest.raises(InputError, match="without coef_"):
        FrameModel.of(Standard().fit(frame[NUMBERS]))
    pooled = make_pipeline(ColumnTransformer([("c", OneHotEncoder(min_frequency=0.4), ["city"])]), Lasso(0.1))
    with pytest.raises(InputError, match="infrequent"):
        FrameModel.of(pooled.fit(frame, y))


def test_a_torn_or_newer_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.safetensors"):
        FrameModel.load(tmp_path)
    artefacts.save(tmp_path / "model.safetensors", {"weights": np.ones(1)}, {}, KIND, VERSION + 1)
    with pytest.raises(InputError, match="newer"):
        FrameModel.load(tmp_path)
