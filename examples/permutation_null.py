"""Is there anything to find? The largest coefficient of a Lasso path, beside those of permuted targets.

    python examples/permutation_null.py [OUT.html] [PERMUTATIONS]

80 rows of 1000 columns: on the left three columns tell a little about the target, on the right none does. Both paths
pick columns and give them coefficients. Blue is what permuted targets give (the middle 90 %, and the median), all of
their paths solved as one bundle; red is the data. Below, the null at the alpha where the left one stands out most.
"""

import sys

import numpy as np
from plotly.subplots import make_subplots

from ellzero.data import planted_regression
from ellzero.linear import permutation_test
from ellzero.rng import rng

RED, BLUE = "#b3401f", "#1f5fb3"


def tests(permutations: int) -> dict[str, object]:
    """The permutation test with and without a signal, on the same columns."""
    data = planted_regression(80, 1000, 3, snr=1.0, seed=0)
    noise = rng(0, "noise").permutation(data.y)
    targets = {"three columns tell something": data.y, "no column tells anything": noise}
    options = {"statistic": "max_coef", "n_permutations": permutations, "n_alphas": 15, "eps": 0.3}
    return {title: permutation_test(data.X, y, **options) for title, y in targets.items()}


def main(out: str = "permutation_null.html", permutations: str = "200") -> None:
    found = tests(int(permutations))
    titles = [f"{title}: p = {test.p_value:.3f}" for title, test in found.items()]
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.06,
                           shared_yaxes="rows")  # fmt: skip
    place = int(np.argmin(next(iter(found.values())).p_values))
    for i, test in enumerate(found.values()):
        low, middle, high = np.quantile(test.null, [0.05, 0.5, 0.95], axis=1)
        top, bottom = {"row": 1, "col": i + 1}, {"row": 2, "col": i + 1}
        band = {"x": np.r_[test.alphas, test.alphas[::-1]], "y": np.r_[high, low[::-1]]}
        figure.add_scatter(**band, fill="toself", fillcolor="rgba(31, 95, 179, 0.2)", line_width=0,
                           name="permuted: 90 %", showlegend=i == 0, **top)  # fmt: skip
        figure.add_scatter(x=test.alphas, y=middle, line_color=BLUE, mode="lines", name="permuted: median",
                           showlegend=i == 0, **top)  # fmt: skip
        figure.add_scatter(x=test.alphas, y=test.observed, line={"color": RED, "width": 3}, mode="lines", name="data",
                           showlegend=i == 0, **top)  # fmt: skip
        figure.add_histogram(x=test.null[place], marker_color=BLUE, opacity=0.6, showlegend=False, nbinsx=30, **bottom)
        figure.add_vline(x=test.observed[place], line={"color": RED, "width": 3}, **bottom)
        figure.update_xaxes(title="alpha", autorange="reversed", **top)
        figure.update_xaxes(title=f"largest |coefficient| at alpha {test.alphas[place]:.2f}", **bottom)
    figure.update_yaxes(title="largest |coefficient|", row=1, col=1)
    figure.update_yaxes(title="permutations", row=2, col=1)
    figure.update_layout(template="plotly_white", height=640, width=1000, margin={"l": 60, "r": 20, "t": 60, "b": 50})
    figure.write_html(out, include_plotlyjs=True)
    worst = max(test.gap for test in found.values())
    print(f"{'; '.join(titles)}; largest gap of all fits {worst:.1e}; drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
