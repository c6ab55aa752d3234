"""The mask step by step, the order of matching pursuit for linear regression, the selector."""

import numpy as np
import pytest
from scipy.optimize import minimize

from ellzero.data import sets
from ellzero.errors import InputError
from ellzero.solvers.pursuit import omp

torch = pytest.importorskip("torch")

from ellzero.linear.sequential_attention import SequentialAttention, SequentialMask  # noqa: E402


def planted(seed, n=300, p=20):
    g = np.random.default_rng(seed)
    X, coef = g.standard_normal((n, p)), np.zeros(p)
    coef[g.permutation(p)[:4]] = np.array([3, 2.3, 1.7, 1.2]) * g.choice([-1, 1], 4)
    return X, X @ coef + 0.3 * g.standard_normal(n)


def test_chosen_inputs_pass_and_the_others_share_one():
    mask = SequentialMask(5, 3, 40, start=0.25)
    x = torch.ones(2, 5)
    seen = []
    for _ in range(40):
        seen.append(mask.mask().detach().clone())
        with torch.no_grad():
            mask.logits[len(mask.chosen)] += 1
        mask.step()
    for t, m in enumerate(seen):
        if t < 10:  # warm-up
            assert (m == 1).all()
        else:  # three phases of ten steps: 0, then 0 and 1, ...
            done = (t - 10) // 10
            assert (m[:done] == 1).all()
            assert m[done:].sum() == pytest.approx(1, abs=1e-6)
    assert mask.chosen.tolist() == [0, 1, 2]
    assert torch.equal(mask(x), x * mask.mask())


def test_the_start_of_a_phase_chooses_without_a_gradient():
    mask = SequentialMask(5, 2, 20, start=0.5, select_at="start")
    for _ in range(10):
        assert not len(mask.chosen)
        mask.step()
    assert len(mask.chosen) == 1
    with torch.no_grad():
        mask.logits[(mask.chosen[0] + 1) % 5] = 1
    for _ in range(5):
        mask.step()
    assert mask.chosen.tolist()[1] == (mask.chosen[0] + 1) % 5


def test_several_at_a_time_and_all():
    mask = SequentialMask(6, 5, 30, start=0, per_step=2)
    counts = []
    for _ in range(30):
        mask.step()
        counts.append(len(mask.chosen))
    assert [counts[i] for i in (8, 9, 18, 19, 28, 29)] == [0, 2, 2, 4, 4, 5]
    every = SequentialMask(3, 3, 3, start=0)
    for _ in range(3):
        every.step()
    assert sorted(every.chosen.tolist()) == [0, 1, 2]
    assert (every.mask() == 1).all()


def test_the_gradient_of_the_mask_is_that_of_the_softmax():
    mask = SequentialMask(4, 2, 10, start=0).double()
    mask.order[0] = 2
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value(logits):
        with torch.no_grad():
            mask.logits.copy_(logits)
        kept = torch.tensor([False, False, True, False])
        soft = torch.softmax(logits.masked_fill(kept, -torch.inf), 0)
        return (x * torch.where(kept, 1.0, soft)).square().sum()

    start = torch.tensor([0.1, -0.3, 5.0, 0.7], dtype=torch.float64, requires_grad=True)
    value(start).backward()
    mask.logits.grad = None
    mask(x).square().sum().backward()
    torch.testing.assert_close(mask.logits.grad, start.grad)
    assert mask.logits.grad[2] == 0


def test_moments_of_the_logits_are_forgotten_at_each_choice():
    mask = SequentialMask(4, 2, 4, start=0)
    optimizer = torch.optim.Adam(mask.parameters(), lr=0.1)
    mask.forget(optimizer)
    for step in range(1, 5):
        optimizer.zero_grad()
        mask(torch.ones(1, 4)).square().sum().backward()
        optimizer.step()
        mask.step()
        assert (mask.logits in optimizer.state) == (step % 2 == 1)


