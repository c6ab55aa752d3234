"""Sampling of audio from a ``WaveRNN`` whose matrices are in sparse layouts, one sample at a time on the CPU.

Lives here: ``Sampler``. Does not live here: the network and its training (``models.wavernn``), how it becomes sparse
(``blocks.block_gmp``), layouts and their products (``layouts``).
The state is feature-major, ``[width, streams]``; a step is one product for all gates, then one after the other the
coarse and the fine half.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.layouts.base import Layout, layouts
from ellzero.models.wavernn import WaveRNN
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Sampler", "pack"]

_FILL = 1.25
"""Stored over nonzero numbers up to which rows that share a pattern are worth their zeros."""


def pack(matrix: np.ndarray, layout: str = "auto") -> Layout | np.ndarray:
    """A matrix in a layout; ``"auto"`` takes the widest row groups whose shared patterns store few zeros.

    In order: groups of 8 rows, of 4 rows, single rows (CSR), each where it stores at most 1.25 numbers per nonzero and
    0.6 of all; else the dense matrix. Blocks of 16 x 1 fall into the first, of 4 x 4 into the second.
    """
    known = layouts()
    check_choice("layout", layout, ("auto", "dense", *known))
    if layout == "dense":
        return matrix
    if layout != "auto":
        return known[layout].from_dense(matrix)
    nonzero = max(np.count_nonzero(matrix), 1)
    for group in (8, 4, 1):
        if len(matrix) % group == 0:
            name, settings = ("csr", {}) if group == 1 else ("row-group", {"group": group})
            found = known[name].from_dense(matrix, **settings)
            if found.nnz <= _FILL * nonzero and found.density <= 0.6:
                return found
    return matrix


def _product(of: Layout | np.ndarray, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    if isinstance(of, Layout):
        return of.matmul(x, bias=bias, n_threads=1)
    out = of @ x
    return out if bias is None else out + bias[:, None]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """In place."""
    np.negative(x, out=x)
    np.exp(x, out=x)
    x += 1
    return np.reciprocal(x, out=x)


@register(
    kind="method", wing="network", id="S148", source="arXiv:1802.08435", extra="torch",
    example=lambda: _example(), claim="sparse blocks make a step of a recurrent layer several times faster at batch 1",
)  # fmt: skip
class Sampler:
    """Draw audio from a ``WaveRNN``. Kalchbrenner et al. (2018), sections 2 to 4.

    Parameters
    ----------
    model : its zeros are what is sparse.
    layout : name of a layout for all matrices, ``"dense"``, or ``"auto"`` by ``pack``.
    temperature : divides the logits; below 1 samples are more likely ones.

    Attributes
    ----------
    matrices : the packed matrices by name: ``"R"`` has the rows of all gates, the coarse half first.
    """

    def __init__(self, model: WaveRNN, *, layout: str = "auto", temperature: float = 1.0):
        if not isinstance(model, WaveRNN):
            raise InputError(f"model: got {type(model).__name__}, want a WaveRNN")
        self.config, self.temperature = model.config, check("temperature", temperature, above=0, below=math.inf)
        width, half = self.config.width, self.config.width // 2
        state = {name: value.detach().float().cpu().numpy() for name, value in model.state_dict().items()}
        gates = np.arange(3 * width).reshape(3, 2, half).transpose(1, 0, 2).ravel()  # both halves' r, u, e
        recurrent = np.concatenate([state["R_r"], state["R_u"], state["R_e"]])[gates]
        self.matrices = {"R": pack(recurrent, layout)}
        for name in ("O1", "O2", "O3", "O4"):
            self.matrices[name] = pack(state[f"{name}.weight"], layout)
        self._I, self._bias = np.ascontiguousarray(state["I"][gates]), state["bias"][gates]
        self._I_c = np.ascontiguousarray(state["I_c"].reshape(-1, 1))
        self._O = {name: state[f"{name}.bias"] for name in ("O1", "O2", "O3", "O4")}
        context = [(f"context.{i}.weight", f"context.{i}.bias") for i in (0, 2)] if self.config.subscale > 1 else []
        self._context = [(state[weight], state[bias]) for weight, bias in context]

    @property
    def stored(self) -> int:
        """Numbers that the packed matrices hold."""
        return sum(m.nnz if isinstance(m, Layout) else m.size for m in self.matrices.values())

    # -- one step

    def _half(self, gates: np.ndarray, recurrent: np.ndarray, h: np.ndarray) -> np.ndarray:
        """The next half of the state from ``I x + b`` and ``R h``, each ``[3 half, streams]``."""
        half = len(h)
        ru = _sigmoid(gates[: 2 * half] + recurrent[: 2 * half])
        e = ru[:half]
        e *= recurrent[2 * half :]
        e += gates[2 * half :]
        np.tanh(e, out=e)
        return e + ru[half:] * (h - e)

    def _draw(self, h: np.ndarray, first: str, second: str, uniform: np.ndarray) -> np.ndarray:
        """A byte for each stream, by inversion."""
        hidden = _product(self.matrices[first], h, self._O[first])
        np.maximum(hidden, 0, out=hidden)
        logits = np.ascontiguousarray(_product(self.matrices[second], hidden, self._O[second]).T)
        if self.temperature != 1:
            logits /= np.float32(self.temperature)
        logits -= np.maximum.reduce(logits, axis=1, keepdims=True)
        share = np.add.accumulate(np.exp(logits, out=logits), axis=1, dtype=np.float64)
        drawn = np.add.reduce(share <= uniform[:, None] * share[:, -1:], axis=1)
        return np.minimum(drawn, share.shape[1] - 1)

    def step(self, h: np.ndarray, known: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One sample of each stream: the next state, and bytes ``[2, streams]``.

        ``h`` is ``[width, streams]``; ``known`` ``[2 + features (+ context), streams]`` starts with the bytes before,
        scaled to -1 .. 1; ``uniform`` ``[2, streams]`` lies in [0, 1).
        """
        half, cut = len(h) // 2, 3 * (len(h) // 2)
        recurrent = _product(self.matrices["R"], h)
        gates = self._I @ known
        gates += self._bias[:, None]
        following = np.empty_like(h)
        following[:half] = self._half(gates[:cut], recurrent[:cut], h[:half])
        coarse = self._draw(following[:half], "O1", "O2", uniform[0])
        gates[cut:] += self._I_c * (coarse.astype(h.dtype) * np.float32(2 / 255) - np.float32(1))
        following[half:] = self._half(gates[cut:], recurrent[cut:], h[half:])
        return following, np.stack([coarse, self._draw(following[half:], "O3", "O4", uniform[1])])

    # -- many

    def sample(self, length: int, *, streams: int = 1, features: Any = None, seed: int = 0) -> np.ndarray:
        """Draw signals from silence: int16 ``[streams, length]``.

        With ``subscale`` B, the B sub-signals of a signal are columns of one step, each behind the one before it by
        ``future + 1`` times: ``length / B + (B - 1) (future + 1)`` steps in all.

        Parameters
        ----------
        length : samples; a multiple of ``subscale``.
        streams : signals drawn side by side.
        features : ``[streams, length, features]`` where the model takes some.
        seed : one uniform number for each byte, whatever the order in which bytes are drawn.

        Raises
        ------
        InputError : a bad argument, named.
        """
        check_integer("length", length, at_least=1)
        check_integer("streams", streams, at_least=1)
        check_integer("seed", seed, at_least=0)
        config, parts = self.config, self.config.subscale
        want = (streams, length, config.features) if config.features else None
        got = None if features is None else tuple(np.shape(features))
        if got != want:
            raise InputError(f"features: got {got}, want {want}, one row for each sample")
        if length % parts:
            raise InputError(f"length: got {length}, want a multiple of {parts}, the sub-signals")
        known = None if features is None else np.asarray(features, np.float32)
        out = np.empty((streams, length), np.int16)
        self._run(out, known, length // parts, seed)
        return out

    def _run(self, out: np.ndarray, features: np.ndarray | None, times: int, seed: int) -> None:
        """Fill ``out``. Columns of the state are sub-signals of signals, ``stream * parts + part``."""
        config, streams = self.config, len(out)
        parts, lag = config.subscale, config.future + 1 if config.subscale > 1 else 0
        stream, part = (each.ravel() for each in np.indices((streams, parts)))
        uniform = rng(seed, "wave sampling").random((streams, times, parts, 2))
        seen = np.zeros((streams, parts, config.past + times + config.future), np.float32)
        h = np.zeros((config.width, streams * parts), np.float32)
        before = np.repeat(np.array([[128.0], [0.0]], np.float32), streams * parts, 1) * np.float32(2 / 255) - 1
        for now in range(times + (parts - 1) * lag):
            low, high = max(0, -(-(now - times + 1) // lag)) if lag else 0, min(parts, now // lag + 1) if lag else 1
            live = slice(None) if high - low == parts else np.flatnonzero((part >= low) & (part < high))
            s, p = stream[live], part[live]
            t = now - p * lag
            known = [before[:, live]]
            if features is not None:
                known.append(features[s, t * parts + p].T)
            if parts > 1:
                known.append(self._context_of(seen, s, p, t))
            whole = known[0] if len(known) == 1 else np.concatenate(known)
            state, drawn = self.step(np.ascontiguousarray(h[:, live]), whole, uniform[s, t, p].T)
            h[:, live] = state
            before[:, live] = drawn.astype(np.float32) * np.float32(2 / 255) - np.float32(1)
            value = drawn[0] * 256 + drawn[1] - 32768
            out[s, t * parts + p] = value
            if parts > 1:
                seen[s, p, config.past + t] = value / 32768

    def _context_of(self, seen: np.ndarray, s: np.ndarray, p: np.ndarray, t: np.ndarray) -> np.ndarray:
        """What the columns see of earlier sub-signals, ``[context, columns]``."""
        parts, window = self.config.subscale, self.config.window
        windows = seen[s[:, None, None], np.arange(parts)[None, :, None], (t[:, None] + np.arange(window))[:, None]]
        windows = windows * (np.arange(parts)[None, :, None] < p[:, None, None])
        x = np.concatenate([windows.reshape(len(s), -1), np.eye(parts, dtype=np.float32)[p]], 1).T
        for weight, bias in self._context:
            x = np.maximum(weight @ x + bias[:, None], 0)
        return x


def _example() -> Sampler:
    from ellzero.models.wavernn import WaveRNNConfig

    return Sampler(WaveRNNConfig(16, context=4).build())
