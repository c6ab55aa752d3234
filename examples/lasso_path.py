"""A Lasso path with its certificate: coefficients as alpha falls, and how far each fit can be from the optimum.

    python examples/lasso_path.py [OUT.html] [N_ALPHAS]

Diabetes: 442 patients, 64 measurements, squares and products of them. Above, the coefficients in units of standard
deviations; the lines say which alpha cross-validation chose, and the sparser one within a standard error. Below, the
duality gap of every fit (a proof, not an estimate: no coefficients lower the objective by more), and what three
tolerances cost in working sets.
"""

import sys

import numpy as np
from plotly.subplots import make_subplots

from ellzero.compare.tasks.regression import Regression
from ellzero.linear import Lasso, LassoCV

COLOURS = ["#1f5fb3", "#b3401f", "#2a7d4f", "#8a5fb0", "#c99700", "#4aa3b5", "#7a4b2a", "#d06a9b"]
TOLERANCES = {1e-2: "#b8c4d6", 1e-4: "#7f97bb", 1e-8: "#1f5fb3"}


def main(out: str = "lasso_path.html", n_alphas: str = "60") -> None:
    data = Regression().data(0)
    (X, y), names = data.train, data.info["columns"]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    paths = {tol: Lasso(tol=tol).path(X, y, n_alphas=int(n_alphas), eps=1e-2) for tol in TOLERANCES}
    path = paths[1e-8]
    chosen = LassoCV(alphas=path.alphas).fit(X, y)
    figure = make_subplots(
        2, 1, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=0.05, x_title="alpha",
    )  # fmt: skip
    largest = np.argsort(-abs(path.coefs).max(axis=1))[: len(COLOURS)]
    for j, coefs in enumerate(path.coefs):
        if coefs.any() and j not in largest:
            figure.add_scatter(
                x=path.alphas, y=coefs, line={"color": "#cccccc", "width": 1}, showlegend=False, row=1, col=1
            )
    for j, colour in zip(largest, COLOURS):
        figure.add_scatter(x=path.alphas, y=path.coefs[j], name=names[j], line_color=colour, row=1, col=1)
    for tol, colour in TOLERANCES.items():
        gaps, sets = np.maximum(paths[tol].gaps, 1e-17), int(paths[tol].n_iters.sum())
        figure.add_scatter(
            x=path.alphas, y=gaps, name=f"tol {tol:g}: {sets} working sets", mode="markers+lines", row=2, col=1,
            line={"color": colour, "width": 1}, legend="legend2",
        )  # fmt: skip
        figure.add_hline(y=tol, line={"color": colour, "dash": "dot"}, row=2, col=1)
    for alpha, words in ((chosen.alpha_, "least error"), (chosen.alpha_1se_, "one standard error")):
        figure.add_vline(x=alpha, line={"color": "#444444", "dash": "dash"}, row=1, col=1)
        figure.add_annotation(
            x=np.log10(alpha), y=0.02, yref="y domain", text=words, textangle=-90, xshift=-8, yanchor="bottom",
            showarrow=False, row=1, col=1,
        )  # fmt: skip
    figure.update_xaxes(type="log", autorange="reversed")
    figure.update_yaxes(title="coefficient", row=1, col=1)
    figure.update_yaxes(type="log", exponentformat="power", title="relative duality gap", row=2, col=1)
    figure.update_layout(
        template="plotly_white", height=720, width=1000, margin={"l": 70, "r": 20, "t": 30, "b": 60},
        legend={"y": 1}, legend2={"y": 0.3},
    )  # fmt: skip
    figure.write_html(out, include_plotlyjs=True)
    least, sparser = (np.count_nonzero(path.coefs[:, path.alphas == a]) for a in (chosen.alpha_, chosen.alpha_1se_))
    print(f"largest gap {path.gaps.max():.1e} over {len(path.alphas)} alphas; {least} coefficients at the least error, "
          f"{sparser} within one standard error; drawn in {out}")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
