"""Sparse storage: what each layout keeps, costs and gives back, against the dense twin and the published alternatives.

Quality and counts; speed is measured by ``benchmarks/kernels.py`` and ``benchmarks/finalized.py``.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ellzero.data import sets
from ellzero.layouts import base
from ellzero.layouts.butterfly import BlockButterflyLowRank, butterfly_mask
from ellzero.layouts.butterfly_nn import ButterflyLinear
from ellzero.layouts.condensed import Condensed
from ellzero.layouts.cost import CostModel, Hardware, Layer, Sample
from ellzero.layouts.grouped import CSR, RowGroup
from ellzero.layouts.nmg import NMG
from ellzero.layouts.nn import SparseConv2d, SparseLinear
from ellzero.layouts.rearranging import Tied, group_rows, grouped_mask, rearrange
from ellzero.models import layer_report
from ellzero.network.frontier import accuracy
from ellzero.parts.constraints import NM as KeepNM
from ellzero.parts.schedules import Cosine
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches, train
from ellzero.training.threads import threads_for


def masked(rows, columns, density, seed=0, group=1):
    g = np.random.default_rng(seed)
    keep = np.repeat(g.random((rows // group, columns)) < density, group, axis=0)
    return np.where(keep, g.standard_normal((rows, columns)), 0).astype(np.float32)


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = torch.from_numpy(weight)
    return layer


@pytest.mark.claim("S028")
def test_both_gradients_at_the_stored_places_without_a_dense_matrix():
    """768 x 3072 at 5 %: gradients equal dense autograd under the mask; a step allocates under a third of W."""
    W = masked(768, 3072, 0.05)
    dense, x = linear(W), torch.from_numpy(np.random.default_rng(1).standard_normal((32, 3072)).astype(np.float32))
    sparse = SparseLinear.from_linear(dense, "csr")
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    dense(a).sin().sum().backward()
    sparse(b).sin().sum().backward()
    row, column = np.nonzero(W)
    want = dense.weight.grad.numpy()[row, column]
    off = np.linalg.norm(sparse.value.grad.numpy()[:, 0] - want) / np.linalg.norm(want)
    off_x = float((b.grad - a.grad).norm() / a.grad.norm())
    b.grad = sparse.value.grad = sparse.bias.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        sparse(b).sin().sum().backward()
    tracemalloc.start()
    sparse(b).sin().sum().backward()
    largest = max(event.cpu_memory_usage for event in seen.events())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"dW off by {off:.1e}, dX by {off_x:.1e}")
    print(f"largest tensor {largest / W.nbytes:.2f} of W, arrays {peak / W.nbytes:.2f}")
    assert max(off, off_x) < 1e-4
    assert max(largest, peak) < W.nbytes / 3
    assert b.grad is not None


@pytest.mark.claim("S052")
def test_constant_fan_in_costs_six_bytes_an_input_and_ablated_rows_nothing():
    """768 x 3072 at 10 % with a quarter of the rows ablated: bytes, operations, and the same function."""
    g = np.random.default_rng(0)
    W = np.zeros((768, 3072), np.float32)
    alive = np.sort(g.permutation(768)[:576])
    fan_in = int(0.1 * 3072 * 768 / 576)  # the survivors share what the ablated rows gave up
    for i in alive:
        W[i, g.permutation(3072)[:fan_in]] = g.standard_normal(fan_in)
    stored = Condensed.from_dense(W)
    overhead = stored.nbytes - 6 * stored.nnz
    print(f"fan-in {stored.fan_in}, {stored.nnz} inputs, {stored.nbytes} bytes; dense {W.nbytes / stored.nbytes:.2f}x")
    assert stored.nnz == 576 * fan_in == np.count_nonzero(W)
    assert overhead == 8 * 576  # which rows are kept
    assert stored.nbytes < CSR.from_dense(W).nbytes
    assert W.nbytes / stored.nbytes > 6.5
    dense = linear(W)
    layer = SparseLinear.from_linear(dense, "condensed")
    with torch.no_grad():
        x = torch.from_numpy(g.standard_normal((1, 3072)).astype(np.float32))
        assert float((layer(x) - dense(x)).norm() / dense(x).norm()) < 1e-5
        ablated = np.setdiff1d(np.arange(768), alive)
        assert torch.equal(layer(x)[0, ablated], layer.bias[ablated])


@pytest.mark.claim("S059")
def test_nmg_keeps_more_than_blocks_and_nearly_as_much_as_nm():
    """Kept magnitude on Gaussian weights at half density, five draws: unstructured > n:m > n:m:g > blocks."""
    kept = []
    for seed in range(5):
        W = np.random.default_rng(seed).standard_normal((96, 96)).astype(np.float32)
        norms = np.abs(W).reshape(24, 4, 24, 4).sum(axis=(1, 3))
        ways = {
            "unstructured": np.abs(W) >= np.median(np.abs(W)),
            "2:4": KeepNM(2, 4).support(np.abs(W)),
            "2:4:4": NMG.fit(W, n=2, m=4, g=4).to_dense() != 0,
            "blocks": np.kron(norms >= np.median(norms), np.ones((4, 4))) > 0,
        }
        kept.append([float(np.abs(W[mask]).sum() / np.abs(W).sum()) for mask in ways.values()])
    mean = np.mean(kept, axis=0)
    print("kept magnitude:", ", ".join(f"{name} {share:.3f}" for name, share in zip(ways, mean)))
    assert all((np.diff(row) < 0).all() for row in kept)
    assert mean[2] - mean[3] > 0.1
    assert mean[1] - mean[2] < 0.1


@pytest.mark.claim("S059")
def test_a_layout_of_ones_own_in_thirty_lines_runs_a_model():
    class Columns(base.Layout):
        """Whole columns."""

        name = "claim-columns"

        def __init__(self, shape, index, value):
            self.shape, self.index, self.value = shape, index, value

        @classmethod
        def from_dense(cls, matrix, **settings):
            index = np.flatnonzero(matrix.any(axis=0))
            return cls(matrix.shape, index, np.ascontiguousarray(matrix[:, index]))

        def to_dense(self):
            dense = np.zeros(self.shape, self.value.dtype)
            dense[:, self.index] = self.value
            return dense

        def tensors(self):
            return {"index": self.index, "value": self.value}

        @classmethod
        def from_parts(cls, tensors, facts):
            return cls(tuple(facts["shape"]), tensors["index"], tensors["value"])

        nnz = property(lambda self: self.value.size)

        def matmul(self, x, *, bias=None, n_threads=None):
            out = self.value @ x[self.index]
            return out if bias is None else out + bias[:, None]

    try:
        W = masked(32, 64, 1.0) * (np.arange(64) % 3 == 0)
        dense = nn.Sequential(linear(W.astype(np.float32)), nn.ReLU())
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)).requires_grad_()
        twin = x.detach().clone().requires_grad_()
        model = nn.Sequential(SparseLinear.from_linear(dense[0], "claim-columns"), nn.ReLU())
        torch.testing.assert_close(model(x), dense(twin), rtol=1e-5, atol=1e-5)
        with pytest.warns(
            base.DenseFallbackWarning, match="rmatmul has no implementation for the layout 'claim-columns'"
        ):
            model(x).sum().backward()
        dense(twin).sum().backward()
        torch.testing.assert_close(x.grad, twin.grad, rtol=1e-5, atol=1e-5)
    finally:
        del base._LAYOUTS["claim-columns"]


@pytest.mark.claim("S063")
def test_a_butterfly_and_low_rank_fit_products_of_butterflies_better_than_random_blocks():
    """Relative error at equal parameters, three draws; every row of the mask has 1 + log2 k blocks."""
    assert (butterfly_mask(32, 32, 8).sum(axis=1) == 1 + 3).all()
    errors = []
    for seed in range(3):
        g = np.random.default_rng(seed)
        apart = np.arange(16)[:, None] ^ np.arange(16)[None]
        factors = [np.kron((apart == 0) | (apart == t), np.ones((4, 4))) * g.standard_normal((64, 64)) for t in (1, 2)]
        W = (factors[0] @ factors[1]).astype(np.float32)
        ours = BlockButterflyLowRank.from_dense(W, block=4, max_stride=4, rank=8)
        scores = g.random((16, 16))
        random = W * np.kron(scores >= np.sort(scores.ravel())[-((ours.nnz + 15) // 16)], np.ones((4, 4)))
        errors.append([np.linalg.norm(fit - W) / np.linalg.norm(W) for fit in (ours.to_dense(), random)])
    print(f"relative error: butterfly + rank 8 {np.mean(errors, 0)[0]:.3f}, random blocks {np.mean(errors, 0)[1]:.3f}")
    assert (np.array(errors)[:, 0] < 0.8 * np.array(errors)[:, 1]).all()


def trained(make, X, y, split, seed, lr, steps, batch_size=128):
    torch_model = make(seed)
    optimizer = torch.optim.AdamW(torch_model.parameters(), lr=lr, weight_decay=1e-4)
    batches = Batches(torch.from_numpy(X[:split]), torch.from_numpy(y[:split]), batch_size=batch_size, seed=seed)
    with threads_for(0):
        train(torch_model, losses.classification, batches, optimizer=optimizer, steps=steps, schedule=Cosine(1.0, 0.0),
              clip=5.0)  # fmt: skip
    return 100 * accuracy(torch_model, X[split:], y[split:])


def _dense_net(inputs, hidden):
    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )

    return make


def _butterfly_net(inputs, hidden, density, block):
    def make(seed):
        torch.manual_seed(seed)
        layer = [ButterflyLinear.of_density(n, hidden, density, block=block, seed=seed + i)
                 for i, n in enumerate((inputs, hidden))]  # fmt: skip
        return nn.Sequential(layer[0], nn.ReLU(), layer[1], nn.ReLU(), nn.Linear(hidden, 10))

    return make


@pytest.mark.slow
@pytest.mark.claim("S063")
def test_a_butterfly_net_trains_as_well_as_dense_at_under_a_third_of_the_weights():
    """1024-512-512-10 on 10,000 MNIST digits padded to 32 x 32, 30 % of the weights, three seeds.

    Each takes the best of four rates at half of the steps, by training rows held out. Fourteen runs of ten seconds:
    with fewer steps neither has converged, and with fewer seeds half a point is within the draws.
    """
    why = sets.missing("networks/mnist-t10k-images-idx3-ubyte.gz", "networks/mnist-t10k-labels-idx1-ubyte.gz")
    if why:
        pytest.skip(why)
    table = sets.mnist().table()
    order = rng(0, "claims", "rows").permutation(len(table.y))
    X = np.pad(table.X.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))).reshape(-1, 1024)[order].astype(np.float32)
    y = table.y[order]
    found = {}
    for name, make in (("dense", _dense_net(1024, 512)), ("butterfly", _butterfly_net(1024, 512, 0.3, 32))):
        rate = max(
            (1.5e-3, 3e-3, 6e-3, 1.2e-2),
            key=lambda lr: trained(make, X[:8000], y[:8000], split=6400, seed=99, lr=lr, steps=315),
        )
        found[name] = np.array([trained(make, X, y, split=8000, seed=s, lr=rate, steps=630) for s in range(10, 13)])
        print(
            f"{name}: {found[name].mean():.2f} % +- {found[name].std(ddof=1) / 3**0.5:.2f} at rate {rate}", flush=True
        )
    assert (found["dense"] - found["butterfly"]).mean() < 0.5


@pytest.mark.claim("S089")
def test_large_and_sparse_beats_small_and_dense_until_activations_dominate():
    """Hardware of bank-balanced units up to 32x: speed-up saturates, and at equal time a sparse layer is wider."""
    model = CostModel(Hardware(1e14, 5e11, ratios=(2, 4, 8, 16, 32)))
    times = {r: model.cost(Layer(4096, 4096, 512, 1 / r, "bank-balanced")) for r in (1, 2, 4, 8, 16, 32)}
    gains = {r: times[1].seconds / cost.seconds for r, cost in times.items()}
    print("speed-up by ratio:", ", ".join(f"{r}: {gain:.2f} ({times[r].bound})" for r, gain in gains.items()))
    assert gains[2] == pytest.approx(2)
    assert gains[32] < 32
    assert times[1].bound == "compute"
    assert times[32].bound == "activations"
    wide, narrow = (model.cost(layer).seconds for layer in
                    (Layer(8192, 8192, 4096, 1 / 8, "bank-balanced"), Layer(4096, 4096, 4096)))  # fmt: skip
    assert wide < narrow  # four times the places, half of the weights
    assert model.speedup([Layer(4096, 4096, 512, 1 / 32, "bank-balanced"), Layer(4096, 4096, 512)])[
        "ceiling"
    ] == pytest.approx(2)


@pytest.mark.slow
@pytest.mark.claim("S089")
def test_the_cost_model_ranks_this_machines_kernels():
    """Calibrated on five shapes per layout, it ranks the measured times of shapes that it has not seen."""
    torch.set_num_threads(1)
    predicted, measured = [], []
    samples: dict[str, list[Sample]] = {}
    for candidate in ("dense", "csr", "row-group-4", "condensed"):
        for rows, columns, batch in (
            (1024, 768, 1),
            (3072, 1024, 1),
            (256, 768, 64),
            (768, 1024, 64),
            (1024, 1024, 16),
        ):
            spent = layer_report._seconds(candidate, rows, columns, batch, 9)
            layer = layer_report._layer(candidate, rows, columns, batch, 0.15)
            samples.setdefault(candidate, []).append(Sample(layer, spent))
            predicted.append(layer_report.foretold((rows, columns), batch, {candidate: 0.15})[candidate])
            measured.append(spent)
    ranks = np.argsort(np.argsort(predicted)), np.argsort(np.argsort(measured))
    correlation = np.corrcoef(*ranks)[0, 1]
    off = np.abs(np.log(np.array(predicted) / measured))
    print(
        f"rank correlation {correlation:.2f}; median error {100 * np.median(np.exp(off) - 1):.0f} %, {len(off)} kernels"
    )
    assert correlation > 0.8


@pytest.mark.claim("S090")
def test_a_sparse_pointwise_convolution_does_the_stored_share_of_the_work():
    """512 channels on 14 x 14 at 90 %: the dense convolution's output, a tenth of the products, no unfolded image."""
    conv = nn.Conv2d(512, 512, 1)
    W = masked(512, 512, 0.1, group=4)
    conv.weight.data = torch.from_numpy(W).reshape(512, 512, 1, 1)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 512, 14, 14)).astype(np.float32))
    grouped, loose = SparseConv2d.from_conv(conv, "row-group"), SparseConv2d.from_conv(conv, "csr")
    with torch.no_grad():
        want = conv(x)
        for sparse in (grouped, loose):
            off = float((sparse(x) - want).norm() / want.norm())
            assert off < 1e-5
    share = grouped.layout.nnz / W.size
    # what one activation that is loaded serves: the rows of a group, against one row
    loads = {"row group 4": len(grouped.layout.pattern.index), "CSR": len(loose.layout.pattern.index)}
    print(f"products {share:.3f} of dense; activations loaded {loads}")
    assert abs(share - 0.1) < 0.01
    assert loads["CSR"] == 4 * loads["row group 4"]
    assert grouped.layout.nbytes < 0.13 * W.nbytes


