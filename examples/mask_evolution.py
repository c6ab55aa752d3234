"""Where the weights of a sparse network go while it trains: connections of each input pixel, step by step.

    python examples/mask_evolution.py [OUT.html] [STEPS] [DENSITY]

A 64-128-64-10 perceptron on handwritten digits of 8 x 8 pixels. A row is a recipe, a column a moment of its training, a
picture the number of first-layer weights that each pixel keeps. Sparse from the start, the count is even at first; the
masks leave the border, where no digit has ink. Titles give accuracy on 497 held-out rows.
"""

import sys

import numpy as np
import torch
from plotly.subplots import make_subplots

from ellzero.data import sets
from ellzero.models.mlp import MLPConfig
from ellzero.network import Sparsifier, gmp, rigl, set_
from ellzero.network.frontier import accuracy
from ellzero.parts.schedules import Cosine
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches, train

MOMENTS = (0.0, 0.1, 0.3, 1.0)
RECIPES = {
    "RigL": lambda density: rigl(density, every=10),
    "SET": lambda density: set_(density, every=10),
    "gradual magnitude": lambda density: gmp(density, every=10),
}


def followed(X, y, recipe, steps: int) -> list[tuple[np.ndarray, float, float]]:
    """At each moment: kept weights by pixel, density and held-out accuracy."""
    model = MLPConfig(64, 10).build(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=steps)
    first, found = next(iter(sparsifier.masks)), []

    def look(step: int, loss: float = 0.0) -> None:
        if step in {round(moment * steps) for moment in MOMENTS}:
            kept = sparsifier.masks[first].sum(0).reshape(8, 8).numpy()
            found.append((kept, sparsifier.report().density, accuracy(model, X[1300:], y[1300:])))
            model.train()

    look(0)
    rows = torch.from_numpy(X[:1300]), torch.from_numpy(y[:1300])
    train(model, losses.classification, Batches(*rows, batch_size=64), optimizer=optimizer, steps=steps, clip=5.0,
          schedule=Cosine(1.0, 0.0), callbacks=[look], parts={"sparsifier": sparsifier})  # fmt: skip
    return found


def main(out: str = "mask_evolution.html", steps: str = "600", density: str = "0.05") -> None:
    table, order = sets.digits(), rng(0, "rows").permutation(1797)
    X, y = (table.X / 16)[order].astype(np.float32), table.y[order]
    found = {name: followed(X, y, make(float(density)), int(steps)) for name, make in RECIPES.items()}
    titles = [f"{share:.0%} kept, accuracy {right:.0%}" for runs in found.values() for _, share, right in runs]
    figure = make_subplots(
        len(found), len(MOMENTS), subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.08,
        row_titles=list(found),
    )  # fmt: skip
    for row, (name, runs) in enumerate(found.items(), 1):
        for col, (kept, _, _) in enumerate(runs, 1):
            figure.add_heatmap(z=kept[::-1] / kept.max(), coloraxis="coloraxis", row=row, col=col)
        border = [np.concatenate([kept[:, 0], kept[:, -1]]).sum() / kept.sum() for kept, _, _ in runs]
        print(f"{name}: {border[0]:.1%} of the first layer at the left and right border at the start, "
              f"{border[-1]:.1%} at the end, accuracy {runs[-1][2]:.1%}")  # fmt: skip
    for col, moment in enumerate(MOMENTS, 1):
        figure.update_xaxes(title=f"after {moment:.0%} of the steps", row=len(found), col=col)
    figure.update_xaxes(showticklabels=False, constrain="domain")
    figure.update_yaxes(showticklabels=False, scaleanchor="x", constrain="domain")
    figure.update_layout(
        template="plotly_white", height=720, width=900, margin={"l": 20, "r": 40, "t": 40, "b": 50},
        coloraxis={"colorscale": "Blues", "cmin": 0, "cmax": 1, "colorbar": {"title": "weights,<br>of the most"}},
    )  # fmt: skip
    figure.update_annotations(font_size=12)
    figure.write_html(out, include_plotlyjs=True)
    print(f"drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
