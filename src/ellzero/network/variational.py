"""Sparse Bayesian networks: a Gaussian over each weight of a small support that moves while it is learned.

Lives here: the layers that hold a mean and a spread for their active weights alone, ``sparse_variational`` (puts them
into a model), ``elbo``, ``SupportUpdates`` (a part of the training loop) and ``predictive``. Does not live here: the
criteria by which weights go (``folded``), sparse products and their gradients (``layouts``), metrics (``calibration``).
An inactive weight is exactly zero and has no numbers at all: there is no dense matrix of means, spreads, derivatives or
optimiser memory at any time. Where active weights should come is found from activations, a few rows of the dense
derivative at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.layouts.device import product_on_device
from ellzero.layouts.grouped import CSR
from ellzero.layouts.nn import SparseConv2d, SparseLinear
from ellzero.layouts.torch_ops import product
from ellzero.models.attach import swap
from ellzero.network.folded import CRITERIA, criterion
from ellzero.network.prunable import prunable
from ellzero.network.quick_selection import free_places, stored_rows
from ellzero.network.recipes import named_allocation
from ellzero.parts.schedules import Cosine
from ellzero.registry import register
from ellzero.rng import rng, torch_generator
from ellzero.training.masks import largest

__all__ = ["Noise", "SupportUpdates", "VariationalConv2d", "VariationalLinear", "elbo", "kl", "layers_of", "posterior",
           "predictive", "sparse_variational", "steepest"]  # fmt: skip

_CHUNK = 2**18
"""Entries of the dense derivative that are looked at together."""


class Noise:
    """Standard normal numbers from a stream of its own; a copy goes on from the same place."""

    def __init__(self, seed: int):
        self.generator = torch_generator(seed, "variational")

    def __call__(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype).to(like.device)

    def __deepcopy__(self, memo: Any) -> Noise:
        twin = Noise(0)
        twin.generator.set_state(self.generator.get_state())
        return twin


def _unplus(sigma: float) -> float:
    """The inverse of softplus."""
    return sigma + math.log(-math.expm1(-sigma))


class _Gaussian:
    """What is added to a sparse module: ``value`` are means, ``rho`` gives ``sigma = log(1 + e^rho)``.

    While it trains, and inside ``posterior``, each forward pass draws ``w = mu + sigma eps`` once; else ``w = mu``.
    """

    def __init__(self, layout: CSR, bias: Tensor | None, sigma: float, noise: Noise, **settings: Any):
        super().__init__(layout, bias, **settings)
        check("sigma", sigma, above=0, below=math.inf)
        self.rho = nn.Parameter(torch.full_like(self.value, _unplus(sigma)))
        self.noise, self.sampling = noise, False
        self._drawn: tuple[Tensor, ...] = ()  # in a tuple: a parameter on its own would be registered
        self.records: list[tuple[Tensor, Tensor]] | None = None

    @property
    def sigma(self) -> Float[Tensor, "active 1"]:
        """Standard deviations of the active weights."""
        return F.softplus(self.rho)

    def forward(self, x: Tensor) -> Tensor:
        draws = self.training or self.sampling
        self._drawn = (self.value + self.sigma * self.noise(self.value) if draws else self.value,)
        try:
            return super().forward(x)
        finally:
            self._drawn = ()

    def _apply_weight(self, x: Tensor) -> Tensor:
        drawn = self._stored_values()
        if x.device.type == "cpu":
            out = product(self._stored, drawn, x, self.bias)
        else:
            out = product_on_device(self._facts, {**self._tensors(), "value": drawn}, x, self.bias)
        self._record(x, out, lambda grad: grad)
        return out

    def _record(self, x: Tensor, out: Tensor, features_first: Callable[[Tensor], Tensor]) -> None:
        """Keep the input ``[columns, batch]`` and, when it comes, the derivative by the output ``[rows, batch]``."""
        if self.records is not None and out.requires_grad:
            records, seen = self.records, x.detach().clone()  # the caller may fill its batch anew
            out.register_hook(lambda grad: records.append((seen, features_first(grad.detach()))))

    def _stored_values(self) -> Tensor:
        (drawn,) = self._drawn
        return drawn

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Another support of as many weights is taken into the same parameters, which an optimiser may hold."""
        value, order = self.value, list(self._parameters)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.value is not value and self.value.shape == value.shape:
            with torch.no_grad():
                value.copy_(self.value)
            self.value = value
        for name in order:
            self._parameters[name] = self._parameters.pop(name)


