"""Which weights of a user's model take part, and why each other parameter does not.

Lives here: ``prunable`` and its name patterns, ``owners`` (every name of a tied weight), ``unwrapped``, the warning
about tied embeddings. Does not live here: masks (``sparsifier``), patterns for modules whose activations are wanted
(``models.attach``).
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from ellzero.errors import InputError, suggestion

__all__ = ["owners", "prunable", "unwrapped", "warn_if_tied"]


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside what ``torch.compile`` and data parallel put around it, so that names are theirs."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Every name of each parameter with the module that holds it, by identity: tied weights have several."""
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append((f"{prefix}.{name}" if prefix else name, module))
    return found


def _why_excluded(names: Sequence[str], modules: Sequence[nn.Module], parameter: Tensor) -> str | None:
    """Why a parameter takes no part unless asked for; None where it does."""
    embeds = [isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in modules]
    if any(embeds):
        return "embedding" if all(embeds) else "tied to an embedding"
    if any("norm" in type(module).__name__.lower() for module in modules):
        return "norm"
    if parameter.ndim < 2:
        return "bias" if all(name.rsplit(".", 1)[-1].startswith("bias") for name in names) else "vector"
    return "embedding" if any("embed" in name.rsplit(".", 1)[-1].lower() for name in names) else None


def _fits(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The patterns that fit a parameter, by one of its names or the name of a module that holds it."""
    known = [*names, *(name.rpartition(".")[0] for name in names)]
    return [pattern for pattern in patterns if any(fnmatch.fnmatchcase(name, pattern) for name in known)]


def _patterns(name: str, patterns: Any) -> list[str] | None:
    if patterns is None:
        return None
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(f"{name}: got {pattern!r}, want names or glob patterns of parameters or modules")
    return patterns


def prunable(
    model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """The weights that take part, and why each other parameter does not.

    Weights of two and more axes take part; biases, norms, embeddings, heads tied to one and frozen parameters do not.
    With ``include`` exactly what it names takes part, less what ``exclude`` names. Tied weights count once.

    Raises
    ------
    InputError : a pattern that fits nothing, or nothing left to prune.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: got {type(model).__name__}, want a torch module")
    wanted, unwanted = _patterns("include", include), _patterns("exclude", exclude) or []
    holders, unused = owners(model), {*(wanted or ()), *unwanted}
    chosen, excluded = {}, {}
    for name, parameter in model.named_parameters():
        names = [own for own, _ in holders[id(parameter)]]
        out, into = _fits(names, unwanted), _fits(names, wanted or [])
        unused -= {*out, *into}
        if not parameter.requires_grad:
            why = "frozen"
        elif out:
            why = "named in exclude"
        elif wanted is not None:
            why = None if into else "not named in include"
        else:
            why = _why_excluded(names, [module for _, module in holders[id(parameter)]], parameter)
        if why is None:
            chosen[name] = parameter
        else:
            excluded[name] = why
    if unused:
        pattern = sorted(unused)[0]
        known = [name for name, _ in model.named_parameters()]
        option = "include" if pattern in (wanted or ()) else "exclude"
        raise InputError(f"{option}: no parameter or module fits {pattern!r}{suggestion(pattern, known)}")
    if not chosen:
        raise InputError(f"model: {type(model).__name__} has no weight to prune; excluded: {excluded}")
    return chosen, excluded


def warn_if_tied(model: nn.Module, chosen: Collection[str]) -> None:
    """Say what one threshold for all layers means where a head is tied to an embedding."""
    holders = owners(model)
    for name, parameter in model.named_parameters():
        embeds = [isinstance(module, nn.Embedding) for _, module in holders[id(parameter)]]
        if not any(embeds) or all(embeds):
            continue
        if name in chosen:
            text = (
                "is pruned by one threshold with all other layers, though its entries have a scale of their own; "
                "exclude it, or share the density out otherwise (allocation='uniform' or 'erk')"
            )
        else:
            total = sum(p.numel() for p in model.parameters())
            text = (
                f"stays dense with {parameter.numel()} of {total} parameters, and the density is that of the others; "
                "report().density_of_all counts them all"
            )
        warnings.warn(f"{name}: this embedding, tied to the head, {text}", UserWarning, stacklevel=3)
