"""Every scalar penalty beside its proximal map: what a coefficient costs, and what shrinking makes of it.

    python examples/penalties.py [OUT.html]

Solid: step 1. Dotted: a step so long that the sum of quadratic and penalty is concave in places, where the prox jumps.
"""

import sys

import numpy as np
from plotly.subplots import make_subplots

from ellzero.parts import penalties as P

PENALTIES = {
    "L1": P.L1(1.0), "elastic net": P.ElasticNet(1.0, 0.5), "L0": P.L0(1.0), "Lq, q = 1/2": P.Lq(1.0, 0.5),
    "MCP": P.MCP(1.0, 3.0), "SCAD": P.SCAD(1.0, 3.7), "log-sum": P.LogSum(1.0, 0.5), "CEL0": P.CEL0(1.0, 0.8),
}  # fmt: skip
x = np.linspace(-5, 5, 1001)


def main(out: str = "penalties.html") -> None:
    titles = [title for name in PENALTIES for title in (name, f"prox of {name}")]
    figure = make_subplots(4, 4, subplot_titles=titles, vertical_spacing=0.07)
    for i, penalty in enumerate(PENALTIES.values()):
        place = {"row": i // 2 + 1, "col": 2 * (i % 2) + 1}
        figure.add_scatter(x=x, y=penalty.each(x), line_color="#b3401f", **place)
        place["col"] += 1
        figure.add_scatter(x=x, y=x, line={"color": "#999999", "width": 1}, **place)
        for step, dash in ((1.0, "solid"), (4.0, "dot")):
            w = penalty.prox(x, step)
            w[1:][np.abs(np.diff(w)) > 0.2] = np.nan  # a jump is a gap, not a line
            figure.add_scatter(x=x, y=w, line={"color": "#1f5fb3", "dash": dash, "simplify": False}, **place)
    figure.update_layout(showlegend=False, template="plotly_white", height=1100, margin={"l": 30, "r": 20, "t": 40})
    figure.write_html(out, include_plotlyjs=True)
    print(f"{len(PENALTIES)} penalties drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
