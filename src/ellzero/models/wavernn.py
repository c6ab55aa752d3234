"""WaveRNN: raw 16-bit audio, one sample after the other, from one recurrent layer with two softmaxes.

Lives here: ``WaveRNNConfig``, ``WaveRNN``, ``audio`` (the loss), ``split`` and ``join`` of samples,
``fold`` and ``unfold`` of signals. Does not live here: sampling (``network.sampling``), pruning (``network``), audio
files (``data.audio``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check_integer
from ellzero.models.initial import empty, fill
from ellzero.registry import register

__all__ = ["PRUNED", "WaveRNN", "WaveRNNConfig", "audio", "fold", "join", "scaled", "split", "unfold"]

PRUNED = ("R_u", "R_r", "R_e", "O1.weight", "O2.weight", "O3.weight", "O4.weight")
"""The matrices that a product per sample reads whole: what is worth pruning, as ``include=``."""

_LEVELS = 256
_SILENCE = 32768


def split(samples: Int[Tensor, "*shape"]) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"]]:
    """Coarse and fine byte of 16-bit samples (-32768 to 32767), each 0 to 255."""
    whole = samples.long() + _SILENCE
    return whole // _LEVELS, whole % _LEVELS


def join(coarse: Int[Tensor, "*shape"], fine: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The inverse of ``split``."""
    return coarse * _LEVELS + fine - _SILENCE


def scaled(level: Tensor) -> Tensor:
    """A byte as a number from -1 to 1."""
    return level.float() * (2 / (_LEVELS - 1)) - 1


