"""A lottery ticket planted in a random network, and what pruning finds of it: the classes that each network sees.

    python examples/planted_ticket.py [OUT.html] [STEPS] [WIDTH]

Four classes of points in the plane, told apart by their distance from the origin. A ticket of 45 weights that solves
this is written into a random ReLU network of five layers of weights; no training is needed to use it. Each method then
looks for as many weights, or ten times as many. A panel shows the class that its network gives to each point.
"""

import sys

import numpy as np
import torch
from plotly.subplots import make_subplots

from ellzero.network import Sparsifier, dense, gmp, rigl, static
from ellzero.network.initial import masks_of, snip
from ellzero.network.planted import circle_data, circle_target, plant, source
from ellzero.parts.schedules import Cosine
from ellzero.training import losses
from ellzero.training.loop import Batches, train

SIDE = np.linspace(-1, 1, 80)


def tensors(rows: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    X, y = circle_data(rows, noise=noise, seed=seed)
    return torch.from_numpy(X).float(), torch.from_numpy(y)


def trained(model, recipe, masks, steps: int) -> dict[str, torch.Tensor]:
    """The masks at the end of a training run."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=steps, masks=masks)
    train(model, losses.classification, Batches(*tensors(4000, 0.01, 0), batch_size=64), optimizer=optimizer,
          steps=steps, clip=1.0, schedule=Cosine(1.0, 0.0), parts={"sparsifier": sparsifier})  # fmt: skip
    sparsifier.remove()
    return sparsifier.masks


def main(out: str = "planted_ticket.html", steps: str = "1000", width: str = "100") -> None:
    model = source((2, *[int(width)] * 4, 4), 0)
    target = circle_target(10, depth=5)
    ticket = plant(model, target).masks
    state = {key: value.clone() for key, value in model.state_dict().items()}
    share = target.size / sum(mask.numel() for mask in ticket.values())
    scores = snip(model, losses.classification, [tensors(512, 0.01, 0)])
    ways = {"dense": (dense(), None)}
    for times in (1, 10):
        ways |= {
            f"SNIP, {times} x": (static(), masks_of(scores, times * share)),
            f"RigL, {times} x": (rigl(times * share, every=10), None),
            f"gradual, {times} x": (gmp(times * share, every=10), None),
        }
    X, y = tensors(4000, 0.0, 1000)
    grid = torch.from_numpy(np.stack(np.meshgrid(SIDE, SIDE), -1).reshape(-1, 2)).float()
    panels = []
    for name, (recipe, masks) in {"the ticket, untrained": (None, ticket), **ways}.items():
        model.load_state_dict(state)
        if recipe is None:
            for key, mask in masks.items():
                model.get_parameter(key).data.mul_(mask)
        else:
            masks = trained(model, recipe, masks, int(steps))
        with torch.no_grad():
            right = float((model(X).argmax(1) == y).float().mean())
            seen = model(grid).argmax(1).reshape(len(SIDE), -1).numpy()
        met = sum(int((masks[key] & ticket[key]).sum()) for key in ticket) / target.size
        panels.append((f"{name}: {right:.1%} right", seen))
        print(f"{name}: {right:.1%} of the points right, {met:.0%} of the ticket in the mask")
    figure = make_subplots(2, 4, subplot_titles=[title for title, _ in panels], horizontal_spacing=0.03,
                           vertical_spacing=0.08)  # fmt: skip
    for place, (_, seen) in enumerate(panels):
        figure.add_heatmap(z=seen, x=SIDE, y=SIDE, zmin=0, zmax=3, colorscale="Viridis", showscale=False,
                           row=place // 4 + 1, col=place % 4 + 1)  # fmt: skip
    figure.update_xaxes(showticklabels=False, constrain="domain")
    figure.update_yaxes(showticklabels=False, scaleanchor="x", constrain="domain")
    figure.update_layout(template="plotly_white", height=520, width=980, margin={"l": 20, "r": 20, "t": 40, "b": 20})
    figure.update_annotations(font_size=13)
    figure.write_html(out, include_plotlyjs=True)
    print(f"drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
