"""Where the residual stream, the attention and the MLP of a transformer are, whatever its modules are called.

Lives here: ``locate``. Does not live here: how a module is watched (``attach``) or read out (``activations``).
A block is known by its children, not by the name of its model, so relatives of GPT-2, Llama and BERT fit too.
"""

from __future__ import annotations

import re

from torch import nn

from ellzero.errors import InputError, check_choice
from ellzero.models.attach import matching

__all__ = ["SITES", "locate"]

SITES = ("residual", "mlp", "attention")

# What one block calls its attention and its MLP, each before it is added to the residual stream.
_CHILDREN = (
    ("attn", "mlp"),  # GPT-2
    ("self_attn", "mlp"),  # Llama, Mistral, Qwen, Gemma
    ("attention.output.dense", "output.dense"),  # BERT, RoBERTa: the modules around add and normalise
    ("attention", "mlp"),  # GPT-NeoX
    ("attention", "feed_forward"),  # ours
)


def _children(block: nn.Module) -> tuple[str, str] | None:
    names = {name for name, _ in block.named_modules()}
    return next(((a, m) for a, m in _CHILDREN if a in names and m in names), None)


def locate(model: nn.Module, hook: str, site: str = "residual") -> str:
    """The name of the module whose output is wanted.

    Parameters
    ----------
    hook : ``"layers.2"`` for the block of that number in any known transformer (``"layers.-1"`` for the last), or the
        name of a module, or a glob pattern that fits exactly one.
    site : of a block, its output (``"residual"``), or what its ``"mlp"`` or ``"attention"`` adds to the stream; for a
        module that is no block, ``"residual"`` means its own output.
    """
    check_choice("site", site, SITES)
    if not isinstance(hook, str) or not hook:
        raise InputError(f"hook: got {hook!r}, want a module name such as 'layers.2'")
    name = hook if hook in dict(model.named_modules()) else _by_number(model, hook) or _by_pattern(model, hook)
    if site == "residual":
        return name
    children = _children(model.get_submodule(name))
    if children is None:
        raise InputError(
            f"site: got {site!r}, but {name!r} ({type(model.get_submodule(name)).__name__}) has no attention and MLP "
            "of a known name; want the name of the module itself as hook"
        )
    return f"{name}.{children[0] if site == 'attention' else children[1]}"


def _by_number(model: nn.Module, hook: str) -> str | None:
    match = re.fullmatch(r"layers\.(-?\d+)", hook)
    if match is None:
        return None
    stacks = [
        (name, len(stack))
        for name, stack in model.named_modules()
        if isinstance(stack, nn.ModuleList) and len(stack) and all(_children(block) for block in stack)
    ]
    if len(stacks) != 1:
        return None
    (name, depth), number = stacks[0], int(match[1])
    if not -depth <= number < depth:
        raise InputError(f"hook: got {hook!r}, but the model has {depth} layers, want layers.0 to layers.{depth - 1}")
    return f"{name}.{number % depth}"


def _by_pattern(model: nn.Module, hook: str) -> str:
    found = [*matching(model, hook, name="hook")]
    if len(found) > 1:
        shown = ", ".join(found[:6]) + (", ..." if len(found) > 6 else "")
        raise InputError(f"hook: {hook!r} fits {len(found)} modules ({shown}), want a pattern for one")
    return found[0]
