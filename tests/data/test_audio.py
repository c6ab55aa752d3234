"""Audio: what is made repeats and has the pitch it says; what is read is what the file holds."""

from __future__ import annotations

import numpy as np
import pytest

from ellzero.data.audio import SPEAKERS, gliding_harmonics, speech, windows
from ellzero.data.sets import missing
from ellzero.errors import InputError


def test_gliding_harmonics_repeat_and_lie_on_a_pitch_within_its_range():
    sound = gliding_harmonics(16_000, seed=1)
    assert sound.dtype == np.int16
    assert np.array_equal(sound, gliding_harmonics(16_000, seed=1))
    assert not np.array_equal(sound, gliding_harmonics(16_000, seed=2))
    assert 3000 < np.abs(sound.astype(int)).max() < 32767
    for start in (0, 5000, 11_000):  # the lag of best correlation is a period
        part = sound[start : start + 400].astype(float)
        lags = np.arange(8000 // 220, 8000 // 90 + 1)
        match = [np.corrcoef(part[:-lag], part[lag:])[0, 1] for lag in lags]
        assert max(match) > 0.8


def test_windows_are_stretches():
    x = np.arange(10, dtype=np.int16)
    assert windows(x, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows(x, 4, step=3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_speech_is_read_and_thinned():
    if why := missing(*(f"dictionary/audio/{name}.ogg" for name in SPEAKERS)):
        pytest.skip(why)
    pytest.importorskip("soundfile")
    whole, rate = speech(SPEAKERS[2])
    third, slow = speech(SPEAKERS[2], divide=3)
    assert (rate, slow, whole.dtype) == (22050, 7350, np.int16)
    assert len(third) == -(-len(whole) // 3)
    assert 13 < len(whole) / rate < 18
    near = np.corrcoef(whole[::3].astype(float), third.astype(float))[0, 1]
    assert near > 0.9


def test_bad_input_is_named():
    for call, words in [
        (lambda: gliding_harmonics(0), "length: got 0"),
        (lambda: gliding_harmonics(10, rate=10), "rate: got 10"),
        (lambda: speech("somebody"), "name: got 'somebody'"),
        (lambda: speech(SPEAKERS[0], divide=0), "divide: got 0"),
        (lambda: windows(np.zeros(3, np.int16), 4), "length: got 4"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
