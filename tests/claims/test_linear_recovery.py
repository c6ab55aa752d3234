"""Sparse recovery: what is found, and in how many steps, against tuned baselines on the same draws."""

import time

import numpy as np
import pytest

from ellzero.compare.tasks.recovery import Recovery
from ellzero.rng import rng
from ellzero.solvers.loss_pursuit import loss_pursuit
from ellzero.solvers.null_space import SolutionSpace, null_space_tuning
from ellzero.solvers.phase_retrieval import amplitude_flow, newton_hard_thresholding, phase_pursuit
from ellzero.solvers.pursuit import omp


def found(coef, x, tol=1e-4):
    return np.linalg.norm(coef - x) <= tol * np.linalg.norm(x)


def gaussian(seed, k, n=200, p=1000):
    generator = rng(seed, "claim", k)
    A = generator.standard_normal((n, p)) / np.sqrt(n)
    x = np.zeros(p)
    x[generator.choice(p, k, replace=False)] = generator.standard_normal(k)
    return A, x, A @ x


def timed(call, *arguments, **options):
    start = time.perf_counter()
    result = call(*arguments, **options)
    return result, time.perf_counter() - start


def null_space_trials(k, trials):
    """Success of fixed, restarted and growing tuning and of OMP; steps of the fixed; seconds."""
    rows = []
    for seed in range(trials):
        A, x, b = gaussian(seed, k)
        fixed, t_fixed = timed(null_space_tuning, A, b, k, restart=False)
        space = SolutionSpace(np.ascontiguousarray(A.T))
        _, t_factored = timed(null_space_tuning, A, b, k, restart=False, space=space)
        again, _ = timed(null_space_tuning, A, b, k)
        grown, _ = timed(null_space_tuning, A, b)
        greedy, t_greedy = timed(omp, A, b, k)
        recovered = [found(coef, x) for coef in (fixed.coef, again.coef, grown.coef, greedy.coef())]
        rows.append((*recovered, grown.count == k, fixed.n_iter, t_fixed, t_factored, t_greedy))
    rows = np.array(rows, dtype=float)
    means, steps = rows.mean(axis=0), np.median(rows[:, 5])
    print(
        f"k={k}: recovered fixed {means[0]:.0%}, restart {means[1]:.0%}, growing {means[2]:.0%} (right count "
        f"{means[4]:.0%}), OMP {means[3]:.0%}; median steps {steps:.0f}; median ms fixed, A factored, "
        "OMP: " + ", ".join(f"{1e3 * value:.1f}" for value in np.median(rows[:, 6:], axis=0))
    )
    return means, steps


@pytest.mark.claim("S101")
def test_null_space_tuning_ends_in_few_steps_and_recovers():
    means, steps = null_space_trials(40, 5)
    assert steps <= 10
    assert means[1] == 1
    assert means[2] == 1
    assert means[4] == 1


@pytest.mark.slow
@pytest.mark.claim("S101")
def test_null_space_tuning_over_sparsity():
    for k in (20, 30, 40, 50):
        means, steps = null_space_trials(k, 25)
        assert steps <= 13
        assert steps <= 10 or k == 50
        assert means[1] >= 0.95 or k == 50
        assert means[2] >= 0.95  # growing
        assert means[4] >= 0.95  # with the right count
        assert means[2] >= means[3] + (0.2 if k == 50 else 0)  # OMP falls behind


def phaseless(seed, m, p=1000, k=15):
    generator = rng(seed, "claim", "phase", m)
    A, x = generator.standard_normal((m, p)), np.zeros(p)
    x[generator.choice(p, k, replace=False)] = generator.standard_normal(k)
    return A, abs(A @ x), x


def phase_trials(solve, m, seeds):
    """Share found (up to the sign), and the histories of those."""
    histories = []
    for seed in seeds:
        A, y, x = phaseless(seed, m)
        run = solve(A, y, 15)
        if min(np.linalg.norm(run.coef - x), np.linalg.norm(run.coef + x)) < 1e-3 * np.linalg.norm(x):
            histories.append(run.history)
    return len(histories) / len(seeds), histories


