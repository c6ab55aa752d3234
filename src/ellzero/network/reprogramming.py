"""Other tasks for a frozen network: a head on its features, or a frame around its inputs.

Lives here: ``linear_probe``; ``VisualPrompt``, ``iterative_label_map`` and ``reprogram``; ``n_shot``; ``temperature``
and ``transfer_report`` (accuracy and calibration, also at the temperature that suits best). Does not live here: how the
network became sparse (``cycles``), the calibration error itself (``calibration``). The network's weights are never
changed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.models.attach import attach, matching
from ellzero.network.calibration import calibration_error
from ellzero.parts.schedules import Cosine
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches, train
from ellzero.training.threads import products, threads_for

__all__ = [
    "LinearProbe", "Reprogrammed", "TransferReport", "VisualPrompt", "iterative_label_map", "linear_probe", "n_shot",
    "reprogram", "temperature", "transfer_report",
]  # fmt: skip

Part = tuple[Tensor, Tensor]


def n_shot(y: Any, n: int, seed: int = 0) -> Int[np.ndarray, " rows"]:
    """``n`` rows of each class, at random and in rising order.

    Raises
    ------
    InputError : a class with fewer rows.
    """
    y = check_array("y", np.asarray(y), ndim=1)
    check_integer("n", n, at_least=1)
    found = []
    for value in np.unique(y):
        rows = np.flatnonzero(y == value)
        if len(rows) < n:
            raise InputError(f"n: got {n}, but class {value} has {len(rows)} rows; want no more")
        found.append(rng(seed, "n shot", value).permutation(rows)[:n])
    return np.sort(np.concatenate(found))


def _rows(name: str, part: Any) -> Part:
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise InputError(f"{name}: got {type(part).__name__}, want a pair (X, y) of tensors")
    X, y = (value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value)) for value in part)
    check_array(f"{name}: X", X, dtypes="f")
    return X, check_array(f"{name}: y", y, ndim=1, dtypes="iu", shape=(len(X),)).long()


# -- a head on the features


class LinearProbe(nn.Module):
    """A frozen network with a linear head on what goes into one of its layers: target logits of source inputs."""

    def __init__(self, model: nn.Module, layer: str, classes: int):
        super().__init__()
        object.__setattr__(self, "source", model)  # its weights are not the probe's
        self.layer, self.head = layer, None
        self._classes = classes

    @torch.no_grad()
    def features(self, X: Tensor) -> Float[Tensor, "rows features"]:
        """What the layer gets, in evaluation mode, one row each."""
        seen: list[Tensor] = []
        was = self.source.training
        self.source.eval()
        with attach(self.source, {self.layer: lambda x: seen.append(x.flatten(1))}, where="input"):
            for rows in X.split(1024):
                self.source(rows)
        self.source.train(was)
        return torch.cat(seen)

    def forward(self, X: Tensor) -> Float[Tensor, "rows classes"]:
        """Logits of the target's classes."""
        return self.head(self.features(X).to(self.head.weight.dtype))


@register(
    kind="solver", wing="network", id="S118", source="arXiv:2308.14969", extra="torch", name="linear_probe",
    claim="a ticket loses less under a probe than under a prompt",
)  # fmt: skip
def linear_probe(
    model: nn.Module, train_part: Part, *, layer: str | None = None, alpha: float = 1e-3, tol: float = 1e-5,
    max_iter: int = 500,
) -> LinearProbe:  # fmt: skip
    """A logistic regression on the penultimate features of a frozen network.

    From MNIST to the 8 x 8 digits (four seeds), a ticket of 3 % that loses 1.0 point at home loses none under a probe
    (-0.6 +- 0.4). On small digits, where it loses 3.5 at home, it loses 2.9.

    Minimises mean cross-entropy plus ``alpha / 2 ||W||^2`` in double precision, on features of unit mean square, by
    L-BFGS, to a gradient of at most ``tol``.

    Parameters
    ----------
    train_part : ``(X, y)`` of the target: inputs of the source's shape, classes 0, 1, ...
    layer : whose input the features are; None for the last linear layer.

    Raises
    ------
    InputError : a model without a linear layer, or a name that fits none.
    """
    X, y = _rows("train_part", train_part)
    check("alpha", alpha, above=0, below=math.inf)
    check("tol", tol, above=0)
    if layer is None:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError(f"model: {type(model).__name__} has no linear layer, want the name of a layer")
        layer = linear[-1]
    matching(model, layer, name="layer")
    probe = LinearProbe(model, layer, int(y.max()) + 1)
    features = probe.features(X).double()
    size = float(features.square().mean().sqrt()) or 1.0
    head = nn.Linear(features.shape[1], int(y.max()) + 1).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=check_integer("max_iter", max_iter, at_least=1), tolerance_grad=tol,
        tolerance_change=0.0, line_search_fn="strong_wolfe", history_size=20,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(head(features / size), y) + 0.5 * alpha * head.weight.square().sum()
        value.backward()
        return value

    with threads_for(features.numel() * head.out_features):
        optimizer.step(closure)
    with torch.no_grad():
        head.weight /= size
    probe.head = head.requires_grad_(False)
    return probe


