"""A ticket found by evolution: which weights stay, cycle by cycle, without a single gradient.

    python examples/evolved_ticket.py [OUT.html] [GENERATIONS] [CYCLES]

A 64-32-10 perceptron on handwritten digits of 8 x 8 pixels. In each cycle a population of 64 evolves for so many
generations, then half of the kept weights go: those with the least mean in units of their deviation. Above, the kept
first-layer weights of each pixel; below, accuracy on 497 held-out rows of the ticket, of random masks that are as
dense, both evolved from their first weights, and of the ticket when gradients train it instead.
"""

import sys

import numpy as np
import torch
from plotly.subplots import make_subplots

from ellzero.data import sets
from ellzero.models.mlp import MLPConfig
from ellzero.network import evolutionary_tickets, evolve
from ellzero.network.cycles import fitter, put
from ellzero.network.frontier import accuracy
from ellzero.network.initial import masks_of
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches
from ellzero.training.threads import threads_for

SHOWN = 4


def main(out: str = "evolved_ticket.html", generations: str = "200", cycles: str = "5") -> None:
    table, order = sets.digits(), rng(0, "rows").permutation(1797)
    X, y = (table.X / 16)[order].astype(np.float32), table.y[order]
    rows = torch.from_numpy(X[:1300]), torch.from_numpy(y[:1300])
    config, densities = MLPConfig(64, 10, (32,)), [0.5 ** (i + 1) for i in range(int(cycles))]

    def fit(model, masks, seed):
        return evolve(model, losses.classification, Batches(*rows, batch_size=256, seed=seed), strategy="snes",
                      generations=int(generations), sigma=0.1, masks=masks, seed=seed)  # fmt: skip

    def judged(model) -> float:
        return 100 * accuracy(model, X[1300:], y[1300:])

    model, found, kept = config.build(0), {"ticket": [], "random mask": [], "ticket, by gradients": []}, []
    descend = fitter(losses.classification, lambda seed: Batches(*rows, batch_size=64, seed=seed), steps=300)
    for ticket in evolutionary_tickets(model, fit, densities):
        found["ticket"].append(judged(model))
        kept.append(ticket.masks["layers.0.weight"].sum(0).reshape(8, 8).numpy())
        drawn = {name: torch.from_numpy(rng(1, name).random(tuple(mask.shape))) for name, mask in ticket.masks.items()}
        chance = masks_of(drawn, ticket.density)
        control = put(config.build(1), chance)
        fit(control, chance, 0)
        found["random mask"].append(judged(control))
        steep = put(config.build(0), ticket.masks)
        with threads_for(0):
            descend(steep, ticket.masks, 0)
        found["ticket, by gradients"].append(judged(steep))
        print(
            f"{ticket.density:.1%} kept: " + ", ".join(f"{name} {values[-1]:.1f} %" for name, values in found.items())
        )
    places = sorted({round(i) for i in np.linspace(0, len(kept) - 1, SHOWN)})
    figure = make_subplots(
        2, SHOWN, specs=[[{}] * SHOWN, [{"colspan": SHOWN}, *[None] * (SHOWN - 1)]], row_heights=[0.42, 0.58],
        subplot_titles=[f"{densities[i]:.1%} kept" for i in places], vertical_spacing=0.12,
    )  # fmt: skip
    for col, i in enumerate(places, 1):
        figure.add_heatmap(z=kept[i][::-1] / kept[i].max(), coloraxis="coloraxis", row=1, col=col)
        figure.update_xaxes(showticklabels=False, constrain="domain", row=1, col=col)
        figure.update_yaxes(showticklabels=False, scaleanchor=f"x{col if col > 1 else ''}", row=1, col=col)
    for (name, values), dash in zip(found.items(), ("solid", "dot", "dash")):
        figure.add_scatter(x=[100 * d for d in densities], y=values, name=name, mode="lines+markers",
                           line={"dash": dash}, row=2, col=1)  # fmt: skip
    figure.update_xaxes(type="log", title="kept weights in %", autorange="reversed", row=2, col=1)
    figure.update_yaxes(title="accuracy in %", row=2, col=1)
    figure.update_layout(
        template="plotly_white", height=640, width=860, margin={"l": 60, "r": 30, "t": 40, "b": 50},
        legend={"x": 0.02, "y": 0.05}, coloraxis={"colorscale": "Blues", "cmin": 0, "cmax": 1, "showscale": False},
    )  # fmt: skip
    figure.write_html(out, include_plotlyjs=True)
    print(f"drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
