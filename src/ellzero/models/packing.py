"""``finalize``: the layers of a model that are faster sparse become sparse; the others stay as they are.

Lives here: the measuring, the choice, its cache, the handle with report and file. Does not live here: layouts and
sparse modules (``ellzero.layouts``), hooks and swaps (``attach``). Nothing is believed that was not measured on this
machine, with the live kernels, at the given input and thread count.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ellzero
from ellzero import kernels
from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.io import artefacts, atomic
from ellzero.layouts import base
from ellzero.layouts.nn import SparseConv2d, SparseLinear, as_layout
from ellzero.models.attach import Handle, attach, matching, swap
from ellzero.models.layer_report import CANDIDATES, LayerReport, foretold, interleaved, table

__all__ = ["Finalized", "LayerReport", "finalize", "load_finalized", "report"]

KIND, VERSION = "finalized-model", 1
_DONE: weakref.WeakKeyDictionary[nn.Module, Finalized] = weakref.WeakKeyDictionary()


class Finalized:
    """A finalised model: the handle to look at what was chosen, to save it, and to get the dense model back."""

    def __init__(self, model: nn.Module, handle: Handle | None, rows: Iterable[LayerReport], place: Mapping[str, Any]):
        self.model, self._handle, self._rows, self.place = model, handle, tuple(rows), dict(place)
        _DONE[model] = self

    def report(self) -> tuple[LayerReport, ...]:
        """One row per layer that has zeros, in the order of the model."""
        return self._rows

    def remove(self) -> None:
        """The dense modules again, as they were; a second call does nothing. Training of sparse values stays behind."""
        if self._handle is not None:
            self._handle.remove()

    def __str__(self) -> str:
        return table(self._rows)

    def save(self, path: str | os.PathLike) -> None:
        """The whole model in one safetensors file: packed layers, the other weights, and where they were measured."""
        layers = {}
        for name, module in self.model.named_modules():
            if isinstance(module, SparseConv2d):
                names = ("kernel_size", "stride", "padding", "dilation")
                layers[name] = {"conv": {key: list(getattr(module, key)) for key in names}}
            elif isinstance(module, SparseLinear):
                layers[name] = {"conv": None}
            else:
                continue
            layers[name]["facts"] = module._facts
        tensors = {key: value for key, value in self.model.state_dict().items() if isinstance(value, Tensor)}
        tensors = {
            key: value.detach().cpu().contiguous() for key, value in tensors.items() if "_extra_state" not in key
        }
        meta = {"layers": layers, "rows": [asdict(row) for row in self._rows], "place": self.place}
        artefacts.save(path, _without_aliases(tensors), meta, kind=KIND, version=VERSION)


def _without_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights own one memory under two names; a file wants a copy of each."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        out[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return out


def place() -> dict[str, Any]:
    """What a measurement holds for: the instruction set, the CPU's features, threads and versions."""
    config = kernels.show_config()
    return {
        "isa": config["isa"], "cpu": list(config["cpu"]), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "ellzero": ellzero.__version__,
    }  # fmt: skip


