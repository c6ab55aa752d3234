"""How latents die, and what brings them back: the share that is silent over the course of training.

    python examples/dead_latents.py [OUT.html] [STEPS]

TopK on activations of the reference language model: alone, and with the auxiliary loss in which dead latents learn from
the error; and a selection over the batch.
"""

import sys

import torch
from plotly.graph_objects import Figure

from ellzero.autoencoder import SAETrainer, SparseAutoencoder
from ellzero.compare.tasks.autoencoder import Autoencoder

BATCH = 512
DEAD_AFTER = 20 * BATCH


def course(sae: SparseAutoencoder, x, steps: int) -> list[float]:
    """The share of latents that have not fired for 20 batches, at each step."""
    found = []
    trainer = SAETrainer(sae, lr=0.01, batch_size=BATCH, steps=steps)
    keep = sae.combine

    def watched(z):
        silent = trainer.state.silent
        found.append(float((silent > DEAD_AFTER).float().mean()))
        return keep(z)

    sae.combine = watched
    trainer.fit(x)
    return found


def main(out: str = "dead_latents.html", steps: str = "400") -> None:
    x = torch.from_numpy(Autoencoder(rows=20_000 if int(steps) > 50 else 2000).data(0).train)
    figure = Figure()
    rows = {
        "TopK alone": ("topk", 10**9, "#777777"), "TopK with AuxK": ("topk", DEAD_AFTER, "#1f5fb3"),
        "BatchTopK with AuxK": ("batchtopk", DEAD_AFTER, "#2a7d4f"),
    }  # fmt: skip
    for name, (preset, dead_after, colour) in rows.items():
        sae = SparseAutoencoder.from_preset(preset, d_in=x.shape[1], d_sae=1024, k=8, dead_after=dead_after)
        figure.add_scatter(y=course(sae, x, int(steps)), name=name, line_color=colour)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="share of latents silent for 20 batches", rangemode="tozero")
    figure.update_layout(template="plotly_white", height=460, width=820, margin={"l": 70, "r": 20, "t": 20, "b": 60})
    figure.write_html(out, include_plotlyjs=True)
    print(f"{len(rows)} courses of {steps} steps, drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