@pytest.mark.parametrize("seed", range(3))
def test_for_linear_regression_the_order_is_that_of_matching_pursuit(seed):
    X, y = planted(seed)
    Z = (X - X.mean(0)) / X.std(0)
    found = SequentialAttention(
        4, hidden=(), optimizer="sgd", lr=0.2, weight_decay=0, batch_size=300, steps=200, seed=seed
    ).fit(X, y)
    assert found.order_.tolist() == omp(Z, y - y.mean(), 4).support.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_the_product_form_chooses_as_matching_pursuit_exactly(seed):
    """Why it holds: with w * b in the place of softmax(w) * b and the squares of both penalised off the chosen set, the
    penalty at which a first product leaves zero is the largest correlation with the residual."""
    X, y = planted(seed, n=60, p=8)
    X, y = (X - X.mean(0)) / X.std(0) / np.sqrt(60), y - y.mean()
    want, chosen = omp(X, y, 3).support.tolist(), []
    for _ in range(3):
        A = X[:, chosen]
        residual = y - A @ np.linalg.lstsq(A, y)[0] if chosen else y
        penalty = 0.97 * abs(X.T @ residual).max()
        free = np.isin(np.arange(8), chosen)

        def objective(theta, free=free, penalty=penalty):
            w, b = theta.reshape(2, 8)
            w = np.where(free, 1, w)
            error = X @ (w * b) - y
            slope = X.T @ error
            value = error @ error / 2 + penalty / 2 * (w**2 + b**2)[~free].sum()
            gradient = np.stack([np.where(free, 0, slope * b + penalty * w), slope * w + penalty * b * ~free])
            return value, gradient.ravel()

        start = np.random.default_rng(seed).standard_normal(16)
        theta = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15}).x
        product = abs(theta[:8] * theta[8:]) * ~free
        assert (product > 1e-3 * product.max()).sum() == 1
        chosen.append(int(product.argmax()))
    assert chosen == want


def test_it_chooses_pixels_that_tell_digits():
    table = sets.digits()
    found = SequentialAttention(8, steps=400, lr=3e-3, hidden=(32,)).fit(table.X, table.y)
    assert found.transform(table.X).shape == (1797, 8)
    assert sorted(found.order_.tolist()) == found.get_support(indices=True).tolist()
    again = SequentialAttention(8, steps=400, lr=3e-3, hidden=(32,)).fit(table.X, table.y)
    assert found.order_.tolist() == again.order_.tolist()
    from sklearn.neighbors import KNeighborsClassifier

    train, test = slice(0, 1200), slice(1200, None)
    scores = {}
    for name, columns in (("chosen", found.order_), ("random", np.random.default_rng(0).permutation(64)[:8])):
        judge = KNeighborsClassifier().fit(table.X[train][:, columns], table.y[train])
        scores[name] = judge.score(table.X[test][:, columns], table.y[test])
    assert scores["chosen"] > scores["random"] + 0.1
    assert scores["chosen"] > 0.75


X, Y = np.random.default_rng(0).standard_normal((12, 4)), np.arange(12) % 2


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 0}, "k: got 0"), ({"k": 5}, "k: got 5"), ({"lr": 0}, "lr: got 0"),
    ({"steps": 2, "k": 3}, "steps: got 2, want at least 4 for 3 choices"),
    ({"weight_decay": -1}, "weight_decay: got -1"), ({"optimizer": "adm"}, "did you mean 'adam'"),
    ({"start": 1}, "start: got 1"), ({"select_at": "edn"}, "did you mean 'end'"),
    ({"per_step": 0}, "per_step: got 0"), ({"hidden": (0,)}, r"hidden\[0\]: got 0"), ({"seed": -1}, "seed: got -1"),
    ({"batch_size": 0}, "batch_size: got 0"),
])  # fmt: skip
def test_bad_settings_are_named(options, message):
    with pytest.raises(InputError, match=message):
        SequentialAttention(**options).fit(X, Y)


def test_a_mask_refuses_a_stop_before_its_start():
    with pytest.raises(InputError, match="stop: got 0"):
        SequentialMask(4, 2, 10, start=0.5, stop=0.4)