# -- a frame around the inputs


@register(
    kind="model", wing="network", id="S118", source="arXiv:2308.14969", extra="torch",
    example=lambda: VisualPrompt((1, 12, 12), (6, 6)),
)  # fmt: skip
class VisualPrompt(nn.Module):
    """Target images resized into the middle of a learned frame: inputs of the source network.

    Parameters
    ----------
    source : ``(channels, height, width)`` of the source's images.
    inner : ``(height, width)`` that target images are resized to, smaller than the source's on at least one side.
    flatten : give rows ``[batch, channels * height * width]``, as a perceptron takes them.

    The frame ``delta`` starts at zero; only its entries outside the inner image count. One channel of the target goes
    to all of the source's.
    """

    def __init__(self, source: tuple[int, int, int], inner: tuple[int, int], *, flatten: bool = False):
        super().__init__()
        for name, sizes, count in (("source", source, 3), ("inner", inner, 2)):
            if not isinstance(sizes, tuple | list) or len(sizes) != count:
                raise InputError(f"{name}: got {sizes!r}, want {count} whole numbers")
            for size in sizes:
                check_integer(name, size, at_least=1)
        if not (inner[0] <= source[1] and inner[1] <= source[2] and tuple(inner) != tuple(source[1:])):
            raise InputError(f"inner: got {tuple(inner)} within {tuple(source[1:])}, want room for a frame")
        self.source, self.inner, self.flatten = tuple(source), tuple(inner), flatten
        top, left = ((whole - part) // 2 for whole, part in zip(source[1:], inner))
        self.pads = (left, source[2] - inner[1] - left, top, source[1] - inner[0] - top)
        frame = torch.ones(self.source)
        frame[:, top : top + inner[0], left : left + inner[1]] = 0
        self.register_buffer("frame", frame)
        self.delta = nn.Parameter(torch.zeros(self.source))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, self.source[0]):
            raise InputError(f"x: got shape {tuple(x.shape)}, want (batch, {self.source[0]} or 1, height, width)")
        if tuple(x.shape[2:]) != self.inner:
            x = F.interpolate(x, size=self.inner, mode="bilinear", antialias=True, align_corners=False)
        x = F.pad(x.expand(-1, self.source[0], -1, -1), self.pads) + self.delta * self.frame
        return x.flatten(1) if self.flatten else x


@register(kind="metric", wing="network", id="S118", source="arXiv:2211.11635", extra="torch")
def iterative_label_map(
    logits: Float[Tensor, "rows sources"], y: Int[Tensor, " rows"], *, by: str = "probability"
) -> Int[Tensor, " targets"]:
    """For each target class a source class of its own: the pairs in which the source is said most. Chen et al. (2023).

    Greedy: the pair of the largest score is taken, then the largest of other classes, and so on. Call it again as the
    prompt moves, on training rows only.

    Parameters
    ----------
    logits : the source network's, of prompted training rows.
    y : their target classes 0, 1, ...; each must occur.
    by : the score of a pair: mean ``"probability"`` of the source class over the rows of the target class, or the
        ``"frequency"`` with which it is the largest.

    Raises
    ------
    InputError : fewer source than target classes, or a target class without rows.
    """
    check_choice("by", by, ("probability", "frequency"))
    logits = check_array("logits", logits, ndim=2, dtypes="f")
    y = check_array("y", y, ndim=1, dtypes="iu", shape=(len(logits),))
    counts = torch.bincount(y.long())
    targets, sources = len(counts), logits.shape[1]
    if targets > sources:
        raise InputError(f"y: has {targets} classes, want at most the source's {sources}")
    if bool((counts == 0).any()):
        raise InputError(f"y: class {int((counts == 0).nonzero()[0])} has no row, want some of each")
    said = logits.detach().double()
    said = said.softmax(1) if by == "probability" else F.one_hot(said.argmax(1), sources).double()
    scores = torch.zeros(targets, sources, dtype=torch.float64, device=said.device).index_add_(0, y.long(), said)
    scores /= counts[:, None]
    found = torch.empty(targets, dtype=torch.int64, device=said.device)
    for _ in range(targets):
        target, source = divmod(int(scores.argmax()), sources)
        found[target] = source
        scores[target], scores[:, source] = -1, -1
    return found


class Reprogrammed(nn.Module):
    """A frozen network behind a prompt, its logits read at the source classes that stand for the target's."""

    def __init__(self, model: nn.Module, prompt: nn.Module, labels: Int[Tensor, " targets"]):
        super().__init__()
        object.__setattr__(self, "source", model)
        self.prompt = prompt
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor) -> Float[Tensor, "rows targets"]:
        """Logits of the target's classes."""
        return self.source(self.prompt(x))[:, self.labels]