def finalize(
    model: nn.Module,
    example_input: Any,
    layout: str = "auto",
    *,
    include: str | Iterable[str] = "*",
    at_least: float = 1.1,
    repeats: int = 9,
    compare: bool = False,
    cache: str | os.PathLike | None = None,
    **settings: Any,
) -> Finalized:
    """Pack the layers of a model that have zeros; with ``"auto"`` only where that was measured to be faster.

    Every ``nn.Linear`` and ``nn.Conv2d`` (without groups) with a zero in its weight is timed on the input that it
    really gets: the dense module and each layout that fits, in turn, medians of ``repeats``. A layer becomes sparse
    where its fastest layout takes at most ``1 / at_least`` of the dense time. At the end the whole model is timed both
    ways: if it is not faster sparse, it stays dense.

    Parameters
    ----------
    model : on the CPU; put into evaluation mode. Changed in place until ``.remove()``.
    example_input : what the model is called with: a tensor, a tuple of arguments or a dictionary of keywords. Batch
        size and number of threads are those that the choice is made for.
    layout : ``"auto"``, or the name of a layout that every such layer gets, measured or not (with its ``settings``).
    include : module names or glob patterns.
    compare : also time each dense layer in bfloat16 and int8, say in the report where that is faster, and put what the
        cost model of this machine foretells beside what was measured (as ``report`` does).
    cache : a JSON file of earlier measurements, read and added to; what was measured elsewhere is measured again.

    Raises
    ------
    InputError : no layer has zeros, an unknown layout, a weight that does not have the named layout's form.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: got {type(model).__name__}, want a torch module")
    check_choice("layout", layout, ["auto", *base.layouts()])
    check("at_least", at_least, at_least=1)
    check_integer("repeats", repeats, at_least=1)
    model.eval()
    patterns = [include] if isinstance(include, str) else list(include)
    layers = {}
    for pattern in patterns:
        for name, module in matching(model, pattern, name="include").items():
            if name and _has_zeros(module):
                layers[name] = module
    if not layers:
        raise InputError(f"model: no layer of {type(model).__name__} that {include!r} chooses has a zero to leave out")
    inputs = _inputs(model, layers, example_input)
    known = _Cache(cache)
    rows, chosen = [], {}
    for name, module in layers.items():
        if name not in inputs:
            continue  # the example does not reach it
        row, fresh = _measure(name, module, inputs[name], layout, settings, at_least, repeats, known)
        rows.append(_compared(row, module, inputs[name], repeats) if compare else row)
        if fresh is not None:
            chosen[name] = fresh
    known.write()
    handle = swap(model, {_literal(name): _giving(module) for name, module in chosen.items()}) if chosen else None
    if handle is not None and layout == "auto" and not _whole_is_faster(model, handle, example_input, chosen, repeats):
        handle.remove()
        rows = [LayerReport(**{**vars(row), "chosen": "dense", "nbytes": row.dense_nbytes}) for row in rows]
        handle = None
    elif handle is not None:
        handle = _again(model, handle, chosen)
    return Finalized(model, handle, rows, place())


def report(model: nn.Module, example_input: Any = None, *, repeats: int = 9) -> str:
    """A table of a model's sparse layers: density, layout, bytes, predicted and measured time, and dense ones beside.

    The dense twin of each layer is timed in float32, and by torch in bfloat16 and (linear layers) int8; where one of
    those is faster than what the layer has now, its line says so. A model that ``finalize`` has not seen is shown as
    it would choose, and is left as it is.

    Parameters
    ----------
    example_input : as for ``finalize``; may be left out for a model that ``finalize`` has seen in this process with
        ``compare=True``.

    Raises
    ------
    InputError : nothing is known of the model, and no input was given.
    """
    done = _DONE.get(model) if isinstance(model, nn.Module) else None
    if example_input is None:
        if done is None or not all(row.predicted for row in done.report()):
            raise InputError("example_input: got none, want what the model is called with (its layers are timed on it)")
        return table(done.report())
    if done is None:
        done = finalize(model, example_input, compare=True, repeats=repeats)
        done.remove()
        del _DONE[model]
        return table(done.report())
    layers = {row.name: model.get_submodule(row.name) for row in done.report()}
    inputs = _inputs(model, layers, example_input)
    rows = []
    for row in done.report():
        module = layers[row.name]
        dense = _dense(module) if isinstance(module, SparseLinear | SparseConv2d) else module
        now = {"dense": dense, **({} if module is dense else {row.chosen: module})}
        seconds = interleaved(now, inputs[row.name], repeats)
        row = replace(row, seconds={**row.seconds, **seconds}, batch=_batch(dense, inputs[row.name]))
        rows.append(_compared(row, dense, inputs[row.name], repeats))
    return table(rows)


def _compared(row: LayerReport, dense: nn.Module, x: Tensor, repeats: int) -> LayerReport:
    """With the times of other dense arithmetic, and those that the cost model foretells."""
    timed = baselines(dense, x, repeats)
    del timed["dense"]
    stored = {"dense": 1.0, **{name: row.density for name in row.seconds if name != "dense"}}
    if row.chosen != "dense":
        stored[row.chosen] = row.stored
    return replace(row, others=timed, predicted=foretold(row.shape, row.batch, stored))


def _literal(name: str) -> str:
    """A glob pattern that fits this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _giving(module: nn.Module) -> Callable[[str, nn.Module], nn.Module]:
    return lambda name, old: module


def _has_zeros(module: nn.Module) -> bool:
    plain = type(module) is nn.Linear or (
        type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )  # fmt: skip
    return plain and bool((module.weight == 0).any())


