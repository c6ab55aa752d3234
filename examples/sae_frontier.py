"""The frontier of all autoencoders with error bars: explained variance against active latents, on a language model.

    python examples/sae_frontier.py [OUT.html] [SEEDS] [STEPS]

Activations of the second layer of the reference language model, 512 latents, every method with its default settings
and the same steps. A point is the mean over seeds on validation rows, its bar the standard error.
"""

import sys

import numpy as np
from plotly.colors import qualitative
from plotly.graph_objects import Figure

from ellzero.compare.tasks.autoencoder import Autoencoder

BUDGETS = (8, 16, 32, 64)
SLOW = ("mp-sae",)  # at one budget


def main(out: str = "sae_frontier.html", seeds: str = "3", steps: str = "150") -> None:
    task, figure = Autoencoder(steps=int(steps), rows=20_000 if int(steps) > 50 else 2000), Figure()
    parts = [task.data(seed) for seed in range(int(seeds))]
    for place, (name, method) in enumerate(task.methods().items()):
        found = []
        for budget in (32,) if name in SLOW else BUDGETS:
            fits = [next(iter(method.frontier(data, [budget], seed))) for seed, data in enumerate(parts)]
            scores = [fit.score(data.validation) for fit, data in zip(fits, parts)]
            error = np.std(scores, ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
            found.append((np.mean([fit.realised for fit in fits]), np.mean(scores), error))
        l0, means, errors = zip(*found)
        figure.add_scatter(
            x=l0, y=means, error_y={"array": errors}, name=name, mode="lines+markers",
            line_color=qualitative.Dark24[place % 24], line_dash="dot" if name == "pca" else "solid",
        )  # fmt: skip
    figure.update_xaxes(type="log", title="active latents of a row (L0)", tickvals=BUDGETS)
    figure.update_yaxes(title="explained variance", range=[0.4, 1.0])
    figure.update_layout(template="plotly_white", height=560, width=960, margin={"l": 70, "r": 20, "t": 20, "b": 60})
    figure.write_html(out, include_plotlyjs=True)
    print(f"{len(task.methods())} methods, {len(parts)} seeds, drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
