"""The order of rows: a permutation that never keeps less, and networks whose function stays under it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from ellzero.errors import InputError  # noqa: E402
from ellzero.layouts.rearranging import Tied, group_rows, grouped_mask, rearrange  # noqa: E402


def kept(importance, group, density):
    return float((importance * grouped_mask(importance, group, density)).sum())


@given(st.integers(0, 99), st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(1, 20), st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_the_order_is_a_permutation_that_never_keeps_less(seed, group, groups, columns, density):
    importance = np.random.default_rng(seed).random((group * groups, columns))
    order = group_rows(importance, group, density)
    assert sorted(order) == list(range(group * groups))
    assert kept(importance[order], group, density) >= kept(importance, group, density) - 1e-9


def test_rows_of_hidden_kinds_find_each_other():
    g = np.random.default_rng(0)
    patterns = np.kron(np.eye(4), np.ones(3))
    kind = g.permutation(np.repeat(np.arange(4), 4))
    order = group_rows(patterns[kind], 4, 0.25)
    assert all(len(set(kind[order[i : i + 4]])) == 1 for i in range(0, 16, 4))


def test_small_cases_reach_the_best_of_all_orders():
    from itertools import permutations

    g = np.random.default_rng(1)
    for _ in range(5):
        importance = g.random((4, 6)) ** 3
        best = max(kept(importance[list(order)], 2, 0.5) for order in permutations(range(4)))
        assert kept(importance[group_rows(importance, 2, 0.5)], 2, 0.5) == pytest.approx(best)


def test_a_network_with_norms_depthwise_and_residual_keeps_its_function():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.depth, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
            self.slope, self.last = nn.PReLU(8), nn.Linear(8 * 16, 5)

        def forward(self, x):
            x = self.slope(self.norm(self.first(x)))
            x = x + self.point(self.depth(x))
            return self.last(x.flatten(1))

    net = Net().eval()
    with torch.no_grad():
        for buffer in (net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias, net.slope.weight):
            buffer.uniform_(0.5, 2)
        x = torch.randn(2, 3, 4, 4)
        before = net(x)
        weight = net.first.weight.clone()
        tied = Tied(
            [net.first, net.point], [net.point, net.depth, net.last][0:1] + [net.last], [net.norm, net.depth, net.slope]
        )
        order = rearrange(tied, 4, 0.5)
        assert not np.array_equal(order, np.arange(8))
        torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(net.first.weight, weight[torch.from_numpy(order)])


def test_bad_input():
    for call, words in [
        (lambda: group_rows(np.ones((6, 3)), 4, 0.5), "importance: got 6 rows"),
        (lambda: group_rows(-np.ones((4, 3)), 4, 0.5), "no negative entry"),
        (lambda: group_rows(np.ones((4, 3)), 4, 0.0), "density"),
        (lambda: rearrange(Tied([nn.Linear(2, 4), nn.Linear(2, 8)], []), 4, 0.5), "want one number of channels"),
        (lambda: rearrange(Tied([nn.Linear(2, 4)], [nn.Linear(6, 2)]), 4, 0.5), "a consumer reads 6 channels"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
