"""Losses shared by wings.

Lives here: functions ``loss(model, batch) -> scalar tensor`` for the training loop, and the small ones they are made
of. Does not live here: a wing's own objective (sparse autoencoders, rewards), nor what an evaluation reports.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ellzero.errors import InputError

__all__ = ["classification", "distillation", "next_token", "regression"]


def classification(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of ``model(X)`` (logits ``[batch, classes]``) and whole-number labels ``[batch]``."""
    X, y = batch
    return functional.cross_entropy(model(X).float(), y)


def regression(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of ``model(X)`` and targets of the same shape; one trailing axis of size 1 may differ.

    Raises
    ------
    InputError : other shapes, which would be broadcast.
    """
    X, y = batch
    prediction = model(X).float()
    got, want = tuple(prediction.shape), tuple(y.shape)
    if got != want and want not in ((*got, 1), got[:-1] if got[-1:] == (1,) else got):
        raise InputError(f"model: gives {got} for targets of shape {want}, want the same shape")
    return functional.mse_loss(prediction.reshape(want), y.float())


def next_token(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross-entropy of the next token: tokens ``[batch, length]``, logits ``[batch, length, vocabulary]``."""
    logits = model(batch[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T**2 KL(teacher || student)`` of logits ``[..., classes]``, mean over rows. Hinton et al. (2015)."""
    log_p = torch.log_softmax(student.float() / temperature, -1)
    q = torch.log_softmax(teacher.float() / temperature, -1)
    return temperature**2 * (q.exp() * (q - log_p)).sum(-1).mean()