class _Remap:
    """Maps the labels anew after each epoch, between the optimiser's step and the checkpoint."""

    def __init__(self, program: Reprogrammed, part: Part, every: int, by: str):
        self.program, self.part, self.every, self.by, self.count = program, part, every, by, 0

    @torch.no_grad()
    def map(self) -> None:
        X, y = self.part
        logits = torch.cat([self.program.source(self.program.prompt(rows)) for rows in X.split(1024)])
        self.program.labels.copy_(iterative_label_map(logits, y, by=self.by))

    def step(self) -> None:
        self.count += 1
        if self.count % self.every == 0:
            self.map()

    def state_dict(self) -> Mapping[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


@register(
    kind="solver", wing="network", id="S118", source="arXiv:2308.14969", extra="torch", name="reprogram",
    claim="tickets as good as dense at home are not as good where they are prompted to go",
)  # fmt: skip
def reprogram(
    model: nn.Module, train_part: Part, prompt: VisualPrompt, *, epochs: int = 50, lr: float = 0.05,
    batch_size: int = 64, by: str = "probability", seed: int = 0, checkpoint: str | os.PathLike | None = None,
    every: int = 1000,
) -> Reprogrammed:  # fmt: skip
    """Learn a frame that makes a frozen classifier solve another task; its labels are mapped anew each epoch.

    From MNIST to the 8 x 8 digits (four seeds) a ticket of 3 % loses 6.5 +- 1.1 points under the prompt and 1.0 at
    home. That dense is always better calibrated did not show: the ticket was less calibrated with one seed of four.

    Parameters
    ----------
    model : the source network, in evaluation mode throughout; its gradients are off afterwards as they were before.
    train_part : ``(images, y)`` of the target, images ``[rows, channels, height, width]`` in the source's units.
    prompt : trained in place, by Adam with a cosine of ``lr``.
    by : of ``iterative_label_map``, which sees the training rows only.
    checkpoint, every : folder from which an interrupted run goes on, and the steps between two checkpoints.

    Raises
    ------
    InputError : fewer source than target classes, or a bad argument.
    """
    X, y = _rows("train_part", train_part)
    check_integer("epochs", epochs, at_least=1)
    check("lr", lr, above=0)
    if not isinstance(prompt, VisualPrompt):
        raise InputError(f"prompt: got {type(prompt).__name__}, want a VisualPrompt")
    batches = Batches(X, y, batch_size=batch_size, seed=seed)
    per_epoch = -(-len(y) // batch_size)
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        program = Reprogrammed(model, prompt, torch.zeros(int(y.max()) + 1, dtype=torch.int64, device=X.device))
        remap = _Remap(program, (X, y), per_epoch, by)
        with threads_for(products(model, prompt(X[:batch_size]))):
            remap.map()
            train(
                program, losses.classification, batches, optimizer=torch.optim.Adam([prompt.delta], lr=lr),
                steps=epochs * per_epoch, schedule=Cosine(1.0, 0.0), seed=seed, parts={"labels": remap},
                checkpoint=checkpoint, every=every,
            )  # fmt: skip
    finally:
        for parameter, was in wanted:
            parameter.requires_grad_(was)
        for module, was in modes:
            module.training = was
    return program.eval()


# -- how good it is there


def temperature(logits: Float[Tensor, "rows classes"], y: Int[Tensor, " rows"]) -> float:
    """The T that minimises the cross-entropy of ``logits / T``, within 0.01 and 100. Guo et al. (2017), section 4.2.

    Fit it on validation rows: it changes confidences and no decision.
    """
    logits = check_array("logits", logits, ndim=2, dtypes="f").detach().double().cpu()
    y = check_array("y", y, ndim=1, dtypes="iu", shape=(len(logits),)).long().cpu()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits * math.exp(-log_t), y))

    bound = math.log(100)
    return math.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6}).x)


@dataclass(frozen=True)
class TransferReport:
    """Accuracy, calibration error in 15 bins, and that after temperature scaling on other rows, with the temperature.

    Calibration errors of networks of different accuracy hardly compare before scaling.
    """

    accuracy: float
    calibration: float
    scaled: float
    temperature: float


@torch.no_grad()
def transfer_report(program: nn.Module, test: Part, validation: Part, *, bins: int = 15) -> TransferReport:
    """How good and how well calibrated a network is on test rows; the temperature is fitted on validation rows.

    Raises
    ------
    InputError : parts that are no pairs of rows and classes.
    """
    parts = {"test": _rows("test", test), "validation": _rows("validation", validation)}
    was = program.training
    program.eval()
    found = {name: torch.cat([program(X) for X in part[0].split(1024)]).double() for name, part in parts.items()}
    program.train(was)
    y = parts["test"][1]
    t = temperature(found["validation"], parts["validation"][1])
    logits, y = found["test"].cpu(), y.cpu()
    errors = [calibration_error((logits / s).softmax(1).numpy(), y.numpy(), bins) for s in (1.0, t)]
    return TransferReport(float((logits.argmax(1) == y).double().mean()), *errors, t)