class VariationalLinear(_Gaussian, SparseLinear):
    """``y = x W' + b`` with ``W`` zero but at few places, where it is ``N(mu, sigma^2)``; the bias is a number.

    Parameters
    ----------
    layout : the places and means, ``[out_features, in_features]`` in compressed rows.
    sigma : first standard deviation of each.
    noise : what it draws from; layers of one model share one.
    """

    def _rows(self, x: Tensor) -> Tensor:
        out = super()._rows(x)
        self._record(x.t(), out, Tensor.t)
        return out


class VariationalConv2d(_Gaussian, SparseConv2d):
    """A convolution whose kernel is zero but at few places; all images of a batch see the same draw."""


def layers_of(model: nn.Module) -> dict[str, VariationalLinear | VariationalConv2d]:
    """The variational layers by name.

    Raises
    ------
    InputError : a model that has none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, _Gaussian)}
    if not found:
        raise InputError(f"model: {type(model).__name__} has no variational layer, want one of sparse_variational()")
    return found


@register(
    kind="model", wing="network", id="S160", source="arXiv:2402.11025", extra="torch",
    example=lambda: sparse_variational(nn.Sequential(nn.Linear(6, 4)), 0.5),
    claim="at a twentieth of the weights, within a point of a dense variational network, better calibrated than RigL",
)  # fmt: skip
def sparse_variational(
    model: nn.Module, density: float = 0.1, *, allocation: Any = "erk", sigma: float = 1e-2, seed: int = 0,
    include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None,
) -> nn.Module:  # fmt: skip
    """Put variational layers in the place of linear layers and convolutions, at random places. Li et al. (2024).

    The means are the model's own weights there, each row scaled by ``sqrt(fan_in / its kept fan_in)``. Build the
    optimiser afterwards, on ``model.parameters()``: means, ``rho`` and the other parameters (biases, norms) as numbers.
    No weight decay: the prior does that. ``rho`` wants an optimiser that scales by derivative size, such as Adam.

    On MNIST at 5 % (three seeds, two rates each, chosen on training rows held out; 784-300-100-10, 945 steps): accuracy
    94.3 +- 0.1 %, log loss 0.185 +- 0.012, calibration error 0.014 +- 0.003; a dense variational network 94.7, 0.186
    and 0.016; RigL 93.7, 0.229 and 0.028; gradual pruning, dense at first, 94.5, 0.186 and 0.012.

    Parameters
    ----------
    model : changed in place and returned.
    density : active share of the weights of these layers, in (0, 1].
    allocation : over layers, by name or value; one that reads no scores.
    sigma : first standard deviation of every active weight.
    seed : of the places, and of the noise in training.
    include, exclude : names or glob patterns, as for ``Sparsifier``.

    Raises
    ------
    InputError : a bad argument, a weight that is no linear layer's or plain convolution's, or is tied.
    """
    check("density", density, above=0, at_most=1)
    check_integer("seed", seed, at_least=0)
    check("sigma", sigma, above=0, below=math.inf)
    weights, _ = prunable(model, include, exclude)
    modules, shapes = {}, {}
    for name, weight in weights.items():
        home = name.rpartition(".")[0]
        module = model.get_submodule(home)
        if not isinstance(module, nn.Linear | nn.Conv2d) or not home:
            raise InputError(f"model: {name!r} is the weight of {type(module).__name__}, want Linear or Conv2d inside")
        modules[home], shapes[home] = module, (weight.shape[0], weight[0].numel())
    counts = named_allocation(allocation).counts(shapes, density)
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise InputError(f"density: got {density}, which leaves {empty[0]!r} without weights; want a larger one")
    noise = Noise(seed)
    swap(model, {
        name: lambda own, module: _of_dense(module, counts[own], sigma, noise, rng(seed, "support", own))
        for name in modules
    })  # fmt: skip
    return model


def _of_dense(module: nn.Module, count: int, sigma: float, noise: Noise, draw: np.random.Generator) -> nn.Module:
    weight = module.weight.detach().flatten(1)
    places = np.sort(free_places(draw, weight.numel(), np.empty(0, np.int64), count))
    layout = stored_rows(tuple(weight.shape), places, weight.reshape(-1)[torch.from_numpy(places)].numpy())
    fan_in = np.diff(layout.pattern.ptr)[layout.pattern.row_of()]
    layout.value[:] *= np.sqrt(weight.shape[1] / fan_in, dtype=np.float32)[:, None]
    if isinstance(module, nn.Linear):
        return VariationalLinear(layout, module.bias, sigma, noise)
    if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise InputError("model: has a convolution with groups, a padding mode or a padding by name, want none")
    return VariationalConv2d(layout, module.bias, sigma, noise, kernel_size=module.kernel_size, stride=module.stride,
                             padding=module.padding, dilation=module.dilation)  # fmt: skip


# -- the objective


def kl(model: nn.Module, prior: float = 0.2) -> Float[Tensor, ""]:
    """``KL(q || N(0, prior^2))`` summed over the active weights, in nats; a weight that is not there adds nothing.

    ``log(prior / sigma) + (sigma^2 + mu^2) / (2 prior^2) - 1 / 2`` each.
    """
    check("prior", prior, above=0, below=math.inf)
    total = None
    for layer in layers_of(model).values():
        sigma = layer.sigma
        each = (prior / sigma).log() + (sigma.square() + layer.value.square()) / (2 * prior**2) - 0.5
        total = each.sum() if total is None else total + each.sum()
    return total


def elbo(
    loss: Callable[[nn.Module, Any], Tensor], rows: int, *, prior: float = 0.2, temperature: float = 1.0
) -> Callable[[nn.Module, Any], Tensor]:
    """A loss for the training loop: ``loss(model, batch) + temperature KL / rows``, one draw of the weights a step.

    Parameters
    ----------
    loss : mean negative log-likelihood of a batch.
    rows : of the training data.
    prior : standard deviation of the prior, in the units of the weights.
    temperature : 1 is Bayes' rule; below it the posterior is colder, as is usual for networks.

    Raises
    ------
    InputError : a bad argument, and when called with a model that has no variational layer.
    """
    check_integer("rows", rows, at_least=1)
    check("prior", prior, above=0, below=math.inf)
    check("temperature", temperature, at_least=0, below=math.inf)

    def found(model: nn.Module, batch: Any) -> Tensor:
        return loss(model, batch) + temperature / rows * kl(model, prior)

    return found


# -- the support


def steepest(records: Sequence[tuple[Tensor, Tensor]], taken: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` flat places outside ``taken`` with the largest ``|sum over records of G X'|``, by rows at a time.

    Parameters
    ----------
    records : pairs ``(X, G)`` of inputs ``[columns, batch]`` and derivatives by outputs ``[rows, batch]``.
    taken : flat places, rising.

    Ties go to the lower place. What is held at once is ``count`` places and a few rows of the derivative.
    """
    x, grad = (torch.cat(side, dim=1) for side in zip(*records))
    columns, rows = len(x), len(grad)
    step = max(_CHUNK // columns, 1)
    best, where = x.new_empty(0), torch.empty(0, dtype=torch.int64)
    for low in range(0, rows, step):
        sizes = (grad[low : low + step] @ x.T).abs().reshape(-1)
        first, last = np.searchsorted(taken, [low * columns, low * columns + len(sizes)])
        sizes[torch.from_numpy(taken[first:last] - low * columns)] = -1
        kept = largest(sizes, min(count, len(sizes)))
        best, where = torch.cat([best, sizes[kept]]), torch.cat([where, kept.nonzero()[:, 0] + low * columns])
        if len(best) > count:
            kept = largest(best, count)
            best, where = best[kept], where[kept]
    return where.numpy()


class SupportUpdates:
    """A part of the training loop: at each update weights of the lowest criterion go, and as many come elsewhere.

    They come where the derivative of the mean is largest, ``|mean over the last steps of dL/dmu|``, with mean 0 and the
    layer's mean standard deviation. Each layer keeps its number of weights. Li et al. (2024), algorithm 1.

    Parameters
    ----------
    model : holds variational layers.
    optimizer : of its parameters; memory goes with the weight, a new one has none.
    steps : of the run.
    every, until : an update each ``every`` steps, up to the fraction ``until`` of the run.
    drop : the exchanged share at first; it falls along a cosine to 0 at ``until``.
    criterion : one of ``CRITERIA``. ``size_snr``, the paper's choice, ranks weights as ``snr`` does.
    slope : of the two criteria that are exponential, in the inverse units of a weight.
    average : how many steps before an update it looks at.

    Raises
    ------
    InputError : a bad argument, or a model without a variational layer.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, every: int = 100, drop: float = 0.3,
        until: float = 0.75, criterion: str = "size_snr", slope: float = 1.0, average: int = 3,
    ):  # fmt: skip
        self.layers, self.optimizer = layers_of(model), optimizer
        self.steps, self.every = check_integer("steps", steps, at_least=1), check_integer("every", every, at_least=1)
        self.criterion, self.slope = check_choice("criterion", criterion, CRITERIA), check("slope", slope, above=0)
        self.average = check_integer("average", average, at_least=1)
        check("until", until, at_least=0, at_most=1)
        self._last = int(until * steps + 1e-9)
        self._share = Cosine(check("drop", drop, at_least=0, at_most=1), 0.0)
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in self.layers.items():
            if id(layer.value) not in owned or id(layer.rho) not in owned:
                raise InputError(f"optimizer: does not hold the weights of {name!r}; want one of this model")
        self.count, self.exchanged = 0, 0
        self._listen()

    def _listen(self) -> None:
        """Let the layers remember what they see, where an update is near."""
        ahead = self.every - self.count % self.every
        near = ahead <= self.average and self.count + ahead <= self._last
        for layer in self.layers.values():
            layer.records = (layer.records or []) if near else None

    def step(self) -> None:
        """Count a step of the optimiser, and move the support if it is time."""
        self.count += 1
        if self.count % self.every == 0 and self.count <= self._last:
            share = self._share(self.count, self._last)
            for name, layer in self.layers.items():
                self._exchange(name, layer, share)
                layer.records = None
        self._listen()

    @torch.no_grad()
    def _exchange(self, name: str, layer: VariationalLinear | VariationalConv2d, share: float) -> None:
        pattern = layer.layout.pattern
        size, places = pattern.rows * pattern.columns, pattern.row_of() * pattern.columns + pattern.index.astype(int)
        count = min(int(share * len(places)), size - len(places))
        if not count or not layer.records:
            return
        sigma = layer.sigma
        scores = criterion(self.criterion, layer.value[:, 0].cpu().numpy(), sigma[:, 0].cpu().numpy(), self.slope)
        stays = largest(torch.from_numpy(scores), len(places) - count).numpy()
        grown = steepest([(x.cpu(), g.cpu()) for x, g in layer.records], places, count)
        found = np.concatenate([places[stays], grown])
        order = np.argsort(found, kind="stable")
        source = torch.from_numpy(np.concatenate([np.flatnonzero(stays), np.full(count, -1)])[order])
        source = source.to(layer.value.device)
        value = _moved(layer.value, source, 0.0)
        rho = _moved(layer.rho, source, _unplus(float(sigma.double().mean())))
        layer.rewire(stored_rows((pattern.rows, pattern.columns), found[order], value[:, 0].cpu().numpy()))
        layer.rho.copy_(rho)
        self.exchanged += count
        for parameter in (layer.value, layer.rho):
            for memory in self.optimizer.state.get(parameter, {}).values():
                if isinstance(memory, Tensor) and memory.shape == parameter.shape:
                    memory.copy_(_moved(memory, source, 0.0))

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, what the layers remember, and where the noise is; the support is the model's."""
        noise = next(iter(self.layers.values())).noise.generator.get_state()
        records = {name: [list(pair) for pair in layer.records or ()] for name, layer in self.layers.items()}
        return {"count": self.count, "exchanged": self.exchanged, "noise": noise, "records": records}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back there."""
        self.count, self.exchanged = state["count"], state["exchanged"]
        for name, layer in self.layers.items():
            layer.noise.generator.set_state(state["noise"])
            layer.records = [tuple(pair) for pair in state["records"][name]]
        self._listen()


def _moved(values: Tensor, source: Tensor, fresh: float) -> Tensor:
    """``values[source]``, and ``fresh`` where the source is -1."""
    return values[source.clamp(min=0)].masked_fill((source < 0)[:, None], fresh)


# -- what the posterior says


@contextlib.contextmanager
def posterior(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """In evaluation mode too, each forward pass inside draws weights anew, from a stream of ``seed``."""
    layers = layers_of(model).values()
    before = [(layer.noise, layer.sampling) for layer in layers]
    noise = Noise(check_integer("seed", seed, at_least=0))
    for layer in layers:
        layer.noise, layer.sampling = noise, True
    try:
        yield
    finally:
        for layer, (own, sampling) in zip(layers, before):
            layer.noise, layer.sampling = own, sampling


def predictive(
    model: nn.Module, X: Tensor, samples: int = 10, *, seed: int = 0, batch: int = 1024
) -> Float[np.ndarray, "rows classes"]:
    """Class probabilities: the mean of ``softmax`` over draws of the weights, or that of the mean weights.

    Parameters
    ----------
    X : inputs ``[rows, ...]``.
    samples : draws, the same weights for all rows of a batch; 0 for the mean weights. A model without a variational
        layer says the same each time and is asked once.
    """
    check_integer("samples", samples, at_least=0)
    check_integer("batch", batch, at_least=1)
    was, drawn = model.training, samples and any(isinstance(module, _Gaussian) for module in model.modules())
    model.eval()
    found = []
    with torch.inference_mode(), posterior(model, seed) if drawn else contextlib.nullcontext():
        for rows in X.split(batch):
            draws = [model(rows).double().softmax(-1) for _ in range(samples if drawn else 1)]
            found.append(torch.stack(draws).mean(0))
    model.train(was)
    return torch.cat(found).numpy()
