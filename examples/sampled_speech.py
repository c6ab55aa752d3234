"""Sampled speech: a WaveRNN with nine tenths of its blocks pruned, that sounds out a coarse spectrogram.

    python examples/sampled_speech.py [out.html] [steps] [seconds]

The network sees twelve bands of a sentence's spectrogram, 115 times a second, and draws the 16-bit samples; the last
seconds of the recording are kept from it. After a thousand steps (two minutes of one core) it whispers: the rhythm and
the bands are there, harmonics want far more training. Recordings are read from ``ELLZERO_DATA`` (extra ``audio``);
without them it learns gliding harmonics.
"""

import sys
import time
from itertools import pairwise

import numpy as np
import torch
from plotly.subplots import make_subplots

from ellzero.data.audio import SPEAKERS, gliding_harmonics, speech
from ellzero.data.sets import missing
from ellzero.models.wavernn import PRUNED, WaveRNNConfig, audio
from ellzero.network import Sampler, Sparsifier, block_gmp
from ellzero.parts.schedules import Cosine
from ellzero.training.loop import Batches, train

FRAME, HOP, STRETCH = 256, 64, 64


def recording():
    if missing(f"dictionary/audio/{SPEAKERS[1]}.ogg"):
        return gliding_harmonics(60_000), 8000, "gliding harmonics"
    samples, rate = speech(SPEAKERS[1], divide=3)
    samples = (samples * (30_000 / np.abs(samples.astype(float)).max())).astype(np.int16)  # over all coarse levels
    return samples, rate, "a sentence read aloud"


def spectrogram(samples):
    """Decibels below the loudest, ``[frequencies, frames]``; frame i is centred at sample ``i HOP``."""
    padded = np.pad(samples / 32768, FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP] * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames)).T ** 2
    return 10 * np.log10(power + 1e-6)


def bands(samples, count=12):
    """Band energies of each sample, standardised, ``[length, count]``: the frames around it, interpolated."""
    power = 10 ** (spectrogram(samples) / 10)
    edges = np.geomspace(2, len(power), count + 1).astype(int)
    table = np.log([power[a : max(b, a + 1)].mean(0) for a, b in pairwise(edges)])
    table = (table - table.mean(1, keepdims=True)) / (table.std(1, keepdims=True) + 1e-6)
    at, places = np.arange(len(samples)), np.arange(table.shape[1]) * HOP
    return np.stack([np.interp(at, places, row) for row in table], 1).astype(np.float32)


def main(out: str = "sampled_speech.html", steps: str = "1000", seconds: str = "2") -> None:
    samples, rate, name = recording()
    features, kept = bands(samples), int(float(seconds) * rate)
    learned = len(samples) - kept
    starts = np.arange(0, learned - STRETCH, STRETCH)[:, None] + np.arange(STRETCH)
    model = WaveRNNConfig(192, features=features.shape[1]).build()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    recipe = block_gmp(0.1, (16, 1), begin=0.1, end=0.6, every=5)
    sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=int(steps), include=PRUNED)
    batches = Batches(torch.from_numpy(samples[starts]), torch.from_numpy(features[starts]), batch_size=32)
    run = train(model, audio, batches, optimizer=optimizer, steps=int(steps), schedule=Cosine(1.0, 0.05), clip=1.0,
                parts={"sparsifier": sparsifier})  # fmt: skip
    last = np.mean(list(run.losses.values())[-20:])
    print(f"{name}: {last:.2f} nats a sample; density {sparsifier.report().density:.3f}")
    sparsifier.remove()
    sampler = Sampler(model, temperature=0.8)
    start = time.process_time()
    drawn = sampler.sample(kept, features=features[None, learned:])[0]
    spent = time.process_time() - start
    print(f"{kept} samples in {spent:.2f} s of one core: real-time factor {kept / rate / spent:.2f}")
    panels = {f"recorded: {name}, not trained on": samples[learned:], "sampled from twelve bands": drawn}
    figure = make_subplots(2, 2, subplot_titles=list(panels), vertical_spacing=0.08, horizontal_spacing=0.06,
                           row_heights=[0.7, 0.3])  # fmt: skip
    for column, sound in enumerate(panels.values(), 1):
        shown = spectrogram(sound)
        t, f = np.arange(shown.shape[1]) * HOP / rate, np.arange(len(shown)) * rate / FRAME
        figure.add_heatmap(z=shown, x=t, y=f, zmin=shown.max() - 70, zmax=shown.max(), colorscale="Viridis",
                           showscale=False, row=1, col=column)  # fmt: skip
        figure.add_scatter(y=sound[::2] / 32768, x=np.arange(0, len(sound), 2) / rate, line={"width": 1},
                           showlegend=False, row=2, col=column)  # fmt: skip
    figure.update_yaxes(title_text="Hz", row=1, col=1)
    figure.update_yaxes(range=[-1, 1], row=2)
    figure.update_xaxes(title_text="seconds", row=2)
    figure.update_layout(template="plotly_white", height=520, width=980, margin={"l": 60, "r": 20, "t": 40, "b": 50})
    figure.update_annotations(font_size=13)
    figure.write_html(out, include_plotlyjs=True)
    print(f"drawn in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
