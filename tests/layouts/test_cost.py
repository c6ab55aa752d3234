"""The cost model: its roofline by hand, hardware with fixed ratios, and calibration that predicts other shapes."""

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.layouts.cost import CostModel, Hardware, Layer, Sample

MACHINE = Hardware(1e11, 1e10, overhead=1e-6)


def test_the_roofline_by_hand():
    model = CostModel(MACHINE, {"csr": (0.5, 0.8)})
    cost = model.cost(Layer(1000, 2000, 64, 0.1, "csr"))
    assert cost.compute_seconds == pytest.approx(2 * 2e5 * 64 / 5e10)
    assert cost.weight_seconds == pytest.approx(2e5 * 6 / 8e9)
    assert cost.activation_seconds == pytest.approx(3000 * 64 * 4 / 8e9)
    assert cost.seconds == pytest.approx(1e-6 + max(cost[1:4]))
    assert cost.joules == pytest.approx(2 * 2e5 * 64 * 1e-12 + (1.2e6 + 768e3) * 2e-11)
    assert cost.bound == "compute"
    assert model.cost(Layer(1000, 2000, 1, 0.1, "csr")).bound == "weights"
    assert model.cost(Layer(1000, 2000, 64, 0.001, "csr")).bound == "activations"


def test_bank_balanced_units_round_the_density_up():
    machine = Hardware(1e14, 1e12, ratios=(2, 4, 8, 16, 32))
    assert [machine.density(d) for d in (1.0, 0.6, 0.5, 0.3, 1 / 32, 0.001)] == [1, 1, 0.5, 0.5, 1 / 32, 1 / 32]
    model = CostModel(machine)
    dense, quarter = (model.cost(Layer(4096, 4096, 4096, 0.25, kind)) for kind in ("dense", "bank-balanced"))
    assert dense.compute_seconds / quarter.compute_seconds == 4


def test_a_large_sparse_model_beats_a_small_dense_one_until_activations_dominate():
    model = CostModel(Hardware(1e14, 5e11, ratios=(2, 4, 8, 16, 32)))
    times = [model.cost(Layer(4096, 4096, 512, 1 / r, "bank-balanced")).seconds for r in (1, 2, 4, 8, 16, 32)]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[1] == pytest.approx(2)
    assert times[-2] / times[-1] < 1.01  # saturated
    rows = [Layer(4096, 4096, 512, 1 / 32, "bank-balanced"), Layer(4096, 4096, 512)]
    seen = model.speedup(rows)
    assert seen["ceiling"] == pytest.approx(2)
    assert 1 < seen["realised"] < seen["ceiling"]
    assert seen["nominal"] == pytest.approx(2 / (1 + 1 / 32))


def test_calibrated_on_three_shapes_it_predicts_three_others():
    g = np.random.default_rng(0)
    true = CostModel(Hardware(1e11, 3e10), {"csr": (0.5, 0.7)})
    shapes = [(768, 3072, 64, 0.1), (4096, 4096, 1, 0.1), (512, 512, 256, 0.05)]
    shapes += [(3072, 768, 128, 0.2), (2048, 2048, 1, 0.05), (1024, 4096, 32, 0.1)]
    layers = [Layer(*shape, "csr") for shape in shapes]
    noisy = [Sample(layer, true.cost(layer).seconds * np.exp(0.05 * g.standard_normal())) for layer in layers]
    fitted = CostModel.calibrated(noisy[:3])
    for layer, _ in noisy[3:]:
        assert fitted.cost(layer).seconds == pytest.approx(true.cost(layer).seconds, rel=0.25)


def test_bad_input():
    layer = Layer(4, 4, 1, 0.5, "csr")
    for call, words in [
        (lambda: Hardware(0, 1), "flops"),
        (lambda: Hardware(1, 1, ratios=(0,)), "ratios"),
        (lambda: CostModel(MACHINE).cost(layer._replace(density=1.5)), "density"),
        (lambda: CostModel(MACHINE).cost(layer._replace(layout="coo")), "layout: got 'coo'"),
        (lambda: CostModel.calibrated([]), "samples: got none"),
        (lambda: CostModel.calibrated([Sample(layer, 1.0)]), "got 1 of the layout 'csr', want at least 3"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
