"""What the files of other libraries can say: weights, one of seven rules, and how each row is normalised.

Lives here: ``Plain``, ``plain`` (of an autoencoder, as it is in evaluation mode) and ``build`` (the way back). Does not
live here: names and shapes in any file. One factor or one affine map for all rows is folded into the weights, so that
codes and reconstructions stay; a tied encoder is written out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ellzero.autoencoder.encoders import Gated, Linear
from ellzero.autoencoder.inputs import ExpectedNorm, RowNorm, Whitening
from ellzero.autoencoder.nested import NestedReconstruction
from ellzero.autoencoder.objective import SquaredError
from ellzero.autoencoder.pursuit import MatchingPursuit
from ellzero.autoencoder.selectors import Jump, ScheduledTopK
from ellzero.errors import InputError
from ellzero.parts.constraints import Threshold, TopK

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["Plain", "affine", "foldable", "name_of", "plain", "refuse", "rule"]

_RULES = {"topk": "relu", "abstopk": "absolute", "signed_topk": "signed"}


@dataclass(frozen=True, eq=False)
class Plain:
    """An autoencoder as other libraries know it.

    Parameters
    ----------
    kind : ``"standard"`` (rectified), ``"gated"``, ``"topk"`` (of rectified), ``"abstopk"`` (by magnitude),
        ``"signed_topk"`` (the largest, whatever their sign), ``"jumprelu"`` (rectified, above a threshold) or
        ``"matching_pursuit"`` (``k`` steps, ``W_enc`` being the decoder's transpose).
    tensors : ``W_enc [d_in, d_sae]``, ``b_enc``, ``W_dec [d_sae, d_in]``, ``b_dec``; ``threshold`` of a jumprelu,
        ``r_mag`` and ``b_mag`` of a gated one, whose ``b_enc`` is the bias of the gate.
    k : of those that have one.
    centred : whether ``b_dec`` is taken from the input.
    inputs : ``RowNorm``, ``LayerNorm`` or None.
    name : for errors.
    multi : whether it was trained at ``4 k`` too.
    """

    kind: str
    tensors: dict[str, Tensor] = field(repr=False)
    k: int | None = None
    centred: bool = True
    inputs: Any = None
    name: str = "autoencoder"
    multi: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """``(d_in, d_sae)``."""
        d_in, d_sae = self.tensors["W_enc"].shape
        return int(d_in), int(d_sae)

    def centring(self, centred: bool) -> Plain:
        """The same codes with or without ``b_dec`` taken from the input: ``(x - b_dec) W + b = x W + (b - b_dec W)``.

        A gated one is centred always, since its product is used twice.
        """
        if centred == self.centred:
            return self
        shift = self.tensors["b_dec"] @ self.tensors["W_enc"]
        sign = 1.0 if centred else -1.0
        moved = {"b_enc": self.tensors["b_enc"] + sign * shift}
        if self.kind == "gated":
            moved["b_mag"] = self.tensors["b_mag"] + sign * shift * self.tensors["r_mag"].exp()
        return replace(self, tensors={**self.tensors, **moved}, centred=centred)

    def rooted(self) -> Plain:
        """Rows of norm 1 as rows of norm ``sqrt(d_in)``, the factor being folded into the weights."""
        if not isinstance(self.inputs, RowNorm) or self.inputs.length == "root":
            return self
        if self.kind == "matching_pursuit":
            return self
        scale = self.tensors["W_enc"].new_tensor(self.size[0] ** -0.5)
        return replace(self, tensors=affine(self.tensors, self.centred, scale), inputs=RowNorm("root"))

    def build(self) -> SparseAutoencoder:
        """The autoencoder, in evaluation mode."""
        from ellzero.autoencoder.model import SparseAutoencoder, UnitNorm

        d_in, d_sae = self.size
        here = self.centring(True) if self.kind == "gated" else self
        select = Threshold(0.0) if self.k is None else TopK(self.k)
        encoder: Any = Linear(_RULES.get(self.kind, "relu"), here.centred)
        encoder = {"gated": Gated(), "matching_pursuit": MatchingPursuit()}.get(self.kind, encoder)
        error: Any = SquaredError()
        if self.multi and 4 * self.k <= d_sae:
            error = NestedReconstruction((self.k, 4 * self.k), (1.0, 1 / 8), axis="rank")
        unit = torch.allclose(here.tensors["W_dec"].norm(dim=1), torch.ones(d_sae), atol=1e-3)
        architecture = "topk" if self.kind in _RULES else self.kind
        sae = SparseAutoencoder(
            d_in, d_sae, select=select, encoder=encoder, objective=[error], inputs=self.inputs,
            decoder=UnitNorm() if unit else None, architecture=architecture, seed=None,
        )  # fmt: skip
        if self.kind == "jumprelu":
            sae.threshold = here.tensors["threshold"].clone()
        with torch.no_grad():
            for name, one in sae.state_dict().items():
                one.copy_(here.tensors[name])
        return sae.eval()


def name_of(sae: SparseAutoencoder) -> str:
    """What errors call it: its preset, else its parts."""
    if sae.preset:
        return f"preset {sae.preset!r}"
    return f"an autoencoder of {type(sae.encoder).__name__} and {type(sae.select).__name__}"


def refuse(format: str, what: str, holds: Iterable[str]) -> InputError:
    """The error that says what a format cannot hold."""
    return InputError(f"format: {format!r} cannot hold {what}, want {' or '.join(holds)}; format 'ellzero' holds all")


def affine(
    tensors: dict[str, Tensor], centred: bool, matrix: Tensor, mean: Tensor | None = None, inverse: Tensor | None = None
) -> dict[str, Tensor]:
    """The weights of raw rows ``x``, of those for ``(x - mean) matrix``; a scale in the place of a matrix will do.

    ``W_enc <- M W_enc``, ``W_dec <- W_dec M^-1``, ``b_dec <- b_dec M^-1 + mean``; and where ``b_dec`` is not taken from
    the input, ``b_enc <- b_enc - mean W_enc``. Codes stay, and with them thresholds.
    """
    out = dict(tensors)
    if matrix.ndim == 0:
        out.update(W_enc=tensors["W_enc"] * matrix, W_dec=tensors["W_dec"] / matrix, b_dec=tensors["b_dec"] / matrix)
        return out
    W_enc = matrix.double() @ tensors["W_enc"].double()
    out["W_enc"] = W_enc.float()
    out["W_dec"] = (tensors["W_dec"].double() @ inverse.double()).float()
    out["b_dec"] = (tensors["b_dec"].double() @ inverse.double() + mean.double()).float()
    if not centred:
        shift = mean.double() @ W_enc
        out["b_enc"] = (tensors["b_enc"].double() - shift).float()
        if "b_mag" in tensors:
            out["b_mag"] = (tensors["b_mag"].double() - shift * tensors["r_mag"].double().exp()).float()
    return out


def foldable(sae: SparseAutoencoder) -> bool:
    """Whether rows reach encoder and selection by ``x W_enc`` alone, so that a scale can go into the weights."""
    chosen = Threshold(0.0) if sae.calibrates else sae.select if sae.infer is None else sae.infer
    linear = type(sae.encoder) in (Linear, Gated) and not sae.encoder.tied
    return linear and sae.score is None and not hasattr(chosen, "for_rows")


def plain(sae: SparseAutoencoder, format: str) -> Plain:
    """What it does in evaluation mode, for a file of that format.

    Raises
    ------
    InputError : not calibrated, or nothing that other libraries know.
    """
    name = name_of(sae)
    if isinstance(sae.encoder, MatchingPursuit) and not (sae.inputs is None or sae.inputs.by_row):
        raise refuse(format, f"{name} with {sae.inputs}", ["rows that are normalised one by one or not at all"])
    kind, k, threshold = rule(sae, format)
    tensors = {key: one.detach().cpu().float() for key, one in sae.state_dict().items()}
    tensors["W_enc"] = tensors.get("W_enc", tensors["W_dec"].T)
    for key in ("threshold", "log_threshold"):
        tensors.pop(key, None)
    if threshold is not None:
        tensors["threshold"] = threshold.detach().cpu().float().expand(sae.d_sae).clone()
    centred, inputs = sae.encoder.centred, sae.inputs
    if isinstance(inputs, ExpectedNorm | Whitening):
        if not inputs.fitted(sae):
            raise InputError(f"inputs: {type(inputs).__name__} of {name} is not fitted yet; train it, or fit_inputs(x)")
        if isinstance(inputs, ExpectedNorm):
            tensors = affine(tensors, centred, tensors["input_scale"])
        else:
            tensors = affine(tensors, centred, tensors["input_matrix"], tensors["input_mean"], tensors["input_inverse"])
        tensors = {key: one for key, one in tensors.items() if key not in inputs.shapes(sae.d_in)}
        inputs = None
    return Plain(kind, tensors, k, centred, inputs, name)


def rule(sae: SparseAutoencoder, format: str) -> tuple[str, int | None, Tensor | None]:
    """Which kind of ``Plain`` it is in evaluation mode, with its ``k`` or its thresholds.

    Raises
    ------
    InputError : not calibrated, or none of them.
    """
    name = name_of(sae)
    if sae.encoder == MatchingPursuit() and type(sae.select) is TopK and sae.infer is None:
        return "matching_pursuit", sae.select.k, None
    if type(sae.encoder) not in (Linear, Gated):
        raise refuse(format, f"{name}: its encoder is {type(sae.encoder).__name__}", ["a linear or gated one"])
    gated, by = isinstance(sae.encoder, Gated), sae.encoder.rule
    if sae.calibrates and sae.threshold is None:
        raise InputError("threshold: not calibrated yet; train the autoencoder, or call calibrate(activations)")
    select = sae.select if sae.infer is None or sae.calibrates else sae.infer
    if isinstance(select, ScheduledTopK):
        select = TopK(select.k)
    ruled = isinstance(sae.select, Jump) and select is not sae.select
    threshold = None if ruled else sae.thresholds()
    if threshold is None and type(select) is Threshold and not hasattr(select.threshold, "shape"):
        if select.threshold == 0 and by == "relu":
            return ("gated" if gated else "standard"), None, None
        threshold = torch.full((), float(select.threshold))
    if threshold is not None and not gated:
        if by == "relu" or (by == "signed" and bool((threshold >= 0).all())):
            return "jumprelu", None, threshold
        raise refuse(format, f"{name}: thresholds on codes with signs", ["rectified codes"])
    if type(select) is TopK and select.axis == -1 and not gated:
        return next(kind for kind, known in _RULES.items() if known == by), select.k, None
    raise refuse(format, f"{name}: its selection is {type(select).__name__}", ["a threshold", "TopK"])
