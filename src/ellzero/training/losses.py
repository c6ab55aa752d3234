"""Losses shared by wings.

Lives here: functions ``loss(model, batch) -> scalar tensor`` for the training loop, and the small ones they are made
of. Does not live here: a wing's own objective (sparse autoencoders, rewards), nor what an evaluation reports.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ellzero.errors import InputError

__all__ = ["classification", "distillation", "info_nce", "next_token", "regression"]


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


def info_nce(first: Tensor, second: Tensor, *, temperature: float = 0.2, labels: Tensor | None = None) -> Tensor:
    """Contrastive loss of rows ``[n, d]``, mean over rows. van den Oord et al. (2018).

    ``-log exp(s_ii) / sum_j exp(s_ij)`` with ``s`` the cosines of ``first`` and ``second`` over the temperature (a row
    of zeros has cosine 0). With ``labels`` ``[n]`` the positives of a row are all other rows with its label, averaged
    over, itself being left out, and a row without any counts as 0. Khosla et al. (2020).

    Raises
    ------
    InputError : rows of different shapes.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(f"second: got shape {tuple(second.shape)}, want {tuple(first.shape)}, as first")
    similar = functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T / temperature
    if labels is None:
        return -similar.log_softmax(1).diagonal().mean() if len(similar) else similar.sum()
    own = torch.eye(len(similar), dtype=torch.bool, device=similar.device)
    log_share = similar.masked_fill(own, -torch.inf).log_softmax(1)
    positive = (labels[:, None] == labels) & ~own
    told = log_share.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)
    return -told.sum() / max(len(similar), 1)