def steps_to(histories, level):
    """Median steps until the relative residual is below ``level``."""
    return float(np.median([np.argmax(h < level) if (h < level).any() else np.inf for h in histories]))


def tuned_flow(m, seeds):
    """The step and truncation that find most on other draws, then take the fewest steps."""

    def flow(step, truncation):
        return lambda A, y, k: amplitude_flow(A, y, k, step=step, truncation=truncation, tol=1e-12)

    best = None
    for step in (0.5, 0.75, 1.0, 1.2):
        for truncation in (1.0, 4.0):
            share, histories = phase_trials(flow(step, truncation), m, seeds)
            rank = (-share, steps_to(histories, 1e-10) if histories else np.inf)
            if best is None or rank < best[0]:
                best = rank, flow(step, truncation), (step, truncation)
    return best[1:]


def compare_phase(m, draws, tuning):
    flow, setting = tuned_flow(m, range(1000, 1000 + tuning))
    solvers = {"Newton": newton_hard_thresholding, "pursuit": phase_pursuit, f"flow {setting}": flow}
    rows = {}
    for name, solve in solvers.items():
        share, histories = phase_trials(solve, m, range(draws))
        rows[name.split()[0]] = share, steps_to(histories, 1e-3), steps_to(histories, 1e-10), histories
        print(f"m={m} {name}: found {share:.0%}, median steps to 1e-3 and 1e-10 {rows[name.split()[0]][1:3]}")
    return rows


def exponents(histories):
    """Orders of convergence from three residuals in a row, above rounding."""
    found = []
    for h in histories:
        h = h[h > 1e-13]
        found.append(np.log(h[-1] / h[-2]) / np.log(h[-2] / h[-3]))
    return found