def fold(signal: Tensor, parts: int, axis: int = -1) -> Tensor:
    """``parts`` interleaved sub-signals as a new axis before ``axis``: sub-signal i has samples i, i + parts, ...

    Raises
    ------
    InputError : a length that is no multiple of ``parts``.
    """
    check_integer("parts", parts, at_least=1)
    length = signal.shape[axis]
    if length % parts:
        raise InputError(f"signal: got {length} samples, want a multiple of {parts}, the sub-signals")
    axis %= signal.ndim
    return signal.unflatten(axis, (length // parts, parts)).transpose(axis, axis + 1)


def unfold(folded: Tensor, axis: int = -1) -> Tensor:
    """The inverse of ``fold``; ``axis`` is the time of the sub-signals."""
    axis %= folded.ndim
    return folded.transpose(axis - 1, axis).flatten(axis - 1, axis)


@dataclass(frozen=True)
class WaveRNNConfig:
    """Sizes of a ``WaveRNN``; ``build`` makes one."""

    width: int = 896
    """Entries of the state: one half for the coarse byte, one for the fine."""
    features: int = 0
    """Numbers given with each sample, such as a spectrogram's column; 0 for none."""
    subscale: int = 1
    """Sub-signals that a signal is folded into, which are then sampled side by side."""
    past: int = 8
    """Times before its own that a sub-signal sees of the earlier ones."""
    future: int = 8
    """Times after its own that it sees of them, which they must be ahead by."""
    context: int = 64
    """Width of the network that reads them."""

    def __post_init__(self) -> None:
        if check_integer("width", self.width, at_least=2) % 2:
            raise InputError(f"width: got {self.width}, want an even number, for two halves")
        for name in ("features", "past", "future"):
            check_integer(name, getattr(self, name), at_least=0)
        for name in ("subscale", "context"):
            check_integer(name, getattr(self, name), at_least=1)

    @property
    def window(self) -> int:
        """Times that a sub-signal sees of each earlier one."""
        return self.past + 1 + self.future

    def build(self, seed: int = 0) -> WaveRNN:
        """A ``WaveRNN`` with fresh weights drawn from ``seed``."""
        return fill(empty(lambda: WaveRNN(self)), seed, lambda name, weight: weight[0].numel() ** -0.5)


@register(
    kind="model", id="S148", source="arXiv:1802.08435", extra="torch",
    example=lambda: WaveRNNConfig(16, context=4).build(),
    claim="one recurrent layer with two softmaxes draws 16-bit sound; that large sparse ones beat small dense ones at "
    "equal weights did not show here",
)  # fmt: skip
class WaveRNN(nn.Module):
    """A recurrent layer whose state's halves give the coarse and the fine byte of each 16-bit sample.

    With ``x_t = [c_{t-1}, f_{t-1}, c_t]`` (and what else is known of the sample), ``c_t`` being kept from the coarse
    half::

        u = sig(R_u h + I_u x)    r = sig(R_r h + I_r x)    e = tanh(r * (R_e h) + I_e x)    h' = u * h + (1 - u) * e
        P(c_t) = softmax(O2 relu(O1 h'_coarse))    P(f_t) = softmax(O4 relu(O3 h'_fine))

    Kalchbrenner et al. (2018), equation 2. Each ``R`` is a parameter of its own, so that each is pruned by itself.
    With ``subscale`` B (section 4) the signal is folded into B sub-signals; each is a sequence of its own, which also
    sees the earlier sub-signals around its own time through a small network of two layers.
    """

    def __init__(self, config: WaveRNNConfig):
        super().__init__()
        self.config = config
        width, half = config.width, config.width // 2
        self.R_r, self.R_u, self.R_e = (nn.Parameter(torch.empty(width, width)) for _ in range(3))
        known = 2 + config.features + (config.context if config.subscale > 1 else 0)
        self.I = nn.Parameter(torch.empty(3 * width, known))  # rows r, u, e; columns c, f of before, then the known
        self.I_c = nn.Parameter(torch.empty(3, half))  # of c_t, to the fine half alone
        self.bias = nn.Parameter(torch.empty(3 * width))
        self.O1, self.O3 = nn.Linear(half, half), nn.Linear(half, half)
        self.O2, self.O4 = nn.Linear(half, _LEVELS), nn.Linear(half, _LEVELS)
        if config.subscale > 1:
            seen = config.subscale * config.window + config.subscale
            self.context = nn.Sequential(
                nn.Linear(seen, config.context), nn.ReLU(), nn.Linear(config.context, config.context), nn.ReLU()
            )

    def logits(
        self, coarse: Int[Tensor, "n t"], fine: Int[Tensor, "n t"], before: tuple[Tensor, Tensor],
        known: Float[Tensor, "n t k"] | None = None,
    ) -> tuple[Float[Tensor, "n t 256"], Float[Tensor, "n t 256"]]:  # fmt: skip
        """Logits of the coarse and the fine bytes, from bytes ``before`` (one step earlier) and what is known."""
        levels = [scaled(level)[..., None] for level in (*before, coarse)]
        inputs = [*levels[:2], *([] if known is None else [known]), levels[2]]
        half = self.config.width // 2
        current = F.pad(self.I_c, (half, 0)).reshape(-1, 1)
        weights = [torch.cat([self.I, current], 1), torch.cat([self.R_r, self.R_u, self.R_e]), self.bias]
        weights.append(torch.zeros_like(self.bias))
        x = torch.cat([each.to(self.I.dtype) for each in inputs], -1)
        start = x.new_zeros(1, len(x), self.config.width)
        states, _ = torch.gru(x, start, weights, True, 1, 0.0, self.training, False, True)
        return self.O2(F.relu(self.O1(states[..., :half]))), self.O4(F.relu(self.O3(states[..., half:])))

    def forward(
        self, samples: Int[Tensor, "n t"], features: Float[Tensor, "n t features"] | None = None
    ) -> Float[Tensor, "n t"]:
        """``-log P(sample)`` of each 16-bit sample of several signals, from silence before the first.

        Raises
        ------
        InputError : features that do not fit, or a length that is no multiple of ``subscale``.
        """
        config = self.config
        want = None if config.features == 0 else (*samples.shape, config.features)
        if (None if features is None else tuple(features.shape)) != want:
            got = None if features is None else tuple(features.shape)
            raise InputError(f"features: got {got}, want {want}, one row for each sample")
        n, parts = len(samples), config.subscale
        folded = fold(samples, parts)
        known = [] if features is None else [fold(features, parts, 1).flatten(0, 1)]
        if parts > 1:
            known.append(self.context(self._seen(folded)).flatten(0, 1))
        rows = folded.flatten(0, 1)
        coarse, fine = split(rows)
        before = tuple(F.pad(level, (1, -1), value=first) for level, first in zip((coarse, fine), (128, 0)))
        logits = self.logits(coarse, fine, before, torch.cat(known, -1) if known else None)
        logits = [logit.float() if logit.element_size() < 4 else logit for logit in logits]
        each = [
            F.cross_entropy(logit.flatten(0, 1), level.flatten(), reduction="none").reshape(level.shape)
            for logit, level in zip(logits, (coarse, fine))
        ]
        return unfold((each[0] + each[1]).reshape(n, parts, -1))

    def _seen(self, folded: Int[Tensor, "n parts t"]) -> Float[Tensor, "n parts t seen"]:
        """For each sub-signal and time: the earlier sub-signals around it, zeros for the others, and which it is."""
        config, parts = self.config, self.config.subscale
        values = F.pad(folded.float() / _SILENCE, (config.past, config.future))
        windows = values.unfold(-1, config.window, 1).transpose(1, 2)  # [n, t, parts, window]
        earlier = torch.ones(parts, parts).tril(-1)[:, None, :, None]
        seen = (windows[:, None] * earlier).flatten(3)
        which = torch.eye(parts)[None, :, None].expand(len(folded), parts, seen.shape[2], parts)
        return torch.cat([seen, which], -1).to(self.I.dtype)


def audio(model: WaveRNN, batch: Any) -> Tensor:
    """Nats per 16-bit sample: samples ``[n, t]``, or those and their features."""
    samples, *features = batch if isinstance(batch, tuple | list) else (batch,)
    return model(samples, *features).mean()
