"""Logits over a vocabulary, saturated and pooled over the tokens of a text, without the tensor of all logits.

Lives here: ``pooled_logits``, its backward, and the saturations. Does not live here: parameters (``heads``). A batch of
32 texts of 512 tokens has 2 GB of logits over 30 522 pieces; here tiles of them exist for a moment, forwards and again
backwards. That is why this is an autograd function of its own: what stands between states and pooled weights, the
transform included, is computed anew, a few texts at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ellzero.errors import InputError, check_choice

__all__ = ["POOLINGS", "SATURATIONS", "pooled_logits", "saturate"]

POOLINGS = ("max", "sum")
# Each with its derivative, told by what came out: of a log1p, 1 / (1 + x) = exp(-y).
SATURATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (lambda x: x, torch.ones_like),
    "log1p": (torch.log1p, lambda y: torch.exp(-y)),
    "log1p_log1p": (lambda x: torch.log1p(torch.log1p(x)), lambda y: torch.exp(-y - torch.expm1(y))),
}
TOKENS, TERMS, PAIRS = 2048, 2048, 8192  # what a tile holds: 16 MB of logits, 25 MB of rows at width 768


def saturate(x: Tensor, how: str = "log1p") -> Tensor:
    """``relu(x)``, ``log(1 + relu(x))`` or, as S098 has it, ``log(1 + log(1 + relu(x)))``."""
    return SATURATIONS[check_choice("saturation", how, SATURATIONS)][0](x.relu())


def pooled_logits(
    states: Float[Tensor, "b L d"],
    mask: Bool[Tensor, "b L"],
    embeddings: Float[Tensor, "V e"],
    bias: Float[Tensor, " V"],
    *,
    pooling: str = "max",
    saturation: str = "log1p",
    transform: nn.Module | None = None,
) -> Float[Tensor, "b V"]:
    """``pool_i saturate(t(h_i) . E_j + c_j)`` over the tokens i in ``mask``; zero for a text without any.

    Formal et al. (2021), equation 2 of the first paper (sum) and 6 of the second (max).

    Parameters
    ----------
    states : h. mask : the tokens that count; what others hold reaches neither result nor gradient.
    embeddings, bias : E and c. transform : t, row by row; without one the states themselves.

    Raises
    ------
    InputError : an unknown pooling or saturation, or sizes that do not fit.
    """
    check_choice("pooling", pooling, POOLINGS)
    check_choice("saturation", saturation, SATURATIONS)
    if states.ndim != 3 or mask.shape != states.shape[:2]:
        raise InputError(f"mask: got shape {tuple(mask.shape)} for states {tuple(states.shape)}, want [b, L]")
    if bias.shape != embeddings.shape[:1]:
        raise InputError(f"bias: got shape {tuple(bias.shape)}, want ({len(embeddings)},), one for each row")
    learned = [] if transform is None else [one for one in transform.parameters() if one.requires_grad]
    return _PooledLogits.apply((pooling, saturation, transform), states, mask, embeddings, bias, *learned)


class _PooledLogits(torch.autograd.Function):
    """Forward keeps the weights and, for max, the position of each; backward computes tiles anew."""

    @staticmethod
    def forward(ctx: Any, how: tuple, states: Tensor, mask: Tensor, E: Tensor, c: Tensor, *learned: Tensor) -> Tensor:
        pooling, saturation, transform = how
        trained = any(ctx.needs_input_grad)
        out = states.new_zeros(len(states), len(E))
        best = torch.zeros(out.shape, dtype=torch.int32, device=out.device) if trained and pooling == "max" else None
        with torch.autocast(states.device.type, enabled=False):
            for rows in _groups(states):
                flat = _transformed(transform, states[rows]).flatten(0, 1)
                for terms in _slices(len(E), TERMS):
                    z = _logits(flat, E[terms], c[terms], mask[rows])
                    if pooling == "sum":
                        out[rows, terms] = saturate(z, saturation).sum(-1).T
                    elif best is None:
                        out[rows, terms] = saturate(z.amax(-1), saturation).T
                    else:
                        top = z.max(-1)
                        out[rows, terms] = saturate(top.values, saturation).T
                        best[rows, terms] = top.indices.T.int()
        ctx.how = how
        ctx.save_for_backward(states, mask, E, c, out if pooling == "max" else None, best, *learned)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        states, mask, E, c, out, best, *learned = ctx.saved_tensors
        pooling, saturation, transform = ctx.how
        to_E = torch.zeros_like(E) if ctx.needs_input_grad[3] else None
        to_c = torch.zeros_like(c)
        to_states = torch.zeros_like(states) if ctx.needs_input_grad[1] else None
        to_learned = [torch.zeros_like(one) for one in learned]
        with torch.autocast(states.device.type, enabled=False):
            for rows in _groups(states):
                x = states[rows].detach().requires_grad_(to_states is not None)
                with torch.enable_grad():
                    h = _transformed(transform, x)
                flat = h.detach().flatten(0, 1)
                if pooling == "max":
                    slope = SATURATIONS[saturation][1](out[rows]).where(out[rows] > 0, 0)
                    to_flat = _back_max(flat, E, gradient[rows] * slope, best[rows], states.shape[1], to_E, to_c)
                else:
                    to_flat = _back_sum(flat, E, c, gradient[rows], mask[rows], saturation, to_E, to_c)
                wanted = [*([x] if to_states is not None else []), *learned]
                if wanted:
                    found = list(torch.autograd.grad(h, wanted, to_flat.view_as(h), allow_unused=True))
                    if to_states is not None:
                        to_states[rows] = found.pop(0)
                    for total, one in zip(to_learned, found):
                        total += 0 if one is None else one
        return None, to_states, None, to_E, to_c, *to_learned


def _groups(states: Tensor) -> Iterator[slice]:
    """Some texts at a time."""
    return _slices(len(states), max(1, TOKENS // max(states.shape[1], 1))) if states.shape[1] else iter(())


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _transformed(transform: nn.Module | None, x: Tensor) -> Tensor:
    return x if transform is None else transform(x)


def _logits(flat: Tensor, E: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    """``[terms, texts, L]``, -inf where no token counts: long and contiguous lines to pool over."""
    z = torch.addmm(c[:, None], E, flat.T).view(len(E), *mask.shape)
    return z.masked_fill_(~mask, -torch.inf)


def _back_max(
    flat: Tensor, E: Tensor, g: Tensor, best: Tensor, length: int, to_E: Tensor | None, to_c: Tensor
) -> Tensor:
    """Each weight that is on pulls at one token and one embedding."""
    to_flat = torch.zeros_like(flat)
    text, term = g.nonzero(as_tuple=True)
    for some in _slices(len(text), PAIRS):
        r, j = text[some], term[some]
        w, token = g[r, j], r * length + best[r, j]
        to_flat.index_add_(0, token, w[:, None] * E[j])
        to_c.index_add_(0, j, w)
        if to_E is not None:
            to_E.index_add_(0, j, w[:, None] * flat[token])
    return to_flat


def _back_sum(
    flat: Tensor, E: Tensor, c: Tensor, g: Tensor, mask: Tensor, saturation: str, to_E: Tensor | None, to_c: Tensor
) -> Tensor:
    """Every token pulls, so the tiles are computed again."""
    to_flat = torch.zeros_like(flat)
    for terms in _slices(len(E), TERMS):
        z = _logits(flat, E[terms], c[terms], mask)
        slope = SATURATIONS[saturation][1](saturate(z, saturation)).mul_(z > 0)
        pull = slope.mul_(g[:, terms].T[..., None]).flatten(1)
        to_flat.addmm_(pull.T, E[terms])
        to_c[terms] += pull.sum(1)
        if to_E is not None:
            to_E[terms].addmm_(pull, flat)
    return to_flat
