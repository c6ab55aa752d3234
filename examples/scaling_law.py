"""Laws of sparse models: the loss by size and sparsity with bands, and the best sparsity by data.

    python examples/scaling_law.py [OUT.html] [RESAMPLES]

Left: 48 language models of the published table, and the law fitted to them. Middle: models of the same loss, as lines
of parameters against sparsity, each labelled by the dense model that it equals; the bands hold 90 % of the bootstrap.
Right: the best sparsity of a model, by the training that a dense one of its size would get.
"""

import sys
import warnings

import numpy as np
from plotly.subplots import make_subplots

from ellzero.data import sets
from ellzero.network import ScalingLaw, fit_scaling_law

SHADES = {0.0: "#1f5fb3", 0.5: "#2a7d4f", 0.75: "#c99700", 0.875: "#b3401f"}
GRID = np.linspace(0, 0.95, 60)


def clear(colour: str) -> str:
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:], 16)},0.18)"


def band(figure, x, low, high, colour, col) -> None:
    figure.add_scatter(x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=clear(colour), line_width=0,
                       hoverinfo="skip", showlegend=False, row=1, col=col)  # fmt: skip


def resampled(law: ScalingLaw) -> list[ScalingLaw]:
    names = list(law.coefficients)
    return [ScalingLaw(dict(zip(names, row)), law.scales, 0.0, 0.0) for row in law.bootstrap]


def main(out: str = "scaling_law.html", resamples: str = "60") -> None:
    runs = sets.scaling_runs()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        law = fit_scaling_law(*(runs[name] for name in ("sparsity", "nonzeros", "steps", "loss")), restarts=12,
                              bootstrap=int(resamples))  # fmt: skip
    figure = make_subplots(1, 3, horizontal_spacing=0.07,
                           subplot_titles=("1 million steps", "models of equal loss", "the best sparsity"))  # fmt: skip
    size = np.geomspace(8e5, 2e8, 40)
    for sparsity, colour in SHADES.items():
        middle, low, high = law.predict(sparsity, size, 1e6, level=0.9)
        band(figure, size, low, high, colour, 1)
        figure.add_scatter(x=size, y=middle, name=f"{sparsity:.1%} sparse", line_color=colour, row=1, col=1)
        at = (runs["sparsity"] == sparsity) & (runs["steps"] == 1e6)
        figure.add_scatter(x=runs["nonzeros"][at], y=runs["loss"][at], mode="markers", marker_color=colour,
                           showlegend=False, row=1, col=1)  # fmt: skip
    for effective, colour in zip((1e7, 3e7, 1e8), list(SHADES.values())[:3]):
        drawn = np.stack([effective / other.effective_size(GRID, 1.0) for other in resampled(law)])
        band(figure, GRID, *np.quantile(drawn, [0.05, 0.95], axis=0), colour, 2)
        figure.add_scatter(x=GRID, y=effective / law.effective_size(GRID, 1.0), line_color=colour, showlegend=False,
                           row=1, col=2)  # fmt: skip
        figure.add_annotation(x=0.02, y=np.log10(effective), text=f"{effective:.0e} dense", showarrow=False,
                              xanchor="left", yanchor="bottom", row=1, col=2)  # fmt: skip
    data = np.geomspace(1e5, 1e8, 13)
    for nonzeros, colour in zip((1e6, 1e7, 1e8), list(SHADES.values())[:3]):
        best = [law.optimal_sparsity(nonzeros, steps) for steps in data]
        figure.add_scatter(x=data, y=best, line_color=colour, name=f"{nonzeros:.0e} non-zero", legend="legend2", row=1,
                           col=3)  # fmt: skip
    corner = {"bgcolor": "rgba(255,255,255,0.8)"}
    figure.update_layout(
        template="plotly_white", height=440, width=1180, margin={"l": 60, "r": 20, "t": 40, "b": 60},
        legend={"x": 0.15, "y": 0.98, **corner}, legend2={"x": 0.99, "xanchor": "right", "y": 0.04, **corner},
    )  # fmt: skip
    for col, title in ((1, "non-zero parameters"), (2, "sparsity"), (3, "steps of a dense model")):
        figure.update_xaxes(title=title, type="linear" if col == 2 else "log", row=1, col=col)
    figure.update_yaxes(title="loss", row=1, col=1)
    figure.update_yaxes(title="non-zero parameters", type="log", row=1, col=2)
    figure.update_yaxes(range=[0, 1], row=1, col=3)
    figure.write_html(out, include_plotlyjs=True)
    print(f"R2 {law.r2:.4f}, largest error {law.largest_error:.2%}; 75 % sparse counts "
          f"{law.effective_size(0.75, 1.0):.2f} times its parameters")  # fmt: skip
    for warning in said:
        print(warning.message)
    print(f"drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
