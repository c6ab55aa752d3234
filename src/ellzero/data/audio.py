"""Audio: recordings that lie under ``ELLZERO_DATA``, and gliding harmonics, of which any length can be made.

Lives here: ``speech`` and ``gliding_harmonics``, both as 16-bit samples, and ``windows`` of them. Does not live here:
models of audio (``models.wavernn``). Reading recordings needs the extra ``audio``.
"""

from __future__ import annotations

import math

import numpy as np

from ellzero.data.sets import data_root, missing
from ellzero.errors import InputError, check_array, check_choice, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["SPEAKERS", "gliding_harmonics", "speech", "windows"]

SPEAKERS = ("198-209-0000", "3436-172162-0000", "5703-47212-0000")


def speech(name: str = SPEAKERS[0], *, divide: int = 1) -> tuple[np.ndarray, int]:
    """A sentence read aloud from LibriSpeech: int16 samples and their rate, 22050 Hz over ``divide``.

    ``dictionary/audio/NAME.ogg`` under ``ELLZERO_DATA``; every ``divide``-th sample after a low-pass filter.

    Raises
    ------
    InputError : an unknown name, or no such file.
    ImportError : soundfile is not there (the extra ``audio``).
    """
    check_choice("name", name, SPEAKERS)
    check_integer("divide", divide, at_least=1)
    path = f"dictionary/audio/{name}.ogg"
    if reason := missing(path):
        raise InputError(reason)
    import soundfile

    samples, rate = soundfile.read(data_root() / path, dtype="float64")
    if divide > 1:
        from scipy.signal import decimate

        samples = decimate(samples, divide, ftype="fir")
    return np.clip(np.rint(samples * 32767), -32768, 32767).astype(np.int16), rate // divide


@register(kind="generator", source="none", example=lambda: gliding_harmonics(100))
def gliding_harmonics(length: int, *, rate: int = 8000, harmonics: int = 12, seed: int = 0) -> np.ndarray:
    """Speech-like sound: int16 ``[length]``, a sum of harmonics whose pitch and strengths glide, and a little noise.

    The pitch moves between 90 and 220 Hz, the strength of each harmonic by a slow wave of its own.
    """
    check_integer("length", length, at_least=1)
    check_integer("rate", rate, at_least=1000)
    check_integer("harmonics", harmonics, at_least=1)
    draw, t = rng(seed, "gliding harmonics"), np.arange(length) / rate
    slow = [np.sin(2 * math.pi * (f * t + p)) for f, p in zip(draw.uniform(0.3, 1.5, 3), draw.random(3))]
    phase = 2 * math.pi * np.cumsum(155 + 65 * sum(slow) / 3) / rate
    sound = np.zeros(length)
    for k in range(1, harmonics + 1):
        strength = 0.5 + 0.5 * np.sin(2 * math.pi * (draw.uniform(0.5, 3) * t + draw.random()))
        sound += np.where(k * 220 < rate / 2, strength / k, 0) * np.sin(k * phase + 2 * math.pi * draw.random())
    loud = 0.6 + 0.4 * np.sin(2 * math.pi * (0.7 * t + draw.random()))
    sound = 0.3 * loud * sound + 0.002 * draw.standard_normal(length)
    return np.clip(np.rint(sound * 32767), -32768, 32767).astype(np.int16)


def windows(samples: np.ndarray, length: int, *, step: int | None = None) -> np.ndarray:
    """Stretches of ``length`` samples, ``[count, length]``, one each ``step`` (by default ``length``)."""
    check_array("samples", samples, ndim=1, dtypes="i")
    check_integer("length", length, at_least=1, at_most=len(samples))
    step = length if step is None else check_integer("step", step, at_least=1)
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::step].copy()
