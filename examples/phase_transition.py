"""Where sparse recovery works: the share of vectors found, over undersampling m / p and sparsity k / m.

    python examples/phase_transition.py [OUT.html] [SIGNALS] [COLUMNS]

Gaussian matrices of 200 columns, Gaussian entries, no noise, 12 vectors a place. Each panel is a method; its line is
where it finds half, the dashed one where the Lasso does. Above and to the left there is nothing to find.
"""

import sys

import numpy as np
from plotly.subplots import make_subplots

from ellzero.linear.recovery_methods import FittedRecovery, Systems, methods, share_recovered
from ellzero.rng import rng

UNDERSAMPLING, SPARSITY = np.linspace(0.1, 0.9, 9), np.linspace(0.05, 0.85, 11)
TITLES = {"lasso": "Lasso (basis pursuit)", "omp": "OMP", "iht": "IHT", "htp": "HTP", "nst": "NST+HT+FB",
          "adaptive": "NST+HT+FB, k unknown"}  # fmt: skip


def draw(columns: int, m: int, k: int, signals: int) -> Systems:
    """Vectors with k entries, measured m times by one matrix."""
    stream = rng(0, "phase transition", m, k)
    A, coefs = stream.standard_normal((m, columns)), np.zeros((columns, signals))
    for column in coefs.T:
        column[stream.choice(columns, k, replace=False)] = stream.standard_normal(k)
    return Systems(A, coefs, A @ coefs, k)


def shares(columns: int, signals: int) -> dict[str, np.ndarray]:
    """Per method the share found, ``[sparsity, undersampling]``."""
    grid = {name: np.zeros((len(SPARSITY), len(UNDERSAMPLING))) for name in TITLES}
    for i, j in np.ndindex(len(SPARSITY), len(UNDERSAMPLING)):
        m = round(UNDERSAMPLING[j] * columns)
        systems = draw(columns, m, max(1, round(SPARSITY[i] * m)), signals)
        for name, method in methods().items():
            found = FittedRecovery(method, systems.A, systems.k, 0.0).recover(systems.b)
            grid[name][i, j] = share_recovered(found, systems)
    return grid


def main(out: str = "phase_transition.html", signals: str = "12", columns: str = "200") -> None:
    grid = shares(int(columns), int(signals))
    figure = make_subplots(
        2, 3, subplot_titles=list(TITLES.values()), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.09,
        horizontal_spacing=0.03, x_title="measurements / columns", y_title="entries / measurements",
    )  # fmt: skip
    red = [[0, "#b3401f"], [1, "#b3401f"]]
    for i, name in enumerate(TITLES):
        common = {"x": UNDERSAMPLING, "y": SPARSITY, "row": i // 3 + 1, "col": i % 3 + 1}
        half = {"contours": {"start": 0.5, "end": 0.5, "coloring": "lines"}, "colorscale": red, "showscale": False}
        figure.add_heatmap(z=grid[name], zmin=0, zmax=1, colorscale="Blues", showscale=i == 0, **common)
        figure.add_contour(z=grid[name], line={"width": 3}, **half, **common)
        figure.add_contour(z=grid["lasso"], line={"width": 2, "dash": "dash"}, **half, **common)
    figure.update_layout(template="plotly_white", height=640, width=1000, margin={"l": 70, "r": 20, "t": 40, "b": 70})
    figure.write_html(out, include_plotlyjs=True)
    area = ", ".join(f"{title} {grid[name].mean():.2f}" for name, title in TITLES.items())
    print(f"share of the square that is recovered: {area}; drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