def _call(model: nn.Module, given: Any) -> Any:
    with torch.inference_mode():
        if isinstance(given, Mapping):
            return model(**given)
        return model(*given) if isinstance(given, tuple | list) else model(given)


def _inputs(model: nn.Module, layers: Mapping[str, nn.Module], given: Any) -> dict[str, Tensor]:
    """What flows into each layer."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> Callable[[Tensor], None]:
        def look(x: Tensor) -> None:
            seen.setdefault(name, x.detach().clone())

        return look

    with attach(model, {_literal(name): keep for name in layers}, "input", bind=True):
        _call(model, given)
    return seen


def _batch(module: nn.Module, x: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return x.numel() // x.shape[-1]
    return x.numel() // x.shape[-3]


def _candidates(module: nn.Module, layout: str, settings: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Sparse modules by label: those that fit and store fewer numbers than the dense weight, or the one asked for."""
    build = SparseLinear.from_linear if isinstance(module, nn.Linear) else SparseConv2d.from_conv
    if layout != "auto":
        return {layout: build(module, layout, **settings).eval()}
    found = {}
    for label, (name, options) in CANDIDATES.items():
        try:
            stored = as_layout(module.weight.detach().flatten(1), name, **options)
        except InputError:
            continue  # the zeros do not have this form
        if stored.nnz < 0.9 * module.weight.numel():
            found[label] = build(module, stored).eval()
    return found


