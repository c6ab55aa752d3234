"""Autoencoders in a running model: what they tell is read, edited or put in the place of the activations.

Lives here: ``attach``. Does not live here: how functions are put onto modules (``ellzero.models.attach``), or what the
model loses by it (``spliced_loss``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.autoencoder.inputs import decoded
from ellzero.errors import InputError
from ellzero.models import attach as door
from ellzero.models.sites import locate

__all__ = ["Splice", "attach"]


class _Site:
    """One autoencoder on one module. ``codes`` are those of the last forward pass, before any edit."""

    def __init__(self, name: str, sae: Any, error_term: bool, edit: Callable | None, gradient: bool, splice: Splice):
        self.name, self.sae, self.error_term, self.edit, self.gradient = name, sae, error_term, edit, gradient
        self.splice, self.codes = splice, None

    def __call__(self, x: Tensor) -> Tensor:
        # channels of images are the features, as for a stream of activations
        rows = x.movedim(1, -1) if x.ndim == 4 and x.shape[1] == self.sae.d_in else x
        if rows.shape[-1] != self.sae.d_in:
            raise InputError(f"{self.name}: gives {rows.shape[-1]} features, but its autoencoder takes {self.sae.d_in}")
        chosen = self._chosen(rows)
        flat = rows.reshape(-1, rows.shape[-1]) if chosen is None else rows[chosen]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.gradient):
            told, before = self._told(flat, rows.shape[:-1], chosen)
        if self.error_term:  # what codes leave out is a constant for the derivative
            told = (flat.detach() if self.gradient else flat) + (told - before.detach())
        y = told.reshape(rows.shape) if chosen is None else rows.masked_scatter(_wide(chosen, rows), told)
        return y.movedim(-1, 1) if rows is not x else y

    def _told(self, flat: Tensor, shape: torch.Size, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        """The reconstruction of the chosen rows ``[n, d_in]`` from edited codes, and from the codes as they came.

        Without an edit both are the same tensor, so their difference is exactly zero.
        """
        rows = flat.to(self._dtype(flat))
        z = self.sae.encode(rows)
        if torch.is_grad_enabled() and not z.requires_grad:  # nothing before it is trained: derivatives begin here
            z.requires_grad_()
        if chosen is None:
            codes = z.reshape(*shape, z.shape[-1])
        else:
            codes = z.new_zeros(*shape, z.shape[-1])
            codes = codes.masked_scatter(_wide(chosen, codes), z)
        self.codes = codes
        if codes.requires_grad:
            codes.retain_grad()
        edited = codes if self.edit is None else self.edit(codes)
        if not isinstance(edited, Tensor) or edited.shape != codes.shape:
            came = tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
            raise InputError(f"edit: gave {came} for {self.name!r}, want codes of shape {tuple(codes.shape)}")
        edited_rows = edited.reshape(z.shape) if chosen is None else edited[chosen]
        told = decoded(self.sae, edited_rows, rows).to(flat.dtype)
        if edited is codes or not self.error_term:
            return told, told
        with torch.no_grad():
            return told, decoded(self.sae, z, rows).to(flat.dtype)

    def _dtype(self, flat: Tensor) -> torch.dtype:
        weight = getattr(self.sae, "W_dec", None)
        return weight.dtype if isinstance(weight, Tensor) else flat.dtype

    def _chosen(self, rows: Tensor) -> Tensor | None:
        """Which positions count, ``[..., ]`` without the features, or None for all."""
        given = self.splice.positions
        given = given(rows) if callable(given) else given
        if given is None:
            return None
        if isinstance(given, slice):
            if rows.ndim < 3:
                raise InputError(f"positions: got {given} for {tuple(rows.shape)}, want a mask where there is no time")
            mask = torch.zeros(rows.shape[:-1], dtype=torch.bool, device=rows.device)
            mask[:, given] = True
            return mask
        if not isinstance(given, Tensor) or given.dtype != torch.bool or given.shape != rows.shape[:-1]:
            came = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f"positions: got {came}, want a boolean mask of shape {tuple(rows.shape[:-1])}")
        return given.to(rows.device)


def _wide(chosen: Tensor, rows: Tensor) -> Tensor:
    """The mask of positions for every feature of them."""
    return chosen[..., None].expand_as(rows)


class Splice:
    """What ``attach`` returns; as a context manager it removes itself at the end.

    Attributes
    ----------
    names : of the modules, in the order given.
    positions : which positions count; may be set between forward passes.
    """

    def __init__(self, positions: Any):
        self.positions = positions
        self._sites: dict[str, _Site] = {}
        self._handle: door.Handle | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(site.name for site in self._sites.values())

    @property
    def latents(self) -> dict[str, Tensor]:
        """The codes of the last forward pass by the key given, ``[..., d_sae]``, zero at positions left out.

        They are those before any edit. With ``gradient=True`` they keep their gradient after a backward pass.
        """
        return {key: site.codes for key, site in self._sites.items() if site.codes is not None}

    def report(self) -> tuple[door.Attached, ...]:
        """One row per module: calls, shape."""
        return self._handle.report()

    def remove(self) -> None:
        """Leave the model as it was, and forget the codes. A second call does nothing."""
        self._handle.remove()
        for site in self._sites.values():
            site.codes = None

    def __enter__(self) -> Splice:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def attach(
    model: nn.Module,
    saes: Mapping[str, Any],
    *,
    error_term: bool = True,
    edit: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    positions: Tensor | slice | Callable[[Tensor], Tensor] | None = None,
    gradient: bool = False,
) -> Splice:
    """Put autoencoders onto modules of a model.

    Parameters
    ----------
    saes : from a module, as ``ellzero.models.sites.locate`` reads it (``"layers.3"``, any module's name, or a pattern
        for one), to an autoencoder of its output: anything with ``d_in``, ``encode`` and ``decode``. Where a module
        returns a tuple or an output of Hugging Face, its first tensor is meant; of images the channels.
    error_term : add back what the autoencoder leaves out. Without an edit the model's outputs then stay bit for bit;
        an edit of the codes moves them by what it does to the reconstruction and by nothing else. ``False`` puts the
        reconstruction in the place of the activation.
    edit : for some of the same keys a function of the codes ``[..., d_sae]`` that returns codes of that shape.
    positions : what is spliced: a boolean mask of the activation's shape without features (True where spliced), a
        slice of the time axis (``slice(1, None)`` leaves out what stands first), or a function from activation to
        mask. All by default. Special tokens are outliers that autoencoders are not trained on: leave them out.
    gradient : derivatives flow through codes and reconstruction into autoencoder and model, what the error term adds
        being a constant, and ``Splice.latents`` keep theirs. Otherwise no derivative sees the autoencoder: with the
        error term they pass as if it were not there, without it they end there.

    Raises
    ------
    InputError : a module that is not there or chosen twice, an edit without an autoencoder; when the model runs, a
        width that does not fit, codes or a mask of another shape.

    Marks et al. (2024) for the error term; Braun et al. (2024) for derivatives through it (arXiv:2405.12241).
    """
    if not isinstance(saes, Mapping) or not saes:
        raise InputError("saes: got none, want a dictionary from module name to autoencoder")
    for key in edit or {}:
        if key not in saes:
            raise InputError(f"edit: got {key!r}, want one of the keys of saes: {', '.join(map(repr, saes))}")
    splice, places = Splice(positions), {}
    for key, sae in saes.items():
        for needed in ("encode", "decode", "d_in"):
            if not hasattr(sae, needed):
                raise InputError(f"saes[{key!r}]: got {type(sae).__name__}, want an autoencoder (it has no {needed})")
        name = locate(model, key)
        if name in places:
            raise InputError(f"saes: {key!r} is {name!r} a second time, want each module once")
        site = _Site(name, sae, bool(error_term), (edit or {}).get(key), bool(gradient), splice)
        places[name] = splice._sites[key] = site
    splice._handle = door.attach(model, places)
    return splice
