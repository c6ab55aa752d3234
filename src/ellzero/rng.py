"""Seeded random streams: the same seed and names give the same numbers on every rank, backend and run.

Lives here: ``rng``. Does not live here: any use of the global generators of NumPy or torch, which are
never touched. Random masks and initial weights are drawn here on the CPU and then moved.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ellzero.errors import check_integer

__all__ = ["rng", "torch_generator"]


def _entropy(names: tuple[object, ...]) -> tuple[int, ...]:
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))


def rng(seed: int, *names: object) -> np.random.Generator:
    """A generator for one purpose: ``rng(0, "mask", "layers.3")``.

    Streams with different names are independent; the same ``(seed, names)`` repeats exactly.
    """
    seed = check_integer("seed", seed, at_least=0)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=_entropy(names))))


def torch_generator(seed: int, *names: object):
    """A CPU ``torch.Generator`` for one purpose, for library calls that take nothing else."""
    import torch

    generator = torch.Generator()
    generator.manual_seed(int(rng(seed, "torch", *names).integers(2**62)))
    return generator
