"""The road of a user with a wide table, in a clean process: frame, pipeline, rule, table, file, and back."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("pandas")

MAKE = """
import numpy as np, pandas as pd
draw = np.random.default_rng(0)
n, p = 300, 20_000
frame = pd.DataFrame(draw.normal(5, 3, (n, p)), columns=[f"gene{j}" for j in range(p)])
frame.insert(7, "city", draw.choice(["Oslo", "Paris", "Rome"], n))
frame.insert(9, "stage", draw.choice(["I", "II"], n))
y = (frame["gene3"] - 2 * frame["gene42"] + 0.5 * frame["gene19999"] + 6 * (frame["city"] == "Paris")
     + draw.normal(0, 1, n)).to_numpy()
train, new = frame.iloc[:240], frame.iloc[240:]
"""

FIT = (
    MAKE
    + """
import sys
from pathlib import Path
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from ellzero.errors import InputError
from ellzero.linear import FrameModel, LassoCV, bootstrap_path, coefficient_table

words = ["city", "stage"]
columns = ColumnTransformer(
    [("words", OneHotEncoder(sparse_output=False), words)], remainder=StandardScaler(), verbose_feature_names_out=False
)
pipe = make_pipeline(columns.set_output(transform="pandas"), LassoCV(one_standard_error=True))
pipe.fit(train, y[:240])
again = bootstrap_path(pipe[:-1].transform(train), y[:240], n_bootstraps=30, alphas=[pipe[-1].alpha_1se_])
table = coefficient_table(pipe, frequencies=again.frequency[:, 0])
print(table)
planted = {"gene3", "gene42", "gene19999", "city_Paris"}
assert set(table.names) >= planted, table.names
assert table.names[0] == "gene42" and len(table) < 60
shares = {row["column"]: row["frequency"] for row in table.rows()}
assert min(shares[name] for name in ("gene3", "gene42", "city_Paris")) == 1.0, shares
assert max([share for name, share in shares.items() if name not in planted], default=0) < 1.0, shares
table.save(Path(sys.argv[1]) / "table.csv")

model = FrameModel.of(pipe, "dose")
model.save(Path(sys.argv[1]))
predicted = pipe.predict(new)
assert np.abs(model.predict(new) - predicted).max() < 1e-9
assert 1 - ((y[240:] - predicted) ** 2).sum() / ((y[240:] - y[240:].mean()) ** 2).sum() > 0.8
np.save(Path(sys.argv[1]) / "predicted.npy", model.predict(new))
new[list(model.columns)].to_parquet(Path(sys.argv[1]) / "new.parquet")

holes = train.copy()
holes.loc[[5, 17], "gene42"] = np.nan
for fit in (lambda: pipe.fit(holes, y[:240]), lambda: model.predict(holes)):
    try:
        fit()
    except InputError as error:
        print("refused:", error)
        assert "column 'gene42' has 2 missing values" in str(error) and "SimpleImputer" in str(error)
    else:
        raise AssertionError("missing values were taken")
"""
)

USE = """
import sys
from pathlib import Path
import numpy as np, pandas as pd
from ellzero.linear import FrameModel
model = FrameModel.load(Path(sys.argv[1]))
again = model.predict(pd.read_parquet(Path(sys.argv[1]) / "new.parquet"))
assert "sklearn" not in sys.modules
np.testing.assert_array_equal(again, np.load(Path(sys.argv[1]) / "predicted.npy"))
print(len(model.columns), "columns of the table are needed")
"""


def test_a_wide_table_from_frame_to_file(tmp_path):
    for code in (FIT, USE):
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True,
                              text=True)  # fmt: skip
        print(done.stdout)
        assert done.returncode == 0, done.stderr[-3000:]
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert rows[0] == "column,coefficient,frequency"
    assert rows[1].startswith("(intercept),")
    assert rows[2].startswith("gene42,-")
    assert np.load(tmp_path / "predicted.npy").shape == (60,)
    assert (tmp_path / "model.safetensors").stat().st_size < 20_000
