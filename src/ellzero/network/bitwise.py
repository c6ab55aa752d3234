"""Bit-wise training: the bits of whole-number weights are what is learned, and those that need not be carry data.

Lives here: ``Bits`` (the view from latents to a weight) and ``Bitwise`` (on a user's model: which bits train, what the
others hold, float export). Does not live here: the straight-through step (``parts.gradients``), the loop, masks.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.network.prunable import owners, prunable, unwrapped
from ellzero.parts.gradients import StraightThrough
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["BitRow", "Bits", "Bitwise"]

_MOST = 22
"""Magnitude bits that a rounding to float32 leaves readable: ``2^22 2^-24`` is less than half of one."""
_HEADER = 8


class Bits(nn.Module):
    """``w = scale (-1)^s sum_k 2^k b_k``, whose bits ``b = [x > 0]`` come from latents or are held.

    A parametrisation of torch from latents ``[trained planes, *shape]`` to the weight. The derivative goes straight
    through each bit: ``dL/dx_k = scale (-1)^s 2^k dL/dw`` and ``dL/dx_s = -2 |w| dL/dw``. Plane ``bits`` is the sign.

    Parameters
    ----------
    shape, bits : of the weight; magnitude bits.
    trained : planes that have latents, rising.
    scale : of the integers.
    size : of a latent that stands for a given bit.
    """

    def __init__(self, shape: Sequence[int], bits: int, trained: Sequence[int], scale: float, size: float):
        super().__init__()
        self.bits, self.trained, self.size = bits, tuple(trained), size
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).double())
        self.register_buffer("held", torch.zeros(tuple(shape), dtype=torch.int32))

    @property
    def free(self) -> tuple[int, ...]:
        """The magnitude planes without latents."""
        return tuple(k for k in range(self.bits) if k not in self.trained)

    def integers(self, latents: Float[Tensor, "planes ..."]) -> Int[Tensor, "*shape"]:
        """All bits as one number per weight, the sign as bit ``bits``."""
        found = self.held.clone()
        for plane, k in zip(latents, self.trained):
            found |= (plane > 0).int() << k
        return found

    def forward(self, latents: Float[Tensor, "planes ..."]) -> Float[Tensor, "*shape"]:
        """The weight."""
        kind, rows = latents.dtype, [i for i, k in enumerate(self.trained) if k < self.bits]
        bit = StraightThrough().step(latents)
        size = (self.held & (2**self.bits - 1)).to(kind)
        if rows:
            powers = latents.new_tensor([2.0 ** self.trained[i] for i in rows])
            size = size + torch.tensordot(powers, bit[: len(rows)], 1)
        sign = bit[-1] if self.bits in self.trained else ((self.held >> self.bits) & 1).to(kind)
        return self.scale.to(kind) * (1 - 2 * sign) * size

    def right_inverse(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "planes ..."]:
        """Latents of the nearest weight that the trained planes can make; planes that are held follow too."""
        size = (weight.double().abs() / self.scale).round().clamp(max=2**self.bits - 1).int()
        whole = size | (torch.signbit(weight).int() << self.bits)
        self.held.copy_(whole & ~sum(1 << k for k in self.trained))
        planes = [((whole >> k) & 1).to(weight.dtype) for k in self.trained]
        return self.size * (2 * torch.stack(planes) - 1)


class BitRow(NamedTuple):
    """One weight: its share of zeros, and how many of its bits train and are held."""

    name: str
    shape: tuple[int, ...]
    scale: float
    zeros: float
    trained: int
    held: int


@register(
    kind="model", wing="network", id="S066", source="arXiv:2202.09571", extra="torch",
    example=lambda: Bitwise(nn.Linear(4, 3)),
    claim="a network of learned bits is within a point of a float one, and its low bits can hold any data",
)  # fmt: skip
class Bitwise:
    """Make the weights of a model whole numbers whose bits are trained. Ivan (2022).

    Weights are ``scale (-1)^s sum_k 2^k b_k`` with ``scale`` fixed so that independent even bits have the deviation of
    He, ``sqrt(2 / fan_in)``. On MNIST (two seeds) 95.2 +- 0.2 % with bits and 95.9 +- 0.3 with floats, whose rate was
    best at the edge of those tried; the same within half a point with the sign and the three highest bits alone, or
    with a file in the others. The optimiser is built afterwards, on ``model.parameters()``, which are now latents
    ``[planes, *shape]`` (Adam at 1e-2 suits them; a weight decay would pull latents, not weights); any loop, checkpoint
    and precision works as before. Biases, norms and embeddings stay as they are. Zeros come by themselves: a weight is
    zero where all its magnitude bits are, at one bit half of them at first.

    Parameters
    ----------
    model : changed in place, until ``remove``.
    bits : magnitude bits of a weight, 1 to 22; the sign comes on top.
    trained : None for all bits, or a number: the sign and that many of the highest magnitude bits train, and the others
        hold random bits, or a payload.
    start : ``"random"`` bits, or those nearest to the ``"weights"`` that are there (the scale then grows where He's
        would clip them).
    spread : standard deviation of the first latents; the larger, the later a bit flips.
    seed : draws latents and held bits.
    include, exclude : names or glob patterns of parameters or modules, as for ``Sparsifier``.

    Raises
    ------
    InputError : a bad argument, named, or a weight that is tied or not float32 or float64.
    """

    def __init__(
        self, model: nn.Module, bits: int = 8, *, trained: int | None = None, start: str = "random",
        spread: float = 0.1, seed: int = 0, include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ):  # fmt: skip
        check_integer("bits", bits, at_least=1, at_most=_MOST)
        check_choice("start", start, ("random", "weights"))
        check("spread", spread, above=0, below=math.inf)
        check_integer("seed", seed, at_least=0)
        top = bits if trained is None else check_integer("trained", trained, at_least=0, at_most=bits)
        model = unwrapped(model)
        weights, _ = prunable(model, include, exclude)
        holders = owners(model)
        for name, weight in weights.items():
            if len(holders[id(weight)]) > 1 or weight.dtype not in (torch.float32, torch.float64):
                raise InputError(
                    f"model: {name!r} is tied or {weight.dtype}, want weights of one module in float32 or float64"
                )
        self.model, self.bits = model, bits
        self._places: dict[str, tuple[nn.Module, str]] = {}
        for name, weight in weights.items():
            module, own = holders[id(weight)][0][1], name.rpartition(".")[2]
            self._cover(name, module, own, top, start, spread, seed)
            self._places[name] = (module, own)

    def _cover(self, name, module, own, top, start, spread, seed) -> None:
        weight = getattr(module, own)
        shape = tuple(weight.shape)  # the parameter itself becomes the latents
        most = 2**self.bits - 1
        scale = math.sqrt(2 / weight[0].numel()) / math.sqrt(most * (2 * most + 1) / 6)
        largest = float(weight.detach().abs().max()) / most if start == "weights" else 0.0
        if largest > scale * (1 + 1e-6):  # not for the rounding of weights that were made of bits
            scale = largest
        planes = range(self.bits - top, self.bits + 1)
        view = Bits(shape, self.bits, planes, scale, spread).to(weight.device)
        parametrize.register_parametrization(module, own, view)
        if start == "random":
            stream = rng(seed, "bits", name)
            latents = module.parametrizations[own].original
            drawn = stream.standard_normal(tuple(latents.shape), dtype=np.float32)
            with torch.no_grad():
                latents.copy_(torch.from_numpy(spread * drawn))
            held = stream.integers(0, 2 ** (self.bits - top), shape, dtype=np.int32)
            view.held.copy_(torch.from_numpy(held))

    def _views(self) -> dict[str, tuple[Bits, Tensor]]:
        if not self._places:
            raise InputError("model: its bits are gone since remove(), want Bitwise(model, start='weights') first")
        lists = {name: module.parametrizations[own] for name, (module, own) in self._places.items()}
        return {name: (each[0], each.original) for name, each in lists.items()}

    # -- which bits train

    @torch.no_grad()
    def hold(self, trained: int) -> None:
        """From now on only the sign and the ``trained`` highest magnitude bits train; the others stay as they are.

        An optimiser built before is to be built anew: the latents have become fewer.
        """
        check_integer("trained", trained, at_least=0, at_most=self.bits)
        for name, (view, latents) in self._views().items():
            stay = [k for k in view.trained if k >= self.bits - trained]
            if len(stay) != trained + 1:
                raise InputError(f"trained: got {trained}, want at most {len(view.trained) - 1}, as train now ({name})")
            view.held.copy_(view.integers(latents) & ~sum(1 << k for k in stay))
            latents.set_(latents[[view.trained.index(k) for k in stay]].clone())
            latents.grad, view.trained = None, tuple(stay)

    @torch.no_grad()
    def clear(self) -> None:
        """Set all held magnitude bits to 0."""
        for view, _ in self._views().values():
            view.held.bitwise_and_(1 << self.bits)

    # -- what the others hold

    @property
    def capacity(self) -> int:
        """Bytes that ``store`` takes."""
        bits = sum(view.held.numel() * len(view.free) for view, _ in self._views().values())
        return max(bits // 8 - _HEADER, 0)

    @torch.no_grad()
    def store(self, data: bytes) -> None:
        """Write bytes into the held magnitude bits: weight after weight, in each the low planes first.

        Eight bytes before them keep their length and CRC-32; bits behind them stay as they are.

        Raises
        ------
        InputError : more than ``capacity``.
        """
        data = bytes(data)
        if len(data) > self.capacity:
            raise InputError(f"data: got {len(data)} bytes, want at most {self.capacity}; hold more bits")
        whole = len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data
        stream = np.unpackbits(np.frombuffer(whole, np.uint8), bitorder="little")
        for view, _ in self._views().values():
            held = view.held.cpu().numpy().copy()
            for k in view.free:
                part, stream = stream[: held.size], stream[held.size :]
                flat = held.reshape(-1)[: len(part)]
                flat &= ~np.int32(1 << k)
                flat |= part.astype(np.int32) << k
            view.held.copy_(torch.from_numpy(held))

    def read(self) -> bytes:
        """What ``store`` wrote, to the bit.

        Raises
        ------
        InputError : nothing is stored, or bits of it have changed.
        """
        planes = [
            ((view.held.cpu().numpy().reshape(-1) >> k) & 1).astype(np.uint8)
            for view, _ in self._views().values()
            for k in view.free
        ]
        whole = np.packbits(np.concatenate(planes or [np.zeros(0, np.uint8)]), bitorder="little").tobytes()
        size, code = (int.from_bytes(whole[i : i + 4], "little") for i in (0, 4))
        data = whole[_HEADER : _HEADER + size]
        if len(whole) < _HEADER or size > self.capacity or zlib.crc32(data) != code:
            raise InputError("model: its held bits are no whole payload, want those that store() wrote")
        return data

    # -- what one asks

    def report(self) -> tuple[BitRow, ...]:
        """One row per weight, counted."""
        rows = []
        for name, (view, latents) in self._views().items():
            size = view.integers(latents.detach()) & (2**self.bits - 1)
            zeros = float((size == 0).double().mean())
            held = self.bits + 1 - len(view.trained)
            rows.append(BitRow(name, tuple(view.held.shape), float(view.scale), zeros, len(view.trained), held))
        return tuple(rows)

    def remove(self) -> None:
        """Let go of the model: its weights are ordinary float ones of the same value. A second call does nothing.

        ``Bitwise(model, bits, trained=..., start="weights")`` on them finds the same bits again, payload and all.
        """
        for module, own in self._places.values():
            parametrize.remove_parametrizations(module, own, leave_parametrized=True)
        self._places = {}