@pytest.mark.claim("S156")
def test_rearranged_rows_keep_more_and_the_networks_function_stays():
    """Kept energy in groups of 4 at 20 % on filters of hidden kinds: unstructured > rearranged > as given."""
    shares = []
    for seed in range(3):
        g = np.random.default_rng(seed)
        kinds = g.random((8, 96)) < 0.2
        W = g.standard_normal((32, 96)) * np.where(kinds[g.integers(0, 8, 32)], 1.0, 0.3)
        energy = W**2
        order = group_rows(energy, 4, 0.2)
        free = np.sort(energy.ravel())[-int(0.2 * energy.size) :].sum()
        ways = [free, *((e * grouped_mask(e, 4, 0.2)).sum() for e in (energy[order], energy))]
        shares.append([float(way / energy.sum()) for way in ways])
    mean = np.mean(shares, axis=0)
    print(f"kept energy: unstructured {mean[0]:.3f}, rearranged groups {mean[1]:.3f}, groups as given {mean[2]:.3f}")
    assert all(a > b > c for a, b, c in shares)
    assert mean[1] - mean[2] > 0.05
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1)).eval()
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        before = net(x)
        rearrange(Tied([net[0]], [net[3]], [net[1]]), 4, 0.2)
        off = float((net(x) - before).abs().max() / before.abs().max())
    print(f"output off by {off:.1e}")
    assert off < 1e-5
    stored = RowGroup.from_dense(np.where(grouped_mask(energy[order], 4, 0.2), W[order], 0).astype(np.float32))
    assert stored.nnz == 32 * round(0.2 * 96)
