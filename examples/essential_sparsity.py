"""How much of a trained network can go at once: accuracy under one-shot cuts, and the knee of each curve.

    python examples/essential_sparsity.py [OUT.html] [STEPS]

A 64-128-64-10 perceptron on handwritten digits of 8 x 8 pixels, judged on 497 held-out rows, nothing trained after a
cut. Left: the same network after a part of its training and after all of it, cut by one threshold; circles are knees,
ticks the last sparsity within a point of the whole network. Right: the fully trained one, cut in four ways.
"""

import sys

import numpy as np
import torch
from plotly.subplots import make_subplots

from ellzero.data import sets
from ellzero.models.mlp import MLPConfig
from ellzero.network import essential_sparsity, fitter
from ellzero.network.frontier import accuracy
from ellzero.parts.constraints import NM
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches

GRID = np.linspace(0, 0.975, 40)
PARTS = {0.05: "#c6d2e3", 0.2: "#7f97bb", 1.0: "#1f5fb3"}
CUTS = {
    "one threshold": ({"allocation": "global"}, "#1f5fb3"),
    "the same in each layer": ({"allocation": "uniform"}, "#2a7d4f"),
    "n of 8 inputs": ({"pattern": lambda s: NM(round(8 * (1 - s)), 8), "sparsities": np.arange(8) / 8}, "#c99700"),
}  # fmt: skip


def trained(X, y, steps: int) -> torch.nn.Module:
    """A network of the same first weights and batches, whatever the number of steps."""
    model = MLPConfig(64, 10).build(0)
    rows = torch.from_numpy(X[:1300]), torch.from_numpy(y[:1300])
    fitter(losses.classification, lambda seed: Batches(*rows, batch_size=64, seed=seed), steps=steps)(model, None, 0)
    return model


def drawn_at_random(model: torch.nn.Module, judge) -> list[float]:
    """Accuracy where the entries that go are any, as many in each layer."""
    state, found = model.state_dict(), []
    for sparsity in GRID:
        cut = {name: value.clone() for name, value in state.items()}
        for name, value in cut.items():
            if value.ndim == 2:
                value[torch.from_numpy(rng(0, name).random(tuple(value.shape)) < sparsity)] = 0
        other = MLPConfig(64, 10).build(0)
        other.load_state_dict(cut)
        found.append(judge(other))
    return found


def main(out: str = "essential_sparsity.html", steps: str = "1000") -> None:
    table, order = sets.digits(), rng(0, "rows").permutation(1797)
    X, y = (table.X / 16)[order].astype(np.float32), table.y[order]
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.04, x_title="dropped share of the weights",
        y_title="accuracy on held-out rows", subplot_titles=("longer training, later knee", "what goes matters"),
    )  # fmt: skip

    def judge(model: torch.nn.Module) -> float:
        return accuracy(model, X[1300:], y[1300:])

    def draw(found, name: str, colour: str, col: int) -> None:
        legend = "legend" if col == 1 else "legend2"
        figure.add_scatter(x=found.sparsities, y=found.quality, name=name, line_color=colour, legend=legend, row=1,
                           col=col)  # fmt: skip
        for place, symbol in ((found.knee, "circle-open"), (found.essential, "line-ns-open")):
            at = [found.quality[np.searchsorted(found.sparsities, place)]]
            figure.add_scatter(x=[place], y=at, mode="markers", showlegend=False, row=1, col=col,
                               marker={"symbol": symbol, "size": 12, "color": colour, "line_width": 3})  # fmt: skip

    for part, colour in PARTS.items():
        model = trained(X, y, max(1, round(part * int(steps))))
        found = essential_sparsity(model, judge, GRID)
        draw(found, f"{part:.0%} of the steps", colour, 1)
        print(f"{part:.0%} of the steps: essential sparsity {found.essential:.2f}, knee {found.knee:.2f}")
    for name, (options, colour) in CUTS.items():
        draw(essential_sparsity(model, judge, **{"sparsities": GRID, **options}), name, colour, 2)
    figure.add_scatter(x=GRID, y=drawn_at_random(model, judge), name="at random", line_color="#b3401f",
                       legend="legend2", row=1, col=2)  # fmt: skip
    corner = {"y": 0.04, "yanchor": "bottom", "bgcolor": "rgba(255,255,255,0.8)"}
    figure.update_layout(
        template="plotly_white", height=480, width=1000, margin={"l": 80, "r": 20, "t": 40, "b": 70},
        legend={"x": 0.01, **corner}, legend2={"x": 0.53, **corner},
    )  # fmt: skip
    figure.update_yaxes(range=[0, 1.03])
    figure.update_xaxes(range=[0, 1])
    figure.write_html(out, include_plotlyjs=True)
    print(f"drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
