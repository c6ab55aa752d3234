"""``Sparsifier``: masks on a user's model, moved by a recipe while the user's own loop trains it.

Lives here: which weights take part, the masks, their updates and the report. Does not live here: recipes (``recipes``),
exact selection and the optimiser's memory (``training.masks``), the loop.
After each ``step()`` a weight is zero wherever its mask is, and so is the optimiser's state there.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ellzero.errors import InputError, check_array, check_integer, suggestion
from ellzero.network.recipes import Recipe
from ellzero.training.masks import drop_and_grow, largest, reset_state, scale_by_fan_in

__all__ = ["Report", "Row", "Sparsifier", "prunable"]

_ROWS_ARE_UNITS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Row:
    """One weight of the report."""

    name: str
    shape: tuple[int, ...]
    kept: int
    numel: int

    @property
    def density(self) -> float:
        """The kept fraction."""
        return self.kept / self.numel


@dataclass(frozen=True)
class Report:
    """What is kept where: ``density`` over the prunable weights, ``density_of_all`` over all parameters."""

    step: int
    rows: tuple[Row, ...]
    excluded: Mapping[str, str]
    excluded_numel: int

    @property
    def kept(self) -> int:
        """Kept entries of the prunable weights."""
        return sum(row.kept for row in self.rows)

    @property
    def density(self) -> float:
        """Kept fraction of the prunable weights, counted."""
        return self.kept / sum(row.numel for row in self.rows)

    @property
    def density_of_all(self) -> float:
        """Kept fraction of all parameters, the excluded ones counted as kept."""
        return (self.kept + self.excluded_numel) / (sum(row.numel for row in self.rows) + self.excluded_numel)

    def __str__(self) -> str:
        width = max(len(name) for name in [*(row.name for row in self.rows), *self.excluded, "all prunable"])
        lines = [f"{'weight':<{width}}  {'kept':>10}  {'of':>10}  density"]
        for row in self.rows:
            lines.append(f"{row.name:<{width}}  {row.kept:>10}  {row.numel:>10}  {row.density:.4f}")
        total = sum(row.numel for row in self.rows)
        lines.append(f"{'all prunable':<{width}}  {self.kept:>10}  {total:>10}  {self.density:.4f}")
        lines.append(f"with the {self.excluded_numel} excluded parameters: {self.density_of_all:.4f}")
        lines += [f"{name:<{width}}  excluded: {why}" for name, why in self.excluded.items()]
        return "\n".join(lines)


def _owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Every name of each parameter with the module that holds it, by identity: tied weights have several."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append((f"{prefix}.{name}" if prefix else name, module))
    return owners


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
    owners, unused = _owners(model), {*(wanted or ()), *unwanted}
    chosen, excluded = {}, {}
    for name, parameter in model.named_parameters():
        names = [own for own, _ in owners[id(parameter)]]
        out, into = _fits(names, unwanted), _fits(names, wanted or [])
        unused -= {*out, *into}
        if not parameter.requires_grad:
            why = "frozen"
        elif out:
            why = "named in exclude"
        elif wanted is not None:
            why = None if into else "not named in include"
        else:
            why = _why_excluded(names, [module for _, module in owners[id(parameter)]], parameter)
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


class Sparsifier:
    """Keep a recipe's share of a model's weights: ``step()`` after each ``optimizer.step()``.

    Parameters
    ----------
    model : its weights are changed in place.
    recipe : what to keep, where and when.
    optimizer : holds the model's parameters; its state is zeroed at entries that leave or come.
    steps : steps of the whole run, which the recipe's schedules refer to.
    include, exclude : names or glob patterns of parameters or modules; see ``prunable``.
    within : masks by parameter name; only entries inside may ever be kept.
    masks : first masks by parameter name, in place of the recipe's ``start``.

    Attributes
    ----------
    masks : the kept entries by parameter name.
    excluded : why each other parameter takes no part.

    Raises
    ------
    InputError : a bad argument, named, or a weight that is not finite; the model is unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        optimizer: torch.optim.Optimizer,
        steps: int,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        within: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ):
        if not isinstance(recipe, Recipe):
            raise InputError(f"recipe: got {type(recipe).__name__}, want a Recipe such as rigl(density=0.1)")
        self.recipe, self.optimizer = recipe, optimizer
        self.steps = check_integer("steps", steps, at_least=1)
        self.weights, self.excluded = prunable(model, include, exclude)
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self.weights.items():
            if id(parameter) not in owned:
                raise InputError(f"optimizer: does not hold {name!r}; want an optimiser of this model's parameters")
            check_array(f"model: {name}", parameter.detach())
        self._excluded_numel = sum(p.numel() for n, p in model.named_parameters() if n in self.excluded)
        owners = _owners(model)
        self._scalable = {name for name, p in self.weights.items() if isinstance(owners[id(p)][0][1], _ROWS_ARE_UNITS)}
        self.within = self._checked("within", within) if within is not None else {}
        self.step_count = 0
        self._last = math.ceil(recipe.until * self.steps - 1e-9)
        self._gradients: dict[str, Tensor] = {}
        self._target = recipe.density(0, self.steps)
        self.masks = self._checked("masks", masks, every=True) if masks is not None else self._first_masks()
        self.counts = {name: int(mask.sum()) for name, mask in self.masks.items()}
        if recipe.scale_start and masks is None:
            for name in self._scalable:
                scale_by_fan_in(self.weights[name].data, self.masks[name])
        self._apply()
        self._hooks = [p.register_hook(self._hook(name)) for name, p in self.weights.items()]

    # -- the first masks

    def _checked(self, option: str, masks: Mapping[str, Tensor], every: bool = False) -> dict[str, Tensor]:
        """Masks given by name, as booleans on their weight's device."""
        found = {}
        for name, mask in masks.items():
            if name not in self.weights:
                raise InputError(f"{option}: {name!r} is no prunable weight{suggestion(name, self.weights)}")
            weight = self.weights[name]
            if not isinstance(mask, Tensor) or mask.shape != weight.shape or mask.dtype != torch.bool:
                got = (mask.dtype, tuple(mask.shape)) if isinstance(mask, Tensor) else type(mask).__name__
                raise InputError(f"{option}[{name!r}]: got {got}, want a boolean tensor of shape {tuple(weight.shape)}")
            found[name] = mask.to(weight.device).clone()
            outside = int((found[name] & ~self._allowed(name)).sum()) if option == "masks" else 0
            if outside:
                raise InputError(f"masks[{name!r}]: keeps {outside} entries outside within, want none")
        missing = [name for name in self.weights if name not in found]
        if every and missing:
            raise InputError(f"{option}: {missing[0]!r} is missing, want a mask for each prunable weight")
        return found

    def _allowed(self, name: str) -> Bool[Tensor, "*shape"]:
        weight = self.weights[name]
        return self.within.get(name, torch.ones(weight.shape, dtype=torch.bool, device=weight.device))

    def _first_masks(self) -> dict[str, Tensor]:
        """The start's choice, or the nonzero pattern cut down to the first density."""
        masks = {}
        for name, weight in self.weights.items():
            nonzero = weight.detach() != 0
            pattern = nonzero if self.recipe.start is None and bool(nonzero.any()) else torch.ones_like(nonzero)
            masks[name] = pattern & self._allowed(name)
        if self.recipe.start is None and self._target >= 1:
            return masks
        rule = self.recipe.start or self.recipe.score
        scores = {name: self._score(rule, name).masked_fill(~masks[name], -torch.inf) for name in masks}
        counts = self._allocate(scores)
        for name in masks:
            room = int(masks[name].sum())
            if counts[name] > room and name in self.within:
                raise InputError(f"within: {name!r} has room for {room}, want at least {counts[name]}")
            masks[name] &= largest(scores[name], min(counts[name], room))
        return masks

    # -- scores and counts

    def _score(self, rule: Any, name: str) -> Tensor:
        weight = self.weights[name].detach()
        memory = self.optimizer.state.get(self.weights[name], {})
        state = {"name": name, "step": self.step_count}
        for key in ("momentum_buffer", "exp_avg"):
            if memory.get(key) is not None:
                state["momentum"] = memory[key]
        scores = rule(weight, self._gradients.get(name), state)
        if bool(scores.isnan().any()):
            raise InputError(
                f"{name}: its {type(rule).__name__} scores are NaN at step {self.step_count}, want numbers"
            )
        return scores

    def _allocate(self, scores: Mapping[str, Tensor]) -> dict[str, int]:
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        counts = self.recipe.allocation.counts(shapes, self._target, scores)
        if not any(counts.values()):
            raise InputError(f"density: got {self._target}, which keeps none of the weights; want a larger one")
        return counts

    # -- steps

    def is_update(self, step: int) -> bool:
        """Whether the masks move at this step, counted from 1."""
        return 0 < step <= self._last and (step % self.recipe.every == 0 or step == self._last)

    def _hook(self, name: str):
        def masked(gradient: Tensor) -> Tensor:
            if self.is_update(self.step_count + 1):  # the only steps that read the dense gradient
                seen = self._gradients.get(name)
                self._gradients[name] = gradient.detach().clone() if seen is None else seen + gradient.detach()
            return gradient.masked_fill(~self.masks[name], 0)

        return masked

    @torch.no_grad()
    def step(self) -> None:
        """Move the masks if it is time, and hold weights and optimiser state to them."""
        self.step_count += 1
        if self.is_update(self.step_count):
            self._update()
        self._gradients.clear()
        self._apply()

    def _update(self) -> None:
        recipe = self.recipe
        keep = {name: self._score(recipe.score, name) for name in self.weights}
        progress = self.step_count / self.steps
        if self.step_count == self._last:  # the end of the schedule, whatever the rounding of ``until * steps``
            progress = max(progress, recipe.until)
        target = recipe.density(progress, 1.0)
        if target != self._target:
            self._target = target
            open_ = {n: self._allowed(n) if recipe.grow is not None else self.masks[n] for n in keep}
            self.counts = self._allocate({n: keep[n].float().masked_fill(~open_[n], -torch.inf) for n in keep})
        share = 0.0
        if recipe.turnover is not None and recipe.until > 0:
            share = recipe.turnover(min(self.step_count / (recipe.until * self.steps), 1.0), 1.0)
        for name, mask in self.masks.items():
            kept = int(mask.sum())
            k = self.counts[name] if recipe.grow is not None else min(self.counts[name], kept)
            dropped = int(share * min(k, kept))
            if dropped == 0 and k == kept:
                continue
            grow = self._score(recipe.grow, name) if recipe.grow is not None else None
            following = drop_and_grow(mask, keep[name], grow, k, dropped, self.within.get(name))
            changed = following != mask
            self.masks[name] = following
            self.weights[name].masked_fill_(changed, 0)  # what leaves is zero, what comes starts there
            reset_state(self.optimizer, self.weights[name], changed)

    @torch.no_grad()
    def _apply(self) -> None:
        for name, weight in self.weights.items():
            closed = ~self.masks[name]
            weight.masked_fill_(closed, 0)
            reset_state(self.optimizer, weight, closed)

    # -- what one asks

    def report(self) -> Report:
        """What is kept where, counted."""
        rows = tuple(Row(name, tuple(mask.shape), int(mask.sum()), mask.numel()) for name, mask in self.masks.items())
        return Report(self.step_count, rows, dict(self.excluded), self._excluded_numel)

    def remove(self) -> None:
        """Let go of the model: it keeps its zeros, and they may move again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        """Masks, counts and position."""
        return {
            "step": self.step_count, "steps": self.steps, "recipe": repr(self.recipe), "target": self._target,
            "counts": dict(self.counts), "masks": {name: mask.clone() for name, mask in self.masks.items()},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state of the same recipe and model; weights and optimiser state are held to its masks.

        Raises
        ------
        InputError : another recipe, number of steps or set of weights.
        """
        for name, mine in (("recipe", repr(self.recipe)), ("steps", self.steps)):
            if state[name] != mine:
                raise InputError(f"{name}: got {mine}, want {state[name]}, as in the saved state")
        masks = self._checked("state", state["masks"], every=True)
        self.masks, self.counts = masks, dict(state["counts"])
        self.step_count, self._target = state["step"], state["target"]
        self._gradients.clear()
        self._apply()