def _measure(
    name: str, module: nn.Module, x: Tensor, layout: str, settings: Any, at_least: float, repeats: int, known: _Cache
) -> tuple[LayerReport, nn.Module | None]:  # fmt: skip
    built = _candidates(module, layout, settings)
    weight = module.weight
    density = float((weight != 0).float().mean())
    key = known.key(module, density, _batch(module, x), x.shape, sorted(built))
    seconds = known.get(key)
    if seconds is None:
        seconds = interleaved({"dense": module, **built}, x, repeats)
        known.put(key, seconds)
    best = min(built, key=seconds.__getitem__, default="dense")
    if layout == "auto" and (best == "dense" or seconds[best] * at_least > seconds["dense"]):
        best = "dense"
    dense_nbytes = weight.numel() * weight.element_size()
    nbytes = dense_nbytes if best == "dense" else built[best].layout.nbytes
    row = LayerReport(
        name, type(module).__name__, (weight.shape[0], weight.numel() // weight.shape[0]), _batch(module, x), density,
        best, nbytes, dense_nbytes, seconds, stored=density if best == "dense" else built[best].layout.density,
    )  # fmt: skip
    return row, None if best == "dense" else built[best]


def _again(model: nn.Module, handle: Handle, chosen: Mapping[str, nn.Module]) -> Handle:
    """The sparse modules in place, whichever way the last comparison left the model."""
    handle.remove()
    return swap(model, {_literal(name): _giving(module) for name, module in chosen.items()})


def _whole_is_faster(
    model: nn.Module, handle: Handle, given: Any, chosen: Mapping[str, nn.Module], repeats: int
) -> bool:
    """The model with and without its sparse layers, in turn; a lead of under three in a hundred may be chance."""
    dense, sparse = [], []
    for _ in range(repeats + 1):
        handle.remove()
        dense.append(_seconds(model, given))
        handle = _again(model, handle, chosen)
        sparse.append(_seconds(model, given))
    handle.remove()
    return 1.03 * statistics.median(sparse[1:]) < statistics.median(dense[1:])


def _seconds(model: nn.Module, given: Any) -> float:
    started = time.perf_counter()
    _call(model, given)
    return time.perf_counter() - started


class _Cache:
    """Measurements by what they depend on, in one JSON file."""

    def __init__(self, path: str | os.PathLike | None):
        self.path = None if path is None else Path(path)
        self.rows: dict[str, dict[str, float]] = {}
        self._place = place()
        if self.path is not None and self.path.exists():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                self.rows = {str(key): dict(value) for key, value in found["measured"].items()}
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise InputError(f"cache: {self.path} is not a table of measurements ({error})") from error

    def key(self, module: nn.Module, density: float, batch: int, shape: Iterable[int], names: Iterable[str]) -> str:
        """Batches within a power of two and densities within a hundredth count as the same."""
        conv = [] if isinstance(module, nn.Linear) else [
            list(module.stride), list(module.padding), list(module.dilation), list(shape)[-2:]
        ]  # fmt: skip
        facts = [type(module).__name__, str(module.weight.dtype), list(module.weight.shape), conv, round(density, 2),
                 max(batch, 1).bit_length(), list(names), self._place]  # fmt: skip
        return json.dumps(facts, sort_keys=True)

    def get(self, key: str) -> dict[str, float] | None:
        return self.rows.get(key)

    def put(self, key: str, seconds: dict[str, float]) -> None:
        self.rows[key] = seconds

    def write(self) -> None:
        if self.path is not None:
            atomic.write_text(self.path, json.dumps({"measured": self.rows}, indent=1, sort_keys=True))


def load_finalized(path: str | os.PathLike, model: nn.Module, example_input: Any, **options: Any) -> Finalized:
    """Put what ``Finalized.save`` wrote into a model of the same architecture.

    On another CPU, instruction set, thread count or version than it was measured on, the layers are measured and
    chosen anew (``options`` are those of ``finalize``); otherwise they are taken as saved.

    Parameters
    ----------
    model : the dense architecture, with any weights; changed in place.

    Raises
    ------
    InputError : a torn, foreign or newer file, or one of another architecture.
    """
    tensors, meta = artefacts.load(path, KIND, version=VERSION, backend="torch")
    known, makers = base.layouts(), {}
    own = dict(model.named_modules())
    for name, spec in meta["layers"].items():
        if name not in own:
            raise InputError(f"{path}: has the layer {name!r}, which the {type(model).__name__} has not")
        facts = spec["facts"]
        kind = known[check_choice(f"{path}: layout", facts["layout"], known)]
        arrays = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
        bias = arrays.pop("bias", None)
        stored = kind.from_parts({key: value.numpy() for key, value in arrays.items()}, facts)
        conv = spec["conv"]
        module = SparseLinear(stored, bias) if conv is None else SparseConv2d(
            stored, bias, **{key: tuple(value) for key, value in conv.items()}
        )  # fmt: skip
        makers[_literal(name)] = _giving(module)
    handle = swap(model, makers) if makers else None
    packed = tuple(f"{name}." for name in meta["layers"])
    rest = {key: value for key, value in tensors.items() if not key.startswith(packed)}
    wanted = {key for key in model.state_dict() if not key.startswith(packed)}
    if wanted != set(rest):
        wrong = sorted(wanted ^ set(rest))[0]
        raise InputError(f"{path}: does not fit the {type(model).__name__}, first at {wrong!r}")
    model.load_state_dict(rest, strict=False)
    if meta["place"] == place():
        rows = [LayerReport(**{**row, "shape": tuple(row["shape"])}) for row in meta["rows"]]
        return Finalized(model.eval(), handle, rows, meta["place"])
    densify(model)
    return finalize(model, example_input, **options)


def baselines(module: nn.Module, x: Tensor, repeats: int = 9) -> dict[str, float]:
    """Median seconds of a dense layer as it is, in bfloat16 and in int8 (torch's own, weights and activations).

    A layout that loses to one of these is no reason to go sparse: the report says so. int8 exists for ``nn.Linear``.
    """
    ways: dict[str, Callable] = {"dense": module}
    half = copy.deepcopy(module).bfloat16()
    ways["bfloat16"] = lambda given: half(given.bfloat16())
    if isinstance(module, nn.Linear):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces its successor; the layer itself is unchanged
            ways["int8"] = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(copy.deepcopy(module)), {nn.Linear}, dtype=torch.qint8
            )
    return interleaved(ways, x, repeats)


def densify(model: nn.Module) -> None:
    """Ordinary dense modules in the place of all sparse ones."""
    for parent in [*model.modules()]:
        for key, child in [*parent._modules.items()]:
            if isinstance(child, SparseLinear | SparseConv2d):
                parent._modules[key] = _dense(child)


def _dense(module: SparseLinear | SparseConv2d) -> nn.Module:
    weight, bias = module.to_dense(), module.bias
    if isinstance(module, SparseLinear):
        dense = nn.Linear(module.in_features, module.out_features, bias=bias is not None, dtype=weight.dtype)
    else:
        dense = nn.Conv2d(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.dilation, bias=bias is not None, dtype=weight.dtype,
        )  # fmt: skip
    with torch.no_grad():
        dense.weight.copy_(weight.reshape(dense.weight.shape))
        if bias is not None:
            dense.bias.copy_(bias)
    return dense.train(module.training)