@pytest.mark.claim("S055")
@pytest.mark.parametrize(
    ("draws", "tuning"), [(5, 1), pytest.param(25, 6, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_newton_hard_thresholding_squares_its_error(draws, tuning):
    for m in (500, 700) if draws < 25 else (300, 500, 700):
        rows = compare_phase(m, draws, tuning)
        share, _, steps, histories = rows["Newton"]
        assert np.median(exponents(histories)) >= 1.7
        assert steps <= 8
        assert steps <= 0.45 * rows["flow"][2]
        if draws == 25:
            assert share >= {300: 0.5, 500: 0.9, 700: 0.95}[m]
            assert share >= rows["pursuit"][0]
            assert share >= rows["flow"][0] - 0.05


def relative_error(coef, x):
    return np.linalg.norm(coef - x) / np.linalg.norm(x)


def best_alphas(loss, penalty, alphas, noises, trials):
    """Per noise level the alpha of least median error over the trials, and that error."""
    best = []
    for noise in noises:
        errors = np.empty((len(alphas), trials))
        for seed in range(trials):
            A, x, b = gaussian(seed, 10, n=100, p=200)
            b = b + noise * np.linalg.norm(b) / 10 * rng(seed, "claim", "noise").standard_normal(100)
            for i, alpha in enumerate(alphas):
                errors[i, seed] = relative_error(
                    loss_pursuit(A, b, 40, loss=loss, penalty=penalty, alpha=alpha).coef, x
                )
        medians = np.median(errors, axis=1)
        best.append((alphas[np.argmin(medians)], medians.min()))
    return best


def moved_alphas(penalty, trials, low):
    """How many decades the best alpha moves over two decades of noise, per loss; the errors stay alike."""
    noises, alphas, moved, errors = (1e-3, 1e-2, 1e-1), np.logspace(low, 0, -4 * low + 1), {}, {}
    for loss in ("squared", "square_root"):
        best = best_alphas(loss, penalty, alphas, noises, trials)
        moved[loss], errors[loss] = np.ptp(np.log10([alpha for alpha, _ in best])), np.array([e for _, e in best])
        print(f"{loss} {penalty}: best alpha {[f'{a:.1e}' for a, _ in best]}, error {[f'{e:.1e}' for _, e in best]}")
    assert (errors["square_root"] <= 1.2 * errors["squared"]).all()
    return moved


@pytest.mark.claim("S037")
@pytest.mark.parametrize("trials", [2, pytest.param(15, marks=pytest.mark.slow)], ids=["few", "many"])
def test_the_square_root_loss_is_tuned_once_for_all_noise_levels(trials):
    moved = moved_alphas("l1", trials, low=-6)
    assert moved["squared"] >= 1.5
    assert moved["square_root"] <= 0.5


@pytest.mark.slow
@pytest.mark.claim("S037")
def test_with_an_l0_penalty_it_moves_half_as_far():
    """Not the paper's claim: the count does not scale with the target, so that alpha has to, once and not squared."""
    moved = moved_alphas("l0", 8, low=-9)
    assert moved["squared"] >= 3
    assert moved["square_root"] <= 2.25


@pytest.mark.claim("S037")
@pytest.mark.parametrize("trials", [3, pytest.param(30, marks=pytest.mark.slow)], ids=["few", "many"])
def test_the_absolute_loss_shrugs_off_corrupted_targets(trials):
    errors = {"absolute": [], "squared": []}
    for seed in range(trials):
        A, x, b = gaussian(seed, 10, n=100, p=200)
        generator = rng(seed, "claim", "corrupted")
        b[generator.choice(100, 5, replace=False)] += 10 * np.linalg.norm(b) * generator.standard_normal(5)
        for loss, all_of in errors.items():
            all_of.append(relative_error(loss_pursuit(A, b, 10, loss=loss).coef, x))
    medians = {loss: float(np.median(values)) for loss, values in errors.items()}
    print(f"5 % of the targets corrupted, {trials} draws: median relative error {medians}")
    assert medians["absolute"] <= 1e-3 * medians["squared"]


@pytest.mark.slow
@pytest.mark.claim("S101")
def test_null_space_tuning_needs_fewer_measurements_than_basis_pursuit():
    """k = 20 of 400, 50 signals of Gaussian entries by one matrix; every method gets 4 settings, tuned on others.

    Plain OMP and HTP fall behind too, but not once tuned: OMP takes up to 2 k steps and cuts back, HTP scales its step.
    """
    task = Recovery()
    data, fresh = task.data(0), task.test()
    found = {}
    for name, method in task.methods().items():
        shares = []
        for m in (68, 90, 116):
            fits = [next(candidate.frontier(data, (m,), 0)) for candidate in method.candidates(4, 0)]
            best = max(fits, key=lambda fitted: fitted.score(data.validation))
            shares.append(best.score(fresh))
        found[name] = shares
        print(f"{name}: found {shares} at 68, 90, 116 measurements")
    assert found["adaptive"][1] >= 0.95
    for name in ("lasso", "iht"):
        assert found["adaptive"][0] >= found[name][0] + 0.4
    for name in ("omp", "htp"):
        assert found["adaptive"][0] >= found[name][0] - 0.1


@pytest.mark.claim("S037")
@pytest.mark.parametrize("trials", [10, pytest.param(60, marks=pytest.mark.slow)], ids=["few", "many"])
def test_weights_of_a_rough_guess_find_more(trials):
    """30 measurements, k = 10 of 200, 1 % noise: 8 of the 10 and 20 others are guessed, and weigh 0.2."""
    alphas = (0.01, 0.02, 0.03)
    found = {"guess": dict.fromkeys(alphas, 0), "equal": dict.fromkeys(alphas, 0)}
    for seed in range(trials):
        A, x, b = gaussian(seed, 10, n=30, p=200)
        generator, support, weights = rng(seed, "claim", "guess"), np.flatnonzero(x), np.ones(200)
        b = b + 0.01 * np.linalg.norm(b) / 30**0.5 * generator.standard_normal(30)
        weights[generator.choice(200, 20, replace=False)] = 0.2
        weights[support[2:]], weights[support[:2]] = 0.2, 1
        for alpha in alphas:
            for name, own in (("guess", weights), ("equal", None)):
                coef = loss_pursuit(A, b, 20, loss="square_root", alpha=alpha, weights=own).coef
                found[name][alpha] += int(relative_error(coef, x) < 0.05)
    print(f"of {trials} found, by alpha: {found}")
    assert max(found["guess"].values()) >= 1.3 * max(found["equal"].values())
