"""The bound against independent Gaussians, its gradient, its exact maximum, and the choice of neighbours."""

import math

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from ellzero.errors import InputError

torch = pytest.importorskip("torch")

from ellzero.solvers.neighbour_gp import COVARIANCES, NeighbourGP  # noqa: E402


def problem(n=30, M=7, H=3, seed=0, **options):
    g = np.random.default_rng(seed)
    x = torch.from_numpy(g.standard_normal((n, 2)))
    y = torch.sin(2 * x[:, 0]) + 0.1 * torch.from_numpy(g.standard_normal(n))
    process = NeighbourGP(x[:M] + 0.1, H, lengthscale=0.8, variance=1.3, noise=0.05, **options)
    with torch.no_grad():
        process.log_lengthscale += torch.tensor([0.2, -0.1])
        process.mean.copy_(torch.from_numpy(g.standard_normal(M)))
        process.log_diagonal.copy_(torch.from_numpy(0.3 * g.standard_normal(M)) - 1)
        if process.lower is not None:
            process.lower.copy_(torch.from_numpy(0.2 * g.standard_normal((M, M))))
    return process, x, y


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_bound_is_that_of_independent_gaussians(covariance):
    process, x, y = problem(covariance=covariance)
    with torch.no_grad():
        bound = process.bound(x, y, 200)
        means, variances = process.moments(x)
        kernel = 1.3 * kernels.RBF(np.exp(process.log_lengthscale.numpy()))
        full = np.exp(process.log_diagonal.numpy())
        L = np.diag(full) if process.lower is None else np.tril(process.lower.numpy(), -1) + np.diag(full)
    total = []
    for i in range(len(x)):
        scaled = (x[i] - process.Z.detach()).numpy() / np.exp(process.log_lengthscale.detach().numpy())
        w = np.sort(np.argsort((scaled**2).sum(1), kind="stable")[:3])
        Z, point = process.Z.detach().numpy()[w], x[i : i + 1].numpy()
        K, k = kernel(Z) + 1.3e-6 * np.eye(3), kernel(Z, point)[:, 0]
        S = (L @ L.T)[np.ix_(w, w)] if covariance == "marginal" else L[np.ix_(w, w)] @ L[np.ix_(w, w)].T
        a, m = np.linalg.solve(K, k), process.mean.detach().numpy()[w]
        mean, variance = a @ m, 1.3 - a @ k + a @ S @ a
        assert float(means[i]) == pytest.approx(mean, abs=1e-9)
        assert float(variances[i]) == pytest.approx(variance, abs=1e-9)
        fit = -0.5 * math.log(2 * math.pi * 0.05) - ((float(y[i]) - mean) ** 2 + variance) / 0.1
        normal = torch.distributions.MultivariateNormal
        q, p = normal(torch.from_numpy(m), torch.from_numpy(S)), normal(torch.zeros(3).double(), torch.from_numpy(K))
        total.append(200 * fit - float(torch.distributions.kl_divergence(q, p)))
    assert float(bound) == pytest.approx(np.mean(total), rel=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_all_neighbours_give_the_ordinary_process(covariance):
    """One shared factor, and one for each input, are the same bound and the same gradient."""
    process, x, y = problem(H=7, covariance=covariance)
    every = torch.arange(7).expand(len(x), 7)
    found = []
    for index in (None, every):
        process.zero_grad()
        bound = process.bound(x, y, 30, index)
        bound.backward()
        found.append((bound.detach(), [p.grad.clone() for p in process.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-8)
    for ours, theirs in zip(found[0][1], found[1][1]):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_settled_on_one_active_set_the_bound_is_that_of_titsias():
    process, x, y = problem(n=40, H=7)
    process.settle(x, y)
    kernel = 1.3 * kernels.RBF(np.exp(process.log_lengthscale.detach().numpy()))
    Z = process.Z.detach().numpy()
    k = kernel(x.numpy(), Z)
    Q = k @ np.linalg.solve(kernel(Z) + 1.3e-6 * np.eye(7), k.T)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(40).double(), torch.from_numpy(Q + 0.05 * np.eye(40)))
    want = float(evidence.log_prob(y)) - (1.3 - np.diag(Q)).sum() / 0.1
    assert float(process.bound(x, y, 40).detach()) == pytest.approx(want, rel=1e-6)


def test_an_inducing_input_at_every_row_is_the_exact_process():
    _, x, y = problem(n=25)
    process = NeighbourGP(x, 25, kernel="matern52", lengthscale=0.8, noise=0.05, jitter=1e-9)
    process.settle(x, y)
    exact = GaussianProcessRegressor(kernels.Matern(0.8, nu=2.5), alpha=0.05, optimizer=None).fit(x.numpy(), y.numpy())
    new = np.random.default_rng(1).standard_normal((9, 2))
    mean, variance = process.moments(torch.from_numpy(new))
    want, std = exact.predict(new, return_std=True)
    np.testing.assert_allclose(mean.detach(), want, atol=1e-5)
    np.testing.assert_allclose(variance.detach(), std**2, atol=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_settled_the_mean_has_no_gradient(covariance):
    process, x, y = problem(n=60, covariance=covariance)
    before = float(process.bound(x, y, 60).detach())
    process.settle(x, y)
    bound = process.bound(x, y, 60)
    bound.backward()
    assert float(bound.detach()) > before
    assert abs(process.mean.grad).max() < 1e-6
    if covariance == "diagonal":
        assert abs(process.log_diagonal.grad).max() < 1e-8


def test_an_inducing_input_that_nobody_sees_keeps_the_mean_of_the_prior():
    process, x, y = problem(n=60)
    with torch.no_grad():
        process.Z[5] = 100.0
    process.settle(x, y)
    assert process.mean[5] == 0
    assert bool(process.mean.isfinite().all())


@pytest.mark.parametrize("H", [3, 7])
def test_batches_estimate_the_bound_without_bias(H):
    process, x, y = problem(H=H)
    with torch.no_grad():
        parts = [process.bound(x[i : i + 5], y[i : i + 5], 30) for i in range(0, 30, 5)]
        torch.testing.assert_close(torch.stack(parts).mean(), process.bound(x, y, 30))


@pytest.mark.parametrize(("name", "kernel"), [
    ("rbf", kernels.RBF), ("matern12", kernels.Matern), ("matern32", kernels.Matern), ("matern52", kernels.Matern),
])  # fmt: skip
def test_kernels_are_those_of_scikit_learn(name, kernel):
    process, x, _ = problem(kernel=name)
    options = {} if name == "rbf" else {"nu": int(name[-2]) / 2}
    want = 1.3 * kernel(np.exp(process.log_lengthscale.detach().numpy()), **options)(x.numpy())
    np.testing.assert_allclose(process.covariances(x[None], x[None])[0].detach(), want, atol=1e-7)


@pytest.mark.parametrize("kernel", ["rbf", "matern32"])
def test_the_gradient_of_the_bound(kernel):
    process, x, y = problem(n=6, M=5, kernel=kernel)
    index = process.nearest(x)
    names = [name for name, _ in process.named_parameters()]

    def value(*parameters):
        def bound(x, y):
            return process.bound(x, y, 6, index)

        from torch.nn.utils import stateless

        with stateless._reparametrize_module(process, dict(zip(names, parameters))):
            return bound(x, y)

    start = [p.detach().clone().requires_grad_() for p in process.parameters()]
    assert torch.autograd.gradcheck(value, start, eps=1e-6, atol=1e-4, rtol=1e-4)


def test_draws_go_to_the_lower_index():
    Z = torch.tensor([[1.0], [-1.0], [1.0], [3.0]], dtype=torch.float64)
    assert NeighbourGP(Z, 2).nearest(torch.zeros(1, 1).double()).tolist() == [[0, 1]]


@pytest.mark.parametrize(("options", "message"), [
    ({"neighbours": 0}, "neighbours: got 0"), ({"neighbours": 5}, "neighbours: got 5"),
    ({"kernel": "rbg"}, "did you mean 'rbf'"), ({"covariance": "full"}, "covariance: got 'full'"),
    ({"noise": 0}, "noise: got 0"), ({"jitter": 0}, "jitter: got 0"), ({"lengthscale": -1}, "lengthscale: got -1"),
    ({"variance": math.inf}, "variance: got inf"),
])  # fmt: skip
def test_bad_settings_are_named(options, message):
    with pytest.raises(InputError, match=message):
        NeighbourGP(torch.zeros(4, 1).double(), **{"neighbours": 2, **options})
