"""Adam for autoencoders: clipping, the decoder's constraint and the step in one pass over the weights.

Lives here: ``RowAdam``. Does not live here: the loop over rows (``ellzero.kernels.row_adam``), learning rates
(``trainer``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import InputError, check
from ellzero.kernels.row_adam import row_adam_, row_squares

__all__ = ["RowAdam"]


class RowAdam(torch.optim.Optimizer):
    """Adam that keeps chosen matrices at unit rows, and clips by the norm that is left after the constraint.

    What torch's Adam does between a projection of the gradient, ``clip_grad_norm_`` and a normalisation of the rows, to
    rounding, without the copies in between.

    Parameters
    ----------
    parameters : matrices and vectors. A matrix that lies in memory column by column is taken by its columns.
    unit : those of them whose rows have norm 1 and keep it.
    clip : largest norm of all gradients together, None for none.
    skip_silent : rows without gradient are left alone with their moments, so that old momentum does not move latents
        that no longer fire (as torch's SparseAdam does; for very wide dictionaries).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 6.25e-10,
        unit: Iterable[Tensor] = (),
        clip: float | None = None,
        skip_silent: bool = False,
    ):
        check("lr", lr, above=0)
        for beta in betas:
            check("betas", beta, at_least=0, below=1)
        super().__init__(list(parameters), {"lr": lr, "betas": betas, "eps": eps})
        self.clip, self.skip_silent = clip, skip_silent
        self._unit = {id(tensor) for tensor in unit}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step on every parameter that has a gradient."""
        if closure is not None:
            raise InputError("closure: got one, want none: RowAdam takes the gradients as they are")
        used = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        scale = self._scale([p for _, p in used])
        for group, parameter in used:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["step"] += 1
            turned = _turned(parameter)
            row_adam_(
                _rows(parameter, turned), _rows(parameter.grad, turned), _rows(state["exp_avg"], turned),
                _rows(state["exp_avg_sq"], turned), lr=group["lr"], step=int(state["step"]), betas=group["betas"],
                eps=group["eps"], clip_scale=scale, unit_norm=id(parameter) in self._unit,
                skip_zero=self.skip_silent and parameter.ndim == 2,
            )  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint; the moments lie in memory as their parameters do."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                laid = torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
                state[name] = laid.copy_(state[name])

    def _scale(self, used: list[Tensor]) -> float:
        """The factor that brings the norm of all gradients down to ``clip``."""
        if self.clip is None:
            return 1.0
        return min(self.clip / (self.squares(used) ** 0.5 + 1e-6), 1.0)

    def squares(self, used: list[Tensor]) -> float:
        """The square of the norm of the gradients of these parameters together."""
        squares = 0.0
        for p in used:
            turned = _turned(p)
            squares += row_squares(_rows(p.grad, turned), _rows(p, turned) if id(p) in self._unit else None)
        return squares


def _turned(parameter: Tensor) -> bool:
    """Whether a matrix lies in memory by columns."""
    return parameter.ndim == 2 and not parameter.is_contiguous() and parameter.T.is_contiguous()


def _rows(tensor: Tensor, turned: bool) -> Tensor:
    """Rows as they lie in memory; a vector is one row."""
    return tensor.detach().T if turned else tensor.detach().reshape(1, -1) if tensor.ndim != 2 else tensor.detach()
