"""Threads that suit the size of a step.

Lives here: ``products`` (multiply-adds of a forward pass, counted) and ``threads_for``, which runs small ones on one
thread. Does not live here: the loop, nor the threads of our own kernels.
A pool that meets at each small product waits for its slowest thread. On idle cores this gains little, on busy ones it
loses tenfold: 400 steps of a 64-256-128-10 network took 1.7 s of processor time on one thread and 14 to 22 s on two, on
two cores that three other processes shared, with the same accuracy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import check

__all__ = ["SMALL", "products", "threads_for"]

SMALL = 2**26
"""Multiply-adds of a forward pass below which one thread does it: a few milliseconds of one core."""


def products(model: nn.Module, batch: Any) -> int:
    """Multiply-adds of ``model(batch)`` in layers with a weight of two and more axes, counted in one pass."""
    count = 0

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal count
        if isinstance(output, Tensor):
            count += output.numel() * (module.weight.numel() // module.weight.shape[0])

    layers = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "weight", None), Tensor)
        and module.weight.ndim >= 2
        and not isinstance(module, nn.Embedding | nn.EmbeddingBag)
    ]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    was = model.training
    try:
        with torch.no_grad():
            model.eval()(batch)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was)
    return count


@contextlib.contextmanager
def threads_for(count: float) -> Iterator[None]:
    """One thread of torch inside where ``count`` multiply-adds are few (below ``SMALL``), else as many as outside."""
    check("count", count, at_least=0)
    before = torch.get_num_threads()
    if count < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
