"""``Sparsifier``: masks on a user's model, moved by a recipe while the user's own loop trains it.

Lives here: the masks, their updates, and what the optimiser and the network see of them. Does not live here: recipes
(``recipes``), how masks move (``moves``), what a dropped weight still shows (``views``), which weights take part
(``prunable``), exact selection and the optimiser's memory (``training.masks``), the loop.
Unless a recipe says otherwise, after each ``step()`` a weight is zero wherever its mask is, and so is the optimiser's
state there. What need not be written is not: torch's own optimisers keep zeros where gradients are held to the mask,
and torch counts writes by others, all but those through ``.data``, which are seen to at every tenth step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn, optim
from torch.nn.utils import parametrize

from ellzero.errors import InputError, check_array, check_integer, suggestion
from ellzero.network.moves import Update, afresh, within_layers
from ellzero.network.prunable import owners, prunable, unwrapped, warn_if_tied
from ellzero.network.recipes import Recipe
from ellzero.network.report import Cost, Report, Row
from ellzero.parts.allocations import Global
from ellzero.training.masks import bits, forget, has_nan, hold, hold_state, largest, scale_by_fan_in

__all__ = ["Report", "Row", "Sparsifier", "prunable"]

_KEEP_ZEROS = {  # each entry by itself, and a zero with a zero derivative has no memory
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adagrad, optim.Adadelta,
}  # fmt: skip
_ANYWAY = 10
_ROWS_ARE_UNITS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Sparsifier:
    """Keep a recipe's share of a model's weights: ``step()`` after each ``optimizer.step()``.

    Works in a plain loop, with mixed precision and gradient accumulation, under ``torch.compile`` and distributed data
    parallel (gradients that masks are chosen by are averaged over ranks, so masks agree). A recipe with ``through``
    comes before the data-parallel wrapper, which looks at the parameters once: first this, then the wrapper.

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
    budgets : how many entries each weight is to keep.
    excluded : why each other parameter takes no part.
    views : the modules of a recipe with ``through`` by parameter name.

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
        self.recipe, self.optimizer = recipe, getattr(optimizer, "optimizer", optimizer)
        self.steps = check_integer("steps", steps, at_least=1)
        if isinstance(model, nn.Module):
            parallel = any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules())
            if recipe.through is not None and parallel:
                raise InputError(
                    "model: got DistributedDataParallel with a recipe whose views join the parameters; want the "
                    "Sparsifier on the module first and the wrapper around it afterwards"
                )
            model = unwrapped(model)
        self.weights, self.excluded = prunable(model, include, exclude)
        owned = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self.weights.items():
            if id(parameter) not in owned:
                raise InputError(f"optimizer: does not hold {name!r}; want an optimiser of this model's parameters")
            check_array(f"model: {name}", parameter.detach())
        if isinstance(recipe.allocation, Global):
            warn_if_tied(model, self.weights)
        self._excluded_numel = sum(p.numel() for n, p in model.named_parameters() if n in self.excluded)
        holders = owners(model)
        self._scalable = {name for name, p in self.weights.items() if isinstance(holders[id(p)][0][1], _ROWS_ARE_UNITS)}
        self.within = self._checked("within", within) if within is not None else {}
        self.step_count, self.round_count, self._spent = 0, 0, 0.0
        self._last = math.ceil(recipe.until * self.steps - 1e-9)
        self._gradients: dict[str, Tensor] = {}
        self._bits: dict[str, tuple[Tensor, int, Tensor]] = {}
        self._remembers: dict[str, tuple[Any, Tensor]] = {}
        self._gradient_versions: dict[str, int] = {}
        self._weight_versions: dict[str, int] = {}
        self._stepped: dict[str, int] = {}
        self.views: dict[str, Any] = {}
        self.rounds: dict[str, Tensor] = {}
        self._target, self.budgets = recipe.density(0, self.steps), {}
        self.masks = self._checked("masks", masks, every=True) if masks is not None else self._first_masks()
        self.counts = {name: int(mask.sum()) for name, mask in self.masks.items()}
        self.budgets = {**self.counts, **(self.budgets if masks is None else {})}
        rules = [rule for rule in (recipe.score, recipe.grow) if rule is not None]
        self._reads_gradient = any("gradient" in getattr(rule, "needs", ("gradient",)) for rule in rules)
        if any("rounds" in getattr(rule, "needs", ()) for rule in rules):
            self.rounds = {name: mask.to(torch.int32) for name, mask in self.masks.items()}
        if recipe.scale_start and masks is None:
            for name in self._scalable:
                scale_by_fan_in(self.weights[name].data, self.masks[name])
        if recipe.through is not None:
            self._cover(holders)
        self._exact = not (recipe.dense_momentum or self.views)
        self._apply()
        self._hooks = [
            self.optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            self.optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]
        for name, weight in self.weights.items():
            if weight.requires_grad and self._reads_gradient:
                self._hooks.append(weight.register_hook(self._reader(name)))
            if weight.requires_grad and self._exact:
                self._hooks.append(weight.register_post_accumulate_grad_hook(self._masker(name)))

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
        masks, recipe = {}, self.recipe
        for name, weight in self.weights.items():
            nonzero = weight.detach() != 0
            pattern = nonzero if recipe.start is None and bool(nonzero.any()) else torch.ones_like(nonzero)
            masks[name] = pattern & self._allowed(name)
        first = getattr(recipe.move, "first", None)
        if first is None and recipe.start is None and self._target >= 1:
            return masks
        rule = recipe.start or recipe.score
        scores = {name: self._score(rule, name).masked_fill(~masks[name], -torch.inf) for name in masks}
        counts = self._allocate(scores)
        self.budgets = counts if first is not None else {}
        if first is not None:
            return {**masks, **first(self._seen(masks, counts, 0.0, scores.__getitem__))}
        for name in masks:
            room = int(masks[name].sum())
            if counts[name] > room and name in self.within:
                raise InputError(f"within: {name!r} has room for {room}, want at least {counts[name]}")
            masks[name] &= largest(scores[name], min(counts[name], room))
        return masks

    # -- weights that stay dense underneath

    def _cover(self, holders: Mapping[int, list[tuple[str, nn.Module]]]) -> None:
        """Put a view between each weight and the modules that hold it."""
        for name, weight in self.weights.items():
            view = self.recipe.through(name, weight, self.masks[name])
            self.views[name] = view
            for own, module in holders[id(weight)]:
                parametrize.register_parametrization(module, own.rpartition(".")[2], view, unsafe=True)
            self._join(weight, view)
        self._holders = {name: holders[id(weight)] for name, weight in self.weights.items()}

    def _join(self, weight: Tensor, view: Any) -> None:
        """Give a view's own parameters to the optimiser, with the settings of their weight unless it has others."""
        if not (parameters := list(view.parameters())):
            return
        if view.group:
            self.optimizer.add_param_group({**view.group, "params": parameters})
            return
        group = next(g for g in self.optimizer.param_groups if any(p is weight for p in g["params"]))
        group["params"].extend(parameters)  # a further group would be one too many for a learning-rate scheduler

    def _leave(self) -> None:
        """Take the views' parameters back from the optimiser."""
        own = {id(p) for view in self.views.values() for p in view.parameters()}
        for group in self.optimizer.param_groups if own else ():
            for parameter in [p for p in group["params"] if id(p) in own]:
                self.optimizer.state.pop(parameter, None)
            group["params"] = [p for p in group["params"] if id(p) not in own]
        if own:
            self.optimizer.param_groups[:] = [group for group in self.optimizer.param_groups if group["params"]]

    @torch.no_grad()
    def _penalise(self) -> None:
        """Add the penalties' derivatives; called right before each step of the optimiser."""
        added = {}
        if self.recipe.penalty is not None:
            gradients = {name: weight.grad for name, weight in self.weights.items()}
            weights = {name: weight.detach() for name, weight in self.weights.items()}
            added = dict(self.recipe.penalty(weights, gradients, self.step_count / self.steps))
        for name, view in self.views.items():
            own = view.penalty(self.weights[name].detach())
            if own is not None:
                added[name] = own + added[name] if name in added else own
        for name, term in added.items():
            if self.weights[name].grad is not None:
                self.weights[name].grad.add_(term)

    def _before_step(self) -> None:
        """Penalties, and the masks once more where others wrote since: clipping or noise, a state loaded late."""
        if self.recipe.penalty is not None or self.views:
            self._penalise()
        for name, weight in self.weights.items() if self._exact else ():
            if weight.grad is not None and weight.grad._version != self._gradient_versions.get(name):
                self._masker(name)(weight)
            if weight._version != self._weight_versions.get(name):
                hold(weight, self._kept(name))

    def _after_step(self) -> None:
        """What the optimiser left: who writes from here on is another."""
        self._stepped = {name: weight._version for name, weight in self.weights.items()}

    # -- scores and counts

    def _score(self, rule: Any, name: str) -> Tensor:
        weight = self.weights[name].detach()
        memory = self.optimizer.state.get(self.weights[name], {})
        state = {"name": name, "step": self.step_count, "round": self.round_count}
        for key, kept in (("momentum", ("momentum_buffer", "exp_avg")), ("variance", ("exp_avg_sq",))):
            for place in kept:
                if memory.get(place) is not None:
                    state[key] = memory[place]
        if name in self.rounds:
            state["rounds"] = self.rounds[name]
        if name in self.views:
            state["view"] = self.views[name]
        with torch.no_grad():
            scores = rule(weight, self._gradients.get(name), state)
        if has_nan(scores):
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

    def _reads(self, step: int) -> bool:
        """Whether this step's dense gradient is kept: the only steps that need one."""
        return self._reads_gradient and self.is_update(step)

    def _reader(self, name: str):
        """A hook that keeps the dense gradient, summed over backward passes, at the steps that read it."""

        def read(gradient: Tensor) -> None:
            if self._reads(self.step_count + 1):
                seen = self._gradients.get(name)
                self._gradients[name] = gradient.detach().clone() if seen is None else seen + gradient.detach()

        return read

    def _masker(self, name: str):
        """A hook that holds a gradient to the mask, so that norms and the optimiser see no more."""

        def masked(weight: Tensor) -> None:
            if self.counts[name] == weight.numel():
                return
            if weight.grad.layout is torch.strided:
                hold(weight.grad, self._kept(name))
            else:
                weight.grad = weight.grad * self.masks[name]
            self._gradient_versions[name] = weight.grad._version

        return masked

    @torch.no_grad()
    def step(self) -> None:
        """Move the masks if it is time, and hold weights and optimiser state to them."""
        dense = self.recipe.dense_momentum or bool(self.views) or self._reads(self.step_count + 1)
        for name, mask in self.masks.items():
            shows = name in self.views and self.views[name].shows_dropped
            kept = mask.numel() if shows else self.counts[name]
            self._spent += 2 * kept + mask.numel() if dense else 3 * kept
        self.step_count += 1
        if self.is_update(self.step_count):
            self._update()
        self._gradients.clear()
        self._apply()

    def skip(self) -> None:
        """In place of ``step()`` where the optimiser took none (a gradient scaler's overflow): its gradients go."""
        self._gradients.clear()

    def _seen(self, masks: Any, counts: Any, share: float, keep: Any, grow: Any = None) -> Update:
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        progress = self.step_count / self.steps
        return Update(masks, counts, share, progress, weights, self._gradients, self.within, keep, grow)

    def _update(self) -> None:
        recipe = self.recipe
        self.round_count += 1
        self._average_gradients()
        keep = {name: self._score(recipe.score, name) for name in self.weights}
        progress = self.step_count / self.steps
        if self.step_count == self._last:  # the end of the schedule, whatever the rounding of ``until * steps``
            progress = max(progress, recipe.until)
        target = recipe.density(progress, 1.0)
        if target != self._target:
            if recipe.forget and target > self._target:
                forget(self.optimizer)
            self._target = target
            reopens = recipe.grow is not None or self.views
            open_ = {n: self._allowed(n) if reopens else self.masks[n] for n in keep}
            self.budgets = self._allocate({n: keep[n].float().masked_fill(~open_[n], -torch.inf) for n in keep})
        share = 0.0
        if recipe.turnover is not None and recipe.until > 0:
            share = recipe.turnover(min(self.step_count / (recipe.until * self.steps), 1.0), 1.0)
        grow = (lambda name: self._score(recipe.grow, name)) if recipe.grow is not None else None
        move = recipe.move or (afresh if self.views else within_layers)
        for name, following in move(self._seen(self.masks, self.budgets, share, keep.__getitem__, grow)).items():
            stayed = following & self.masks[name]
            self.masks[name], self.counts[name] = following, int(following.count_nonzero())
            if not self.views:  # what leaves is zero, what comes starts there
                kept = bits(stayed, self.weights[name])
                hold(self.weights[name], kept)
                if not recipe.dense_momentum:
                    hold_state(self.optimizer, self.weights[name], kept)
        self._follow_views()
        for name, rounds in self.rounds.items():
            rounds += self.masks[name]

    def _average_gradients(self) -> None:
        """The mean over ranks, so that each rank moves its masks alike."""
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            for gradient in self._gradients.values():
                distributed.all_reduce(gradient)
                gradient /= distributed.get_world_size()

    @torch.no_grad()
    def _apply(self) -> None:
        for name, view in self.views.items():
            view.move(self.masks[name], self.step_count / self.steps)
        for name, weight in self.weights.items() if not self.views else ():
            if self.counts[name] == weight.numel():
                continue
            kept, memory = self._kept(name), self.optimizer.state.get(weight)
            was_memory, was_kept = self._remembers.get(name, (None, None))
            stays = was_kept is kept and was_memory is memory and self._keeps_zeros(weight)
            if not stays or self._stepped.get(name) != weight._version or self.step_count % _ANYWAY == 0:
                hold(weight, kept)
            if self._exact and not stays:
                hold_state(self.optimizer, weight, kept)
                self._remembers[name] = (memory, kept)
            self._weight_versions[name] = weight._version

    def _keeps_zeros(self, weight: Tensor) -> bool:
        """Whether the optimiser leaves a zero with a zero derivative as it is: 0 / (0 + eps) is 0, but not 0 / 0."""
        divides = all(group.get("eps", 1.0) > 0 for group in self.optimizer.param_groups)
        return self._exact and type(self.optimizer) in _KEEP_ZEROS and divides and weight.dtype != torch.float16

    def _kept(self, name: str) -> Tensor:
        """The mask as ``bits``, made anew where it has changed."""
        mask, known = self.masks[name], self._bits.get(name)
        if known is None or known[0] is not mask or known[1] != mask._version:
            known = self._bits[name] = (mask, mask._version, bits(mask, self.weights[name]))
        return known[2]

    # -- what one asks

    def _follow_views(self) -> None:
        """Masks of views that choose their own support."""
        for name, view in self.views.items():
            with torch.no_grad():
                support = view.support(self.weights[name])
            if support is not None:
                self.masks[name], self.counts[name] = support, int(support.sum())

    def report(self) -> Report:
        """What is kept where, counted."""
        self._follow_views()
        rows = tuple(Row(name, tuple(mask.shape), int(mask.sum()), mask.numel()) for name, mask in self.masks.items())
        numel = sum(row.numel for row in rows)
        training = self._spent / (3 * numel * self.step_count) if self.step_count else 0.0
        cost = Cost(training, sum(row.kept for row in rows) / numel)
        return Report(self.step_count, rows, dict(self.excluded), self._excluded_numel, cost)

    def remove(self) -> None:
        """Let go of the model: it keeps its zeros, and they may move again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._follow_views()
        for name in list(self.views):
            weight = self.weights[name]
            for own, module in self._holders[name]:
                if parametrize.is_parametrized(module, own.rpartition(".")[2]):
                    parametrize.remove_parametrizations(module, own.rpartition(".")[2], leave_parametrized=False)
            with torch.no_grad():
                weight.copy_(self.views[name](weight))
                weight.masked_fill_(~self.masks[name], 0)
            weight.requires_grad_(True)
        self._leave()
        self.views = {}

    def state_dict(self) -> dict[str, Any]:
        """Masks, counts and position."""
        return {
            "step": self.step_count, "steps": self.steps, "recipe": repr(self.recipe), "target": self._target,
            "round": self.round_count, "spent": self._spent, "budgets": dict(self.budgets),
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "rounds": {name: rounds.clone() for name, rounds in self.rounds.items()},
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
        self.masks, self.budgets = masks, dict(state["budgets"])
        self.counts = {name: int(mask.sum()) for name, mask in masks.items()}
        self.step_count, self._target = state["step"], state["target"]
        self.round_count, self._spent = state["round"], state["spent"]
        self.rounds = {name: rounds.clone() for name, rounds in state["rounds"].items()}
        self._gradients.clear()
        self._apply()
