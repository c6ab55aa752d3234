"""What latents of digits look like: the decoder's rows as pictures, with few, some and many of them active.

    python examples/digit_latents.py [OUT.html] [STEPS]

k-sparse autoencoders on 8 x 8 digits: with few active latents each must tell much of a digit, with many a stroke.
"""

import sys

import numpy as np
from plotly.subplots import make_subplots

from ellzero.autoencoder import SAETrainer, SparseAutoencoder
from ellzero.data import sets

COUNTS, SHOWN = (2, 8, 24), 8


def main(out: str = "digit_latents.html", steps: str = "1500") -> None:
    images = (sets.digits().X / 16).astype(np.float32)
    figure = make_subplots(len(COUNTS), SHOWN, horizontal_spacing=0.01, vertical_spacing=0.06)
    for row, k in enumerate(COUNTS, start=1):
        sae = SparseAutoencoder.from_preset("k_sparse", d_in=64, d_sae=128, k=k, start=max(k, 40))
        SAETrainer(sae, lr=0.01, batch_size=128, steps=int(steps)).fit(images)
        strength = sae.encode(images).abs().sum(0)
        for column, latent in enumerate(strength.argsort(descending=True)[:SHOWN].tolist(), start=1):
            picture = sae.W_dec[latent].detach().reshape(8, 8).flip(0)
            limit = float(picture.abs().max())
            figure.add_heatmap(
                z=picture, zmin=-limit, zmax=limit, colorscale="RdBu", showscale=False, row=row, col=column
            )
        figure.add_annotation(
            text=f"k = {k}", xref="paper", yref="paper", x=-0.06, y=1 - (row - 0.5) / len(COUNTS), showarrow=False
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(
        template="plotly_white", width=120 * SHOWN, height=130 * len(COUNTS), margin={"l": 70, "t": 20}
    )
    figure.write_html(out, include_plotlyjs=True)
    print(f"the {SHOWN} strongest latents at k = {', '.join(map(str, COUNTS))}, drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
