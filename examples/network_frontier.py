"""The frontier of six ways to make a network sparse, with error bars: accuracy against density at equal steps.

    python examples/network_frontier.py [OUT.html] [SEEDS] [STEPS]

The 8 x 8 digits, a 64-256-128-10 perceptron. A point is the mean over seeds, its bar the standard error; the band is
the dense network. In the legend, what training costs at the sparsest point, as a share of a dense run's multiply-adds.
"""

import sys

import numpy as np
from plotly.graph_objects import Figure

from ellzero.compare.tasks.network import Network

COLOURS = {
    "gradual-global": "#1f5fb3", "rigl": "#b3401f", "set": "#2a7d4f", "static-erk": "#c99700",
    "static-uniform": "#8a5fb0", "one-shot": "#777777",
}  # fmt: skip
DENSITIES = (0.01, 0.02, 0.05, 0.1)


def main(out: str = "network_frontier.html", seeds: str = "3", steps: str = "250") -> None:
    task, figure = Network(steps=int(steps)), Figure()
    parts = [task.data(seed) for seed in range(int(seeds))]
    methods = task.methods()

    def scores(name: str, density: float) -> tuple[float, float, float]:
        fits = [next(methods[name].frontier(data, [density], seed)) for seed, data in enumerate(parts)]
        found = [100 * fit.score(data.validation) for fit, data in zip(fits, parts)]
        error = np.std(found, ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0
        return np.mean(found), error, fits[0].report.cost.training

    mean, error, _ = scores("dense", 1.0)
    figure.add_hrect(mean - error, mean + error, fillcolor="#444444", opacity=0.25, line_width=0)
    figure.add_annotation(x=np.log10(DENSITIES[-1]), y=mean, text="dense", yshift=12, showarrow=False)
    for place, (name, colour) in enumerate(COLOURS.items()):
        means, errors, costs = zip(*(scores(name, density) for density in DENSITIES))
        aside = np.array(DENSITIES) * 1.02 ** (place - 2.5)  # so that bars do not hide each other
        figure.add_scatter(
            x=aside, y=means, error_y={"array": errors}, name=f"{name}, {costs[0]:.2f}", line_color=colour,
            mode="lines+markers",
        )  # fmt: skip
    figure.update_xaxes(type="log", title="density", tickvals=DENSITIES)
    figure.update_yaxes(title="accuracy on validation rows, %")
    figure.update_layout(template="plotly_white", height=520, width=900, margin={"l": 70, "r": 20, "t": 20, "b": 60},
                         legend={"title": "method, cost of training"})  # fmt: skip
    figure.write_html(out, include_plotlyjs=True)
    print(f"{len(COLOURS)} methods, {len(parts)} seeds, drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
