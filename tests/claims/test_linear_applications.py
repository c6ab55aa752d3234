"""Applications of sparse linear models: what the papers claim, against baselines at equal cost."""

import time

import numpy as np
import pytest


def driven(system, observations, n=50):
    from ellzero.data.dynamics import driven_systems

    train = driven_systems(system, n, observations=observations, seed=0)
    return train, driven_systems(system, n, observations=observations, seed=0, part="test")


def trajectory_errors(train, test):
    """Mean squared error of whole test trajectories: signatures, the mean, the Lasso on time and the last sample."""
    from sklearn.linear_model import LassoCV

    from ellzero.linear.sig_lasso import SigLasso

    def last(paths, at):
        rows = [np.column_stack([w, v[np.searchsorted(t, w, side="right") - 1]]) for (t, v), w in zip(paths, at)]
        return np.concatenate(rows)

    seen = np.concatenate([y for _, y in train.targets])
    grid = [test.grid] * len(test.paths)
    plain = LassoCV().fit(last(train.paths, [t for t, _ in train.targets]), seen).predict(last(test.paths, grid))
    errors = {"mean": ((test.truth - seen.mean()) ** 2).mean(),
              "lasso on the last sample": ((test.truth.ravel() - plain) ** 2).mean()}  # fmt: skip
    start = time.perf_counter()
    fits = [SigLasso(depths=(1, 2, 3, 4), origin=origin).fit(train.paths, train.targets) for origin in (False, True)]
    best = min(fits, key=lambda fit: min(fit.scores_.values()))
    seconds = time.perf_counter() - start
    for name, model in (("signatures", best), ("depth 1", SigLasso(depths=(1,)).fit(train.paths, train.targets))):
        errors[name] = ((np.stack(model.predict(test.paths, grid)) - test.truth) ** 2).mean()
    return errors, best, seconds


def recurrent_error(train, test, rates=(3e-3, 1e-2), epochs=200):
    """A GRU of 128 units on the sampled paths with time steps; rate and epoch chosen on ten subjects held out."""
    import torch
    from torch import nn

    def batch(data):
        x = np.stack([np.column_stack([t, np.diff(t, prepend=0), v]) for t, v in data.paths])
        return torch.from_numpy(x).float()

    X, X_test = batch(train), batch(test)
    times = np.stack([t for t, _ in train.paths])
    at = [np.searchsorted(own, w, side="right") - 1 for own, (w, _) in zip(times, train.targets)]
    rows = torch.from_numpy(np.repeat(np.arange(len(at)), [len(a) for a in at]))
    places = torch.from_numpy(np.concatenate(at))
    seen = torch.from_numpy(np.concatenate([y for _, y in train.targets])).float()
    middle, spread = seen.mean(), seen.std()
    held = rows >= len(at) - 10
    best = (np.inf, None)
    for rate in rates:
        torch.manual_seed(0)
        gru, head = nn.GRU(X.shape[2], 128, batch_first=True), nn.Linear(128, 1)
        optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=rate)
        for _ in range(epochs):
            out = head(gru(X)[0])[..., 0][rows, places]
            error = (out - (seen - middle) / spread) ** 2
            if float(error.detach()[held].mean()) < best[0]:
                with torch.no_grad():
                    best = float(error.detach()[held].mean()), head(gru(X_test)[0])[..., 0] * spread + middle
            optimizer.zero_grad()
            error[~held].mean().backward()
            optimizer.step()
    times = np.stack([t for t, _ in test.paths])
    grid = np.stack([np.searchsorted(own, test.grid, side="right") - 1 for own in times])
    said = np.take_along_axis(best[1].numpy(), grid, 1)
    return ((said - test.truth) ** 2).mean()


@pytest.mark.claim("S128")
def test_signatures_follow_a_driven_process_from_four_observations_each():
    errors, model, _ = trajectory_errors(*driven("ornstein-uhlenbeck", 4))
    print("\nOrnstein-Uhlenbeck:", {name: round(float(e), 3) for name, e in errors.items()}, "depth", model.depth_)
    assert errors["signatures"] < 0.2 * errors["mean"]
    assert errors["signatures"] < 0.5 * errors["depth 1"]


@pytest.mark.slow
@pytest.mark.claim("S128")
@pytest.mark.parametrize(("system", "share"), [("ornstein-uhlenbeck", 0.5), ("cde", 0.5), ("tumour", 1.1)])
def test_signatures_against_a_recurrent_network(system, share):
    """50 subjects, four observations each. The network's 400 passes over them are why this takes half a minute each."""
    pytest.importorskip("torch")
    train, test = driven(system, 4)
    errors, model, seconds = trajectory_errors(train, test)
    start = time.perf_counter()
    errors["gru"] = recurrent_error(train, test)
    slower = (time.perf_counter() - start) / seconds
    said = {name: round(float(e), 4) for name, e in errors.items()}
    used = f"{np.count_nonzero(model.coef_)} of {len(model.coef_)} terms"
    print(f"\n{system}: {said}, depth {model.depth_}, {used}; the network took {slower:.0f} x as long")
    assert errors["signatures"] < share * errors["gru"]
    assert errors["signatures"] < 0.3 * errors["mean"]
    assert errors["signatures"] < 0.7 * errors["depth 1"]
