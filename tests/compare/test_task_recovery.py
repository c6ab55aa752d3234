"""The task ``recovery``: planted signals, what counts as found, noise as chance, a recovery that works elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from ellzero.compare import apply, compare, take
from ellzero.compare.tasks.recovery import Recovery
from ellzero.errors import InputError
from ellzero.linear.recovery_methods import FittedRecovery, Systems, share_recovered
from ellzero.protocol import Fitted, Method, Task

SMALL = Recovery(rows=60, columns=120, k=5, signals=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recovery") / "run"
    return compare(SMALL, budgets=[8, 25, 60], seeds=2, trials=2, out=folder)


def test_it_keeps_the_contract():
    assert isinstance(SMALL, Task)
    data = SMALL.data(0)
    for name, method in SMALL.methods().items():
        assert isinstance(method, Method)
        assert method.name == name
        assert len(method.candidates(3, 0)) == 3
        found = next(iter(method.frontier(data, (60,), 0)))
        assert isinstance(found, Fitted)
        assert found.realised == 60
        assert found.nbytes == 60 * 120 * 8
        assert found.score(data.validation) == 1
        assert found.time(data.validation) > 0
    for task in (SMALL, Recovery(snr=3.0)):
        assert Recovery.from_spec(json.loads(json.dumps(task.to_spec()))) == task
        assert json.loads(json.dumps(task.describe())) == task.describe()
    SMALL.check_budgets(SMALL.budgets(data))
    assert SMALL.budgets(data)[-1] == 60


def test_signals_are_planted_and_differ_between_parts_and_seeds():
    parts = [SMALL.data(0).train, SMALL.data(0).validation, SMALL.data(1).train, SMALL.test()]
    for part in parts:
        assert part.coefs.shape == (120, 8)
        assert ((part.coefs != 0).sum(0) == 5).all()
        np.testing.assert_allclose(part.b, part.A @ part.coefs)
    for i, one in enumerate(parts):
        assert all((one.coefs != other.coefs).any() for other in parts[:i])
    np.testing.assert_array_equal(SMALL.test().coefs, Recovery(rows=60, columns=120, k=5, signals=8).test().coefs)
    assert SMALL.refit_data(0, "all").train.coefs.shape == (120, 16)


@pytest.mark.parametrize("amplitude", ["signs", "decay", "normal"])
@pytest.mark.parametrize("dataset", ["gaussian", "signs", "cosines"])
def test_matrices_and_amplitudes(dataset, amplitude):
    task = Recovery(dataset, rows=50, columns=80, k=3, amplitude=amplitude, signals=4)
    data = task.data(0)
    sizes = np.sort(abs(data.train.coefs), axis=0)[-3:]
    if amplitude == "decay":
        np.testing.assert_allclose(sizes, np.repeat([[1 / 3], [1 / 2], [1]], 4, axis=1))
    if amplitude == "signs":
        assert (sizes == 1).all()
    found = next(iter(task.methods()["nst"].frontier(data, (50,), 0)))
    assert found.score(data.validation) == 1


def test_noise_has_its_level_and_the_oracle_sets_the_limit():
    data = Recovery(rows=100, columns=120, k=4, snr=25.0, signals=30).data(0)
    part = data.train
    noise = part.b - part.A @ part.coefs
    assert np.mean(noise**2) == pytest.approx(np.mean((part.A @ part.coefs) ** 2) / 25, rel=0.1)
    assert part.noise_level == pytest.approx(np.sqrt(np.mean(noise**2)), rel=0.1)
    best = np.zeros_like(part.coefs)
    for t, truth in enumerate(part.coefs.T):
        support = np.flatnonzero(truth)
        best[support, t] = np.linalg.lstsq(part.A[:, support], part.b[:, t], rcond=None)[0]
    assert share_recovered(best, part) == 1
    assert share_recovered(part.coefs + 1.9 * (best - part.coefs), part) == 1
    assert share_recovered(part.coefs + 2.1 * (best - part.coefs), part) == 0
    for method in ("lasso", "omp", "nst"):
        found = next(iter(Recovery().methods()[method].frontier(data, (100,), 0)))
        assert found.score(data.validation) > 0.5


def test_measurements_of_nothing_score_as_chance():
    """Measurements that are noise have no answer to find."""
    part = SMALL.data(0).validation
    noise = Systems(part.A, part.coefs, np.random.default_rng(0).standard_normal(part.b.shape), 5)
    for method in SMALL.methods().values():
        assert FittedRecovery(method, part.A, 5, 0.0).score(noise) == 0


def test_the_share_rises_with_measurements(run):
    assert not [point for point in run.points if point.error]
    for name in SMALL.methods():
        found = [point for point in run.frontier if point.method == name]
        assert [point.target for point in found] == [8, 25, 60]
        shares = [point.fidelity for point in found]
        assert shares == sorted(shares)
        assert shares[0] < 0.3
        assert shares[2] == 1


@pytest.mark.parametrize("method", ["lasso", "adaptive"])
def test_a_taken_recovery_answers_alike_in_a_fresh_process(run, tmp_path, method):
    taken = take(run.folder, method, 60, tmp_path / "model")
    assert taken.fidelity == 1
    part = SMALL.test()
    np.save(tmp_path / "b.npy", part.b.T)
    output = apply(tmp_path / "model", tmp_path / "b.npy")
    found = np.zeros_like(part.coefs)
    found[output.columns["column"], output.columns["signal"]] = output.columns["value"]
    np.testing.assert_allclose(found, part.coefs, atol=1e-3 * abs(part.coefs).max())
    code = (
        "import sys, numpy as np\nfrom ellzero.compare import apply\n"
        f"out = apply({str(tmp_path / 'model')!r}, {str(tmp_path / 'b.npy')!r})\n"
        f"np.save({str(tmp_path / 'values.npy')!r}, out.columns['value'])"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), output.columns["value"])
    np.save(tmp_path / "wrong.npy", part.b.T[:, :9])
    with pytest.raises(InputError, match="has 9 columns, want 60"):
        apply(tmp_path / "model", tmp_path / "wrong.npy")


def test_the_users_own_matrix(tmp_path):
    A = np.random.default_rng(0).standard_normal((40, 70))
    np.save(tmp_path / "A.npy", A)
    task = Recovery.from_options(data=str(tmp_path / "A.npy"), extra={"k": "3", "signals": "6", "snr": "inf"})
    assert task == Recovery(str(tmp_path / "A.npy"), k=3, signals=6)
    part = task.data(0).train
    assert sorted(map(tuple, part.A)) == sorted(map(tuple, A))
    assert (part.A != A).any()
    with pytest.raises(InputError, match="rows: got 10 beside a file"):
        Recovery(str(tmp_path / "A.npy"), rows=10)
    with pytest.raises(InputError, match="k"):
        Recovery.from_options(data=str(tmp_path / "A.npy"), extra={"k": "41"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "gausian"}, "data: got 'gausian'.*did you mean 'gaussian'"),
        ({"data": "nowhere.npy"}, "nowhere.npy"),
        ({"model": "x"}, "model: the task recovery takes none"),
        ({"target": "y"}, "target: the task recovery takes none"),
        ({"extra": {"colums": "3"}}, "colums: the task recovery takes none.*did you mean 'columns'"),
        ({"extra": {"k": "0"}}, "k: got 0"),
        ({"extra": {"k": "many"}}, "k: got 'many', want a whole number"),
        ({"extra": {"k": "300"}}, "k: got 300"),
        ({"extra": {"snr": "0"}}, "snr: got 0"),
        ({"extra": {"snr": "loud"}}, "snr: got 'loud', want a number"),
        ({"extra": {"amplitude": "big"}}, "amplitude: got 'big'"),
        ({"extra": {"signals": "0"}}, "signals: got 0"),
        ({"extra": {"rows": "1"}}, "rows: got 1"),
        ({"data": "cosines", "extra": {"rows": "20", "columns": "10", "k": "2"}}, "rows: got 20"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        Recovery.from_options(**options)


def test_bad_budgets():
    for bad, words in ((1, "at least 2"), (61, "at most 60"), (2.5, "whole numbers")):
        with pytest.raises(InputError, match=words):
            SMALL.check_budgets([bad])
