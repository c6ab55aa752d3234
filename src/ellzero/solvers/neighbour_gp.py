"""Gaussian processes whose inducing variables are sparse within: every input sees only those of its nearest neighbours.

Lives here: the bound on the marginal likelihood and its gradient, the predictive moments, and the mean of the inducing
variables that maximises the bound exactly. Does not live here: the training loop (``training``), the estimator with
``fit`` (``linear.gaussian_process``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ellzero.errors import check, check_array, check_choice, check_integer
from ellzero.parts.selection import largest

__all__ = ["COVARIANCES", "KERNELS", "NeighbourGP"]

COVARIANCES = ("triangle", "marginal", "diagonal")
KERNELS = ("rbf", "matern12", "matern32", "matern52")
_CELLS = 500_000  # numbers of all blocks that a pass over the data holds at a time: what caches hold


class _Blocks(NamedTuple):
    """What the bound needs of G groups of b inputs, each with H active inducing variables (``index [G, H]``).

    ``root [G, H, H]`` is the Cholesky factor of K, ``weights [G, H, b]`` is ``K^-1 k(Z, x)``, ``rest [G, b]`` the prior
    variance that the active variables leave.
    """

    index: Tensor
    root: Tensor
    weights: Tensor
    rest: Tensor


class NeighbourGP(nn.Module):
    """A sparse variational Gaussian process with a prior that switches inducing variables off. Tran et al. (2021).

    ``q(u | w) = N(m_w, S_w)`` for the active set w, ``p(u | w) = N(0, K_w)``. With ``w(x)`` the H inducing inputs that
    are nearest to x, the bound is ``sum_i E log N(y_i; f_i, noise) - mean_i KL(q(u | w_i) || p(u | w_i))``, where
    ``f_i ~ N(a' m_w, k(x, x) - a' K_w a + a' S_w a)`` and ``a = K_w^-1 k(Z_w, x)``. Its cost for a batch of B inputs is
    ``B (H^3 + M)``. With ``neighbours = M`` it is the bound of Hensman et al. (2013), at ``M^3``.

    Near is by the kernel, which falls with the distance in units of the length scales; the choice is made anew
    for every batch, and no gradient goes through it.

    Parameters
    ----------
    Z : ``[M, d]`` first inducing inputs, in double.
    neighbours : H, from 1 to M.
    kernel : ``"rbf"``, ``"matern12"``, ``"matern32"`` or ``"matern52"``, with a length scale for each column.
    covariance : of q. ``"triangle"``: ``S_w = L_w L_w'`` for the block of w of one triangular matrix ``L [M, M]``, at
        the cost of H^2; ``"marginal"``: the block of w of ``L L'``, at M H^2; ``"diagonal"``: for large M, as it keeps
        M numbers and not M^2. With ``neighbours = M`` the first two are the same.
    lengthscale, variance, noise : first values; noise is a variance.
    jitter : added to the diagonal of K, relative to the variance.
    """

    def __init__(
        self, Z: Float[Tensor, "M d"], neighbours: int, *, kernel: str = "rbf", covariance: str = "triangle",
        lengthscale: float = 1.0, variance: float = 1.0, noise: float = 0.1, jitter: float = 1e-6,
    ):  # fmt: skip
        super().__init__()
        check_array("Z", Z, ndim=2, dtypes="f")
        self.size = check_integer("neighbours", neighbours, at_least=1, at_most=len(Z))
        self.kernel = check_choice("kernel", kernel, KERNELS)
        self.covariance = check_choice("covariance", covariance, COVARIANCES)
        self.jitter = check("jitter", jitter, above=0)
        for name, value in (("lengthscale", lengthscale), ("variance", variance), ("noise", noise)):
            check(name, value, above=0, below=math.inf)
        self.Z = nn.Parameter(Z.detach().clone())
        self.mean = nn.Parameter(Z.new_zeros(len(Z)))
        self.log_diagonal = nn.Parameter(Z.new_full((len(Z),), math.log(0.3)))
        self.lower = nn.Parameter(Z.new_zeros(len(Z), len(Z))) if covariance != "diagonal" else None
        self.log_lengthscale = nn.Parameter(Z.new_full((Z.shape[1],), math.log(lengthscale)))
        self.log_variance = nn.Parameter(Z.new_tensor(math.log(variance)))
        self.log_noise = nn.Parameter(Z.new_tensor(math.log(noise)))

    @property
    def together(self) -> bool:
        """Whether all inputs share one active set, so that one factor serves them all."""
        return self.size == len(self.Z)

    @property
    def chunk(self) -> int:
        """How many inputs a pass over data takes at a time."""
        return max(1, _CELLS // (len(self.Z) if self.together else self.size**2 + len(self.Z)))

    def nearest(self, x: Float[Tensor, "b d"]) -> Int[Tensor, "b H"]:
        """The active set of each input, in rising order; a draw goes to the lower index."""
        with torch.no_grad():
            scale = torch.exp(-self.log_lengthscale)
            distance = _squared_distance((x * scale)[None], (self.Z * scale)[None])[0]
            return largest(-distance, self.size).nonzero()[:, 1].reshape(len(x), self.size)

    def covariances(self, a: Float[Tensor, "G m d"], b: Float[Tensor, "G n d"]) -> Float[Tensor, "G m n"]:
        """``k(a, b)``."""
        scale = torch.exp(-self.log_lengthscale)
        squared = _squared_distance(a * scale, b * scale)
        if self.kernel == "rbf":
            shape = torch.exp(-squared / 2)
        else:
            nu = int(self.kernel[-2])
            r = math.sqrt(nu) * squared.clamp(min=1e-24).sqrt()
            shape = {1: 1.0, 3: 1 + r, 5: 1 + r + r * r / 3}[nu] * torch.exp(-r)
        return torch.exp(self.log_variance) * shape

    def blocks(self, x: Float[Tensor, "b d"], index: Int[Tensor, "G H"] | None = None) -> _Blocks:
        """The active sets and their algebra; one group of all inputs, or one for each input."""
        if index is None:
            index = torch.arange(len(self.Z))[None] if self.together else self.nearest(x)
        groups = x.reshape(len(index), -1, x.shape[1])
        Z = _rows(self.Z, index)
        variance = torch.exp(self.log_variance)
        K = self.covariances(Z, Z) + self.jitter * variance * torch.eye(self.size, dtype=x.dtype)
        k = self.covariances(Z, groups)
        root = torch.linalg.cholesky(K)
        half = torch.linalg.solve_triangular(root, k, upper=False)
        weights = torch.linalg.solve_triangular(root.mT, half, upper=True)
        return _Blocks(index, root, weights, variance - (half * half).sum(1))

    def factor(self, index: Int[Tensor, "G H"]) -> Float[Tensor, "G H H"]:
        """A triangular F with ``S_w = F F'``."""
        diagonal = torch.exp(self.log_diagonal)
        if self.covariance == "diagonal":
            return torch.diag_embed(_rows(diagonal, index))
        if self.covariance == "triangle" or self.together:
            places = index[:, :, None] * len(self.Z) + index[:, None, :]
            block = _rows(self.lower.reshape(-1), places)
            return block.tril(-1) + torch.diag_embed(_rows(diagonal, index))
        rows = (self.lower.tril(-1) + torch.diag(diagonal))[index]
        return torch.linalg.cholesky(rows @ rows.mT)

    def moments(self, x: Float[Tensor, "b d"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Mean and variance of ``f(x)`` under q, without the noise."""
        blocks = self.blocks(x)
        return self._moments(blocks, self.factor(blocks.index))

    def _moments(self, blocks, factor):
        mean = (blocks.weights * _rows(self.mean, blocks.index)[:, :, None]).sum(1)
        spread = (factor.mT @ blocks.weights).square().sum(1)
        return mean.reshape(-1), (blocks.rest + spread).clamp(min=1e-12).reshape(-1)

    def divergence(self, blocks: _Blocks, factor: Float[Tensor, "G H H"]) -> Float[Tensor, " G"]:
        """``KL(q(u | w) || p(u | w))`` of each group."""
        sides = torch.cat([factor, _rows(self.mean, blocks.index)[:, :, None]], dim=2)
        squares = torch.linalg.solve_triangular(blocks.root, sides, upper=False).square().sum((1, 2))
        logs = [2 * torch.log(torch.diagonal(f, dim1=1, dim2=2)).sum(1) for f in (blocks.root, factor)]
        return (squares - self.size + logs[0] - logs[1]) / 2

    def bound(self, x: Float[Tensor, "b d"], y: Float[Tensor, " b"], rows: int, index: Tensor | None = None) -> Tensor:
        """The bound for ``rows`` inputs, estimated without bias from a batch of them; natural logarithms."""
        blocks = self.blocks(x, index)
        factor = self.factor(blocks.index)
        mean, variance = self._moments(blocks, factor)
        noise = torch.exp(self.log_noise)
        fit = -(torch.log(2 * math.pi * noise) + ((y - mean) ** 2 + variance) / noise) / 2
        return rows * fit.mean() - self.divergence(blocks, factor).mean()

    @torch.no_grad()
    def settle(self, x: Float[Tensor, "n d"], y: Float[Tensor, " n"]) -> None:
        """Put q where the bound of all data is largest, everything else being held.

        The bound is quadratic in the mean: ``m`` solves ``sum_i (a_i a_i' / noise + K_w^-1 / n) m = sum_i a_i y_i /
        noise``, each term in its own active set. For one active set the covariance is the inverse of the same matrix,
        which is the optimum of Titsias (2009); for a diagonal one it is ``(n_j / n)`` over its diagonal, n_j being the
        inputs that see j. A triangle or a marginal is given that diagonal if nothing was learned yet, and else left as
        it is.
        """
        precision, right, seen = self._normal_equations(x, y)
        unseen = seen == 0
        precision.diagonal()[unseen] = 1.0
        scale = precision.diagonal().rsqrt()
        root = torch.linalg.cholesky(scale[:, None] * precision * scale)
        self.mean.copy_(scale * torch.cholesky_solve((scale * right)[:, None], root)[:, 0])
        if self.together and self.covariance != "diagonal":
            inverse = scale[:, None] * torch.cholesky_inverse(root) * scale
            factor = torch.linalg.cholesky(inverse)
            self.lower.copy_(factor.tril(-1))
            self.log_diagonal.copy_(torch.log(factor.diagonal()))
        elif self.covariance == "diagonal" or not self.lower.any():
            best = torch.log(seen / len(x) / precision.diagonal()) / 2
            self.log_diagonal.copy_(torch.where(unseen, self.log_diagonal, best))

    def _normal_equations(self, x, y):
        M, noise = len(self.Z), torch.exp(self.log_noise)
        precision, right, seen = x.new_zeros(M * M), x.new_zeros(M), x.new_zeros(M)
        for rows in torch.arange(len(x)).split(self.chunk):
            blocks = self.blocks(x[rows])
            index, A = blocks.index, blocks.weights
            own = y[rows].reshape(len(index), -1, 1)
            inverse = torch.cholesky_inverse(blocks.root) * (own.shape[1] / len(x))
            term = A @ A.mT / noise + inverse
            precision.index_add_(0, (index[:, :, None] * M + index[:, None, :]).reshape(-1), term.reshape(-1))
            right.index_add_(0, index.reshape(-1), (A @ own / noise).reshape(-1))
            seen.index_add_(0, index.reshape(-1), x.new_full((index.numel(),), float(own.shape[1])))
        return precision.reshape(M, M), right, seen

    def forward(self, batch: tuple[Tensor, Tensor], rows: int) -> Tensor:
        """What training minimises: minus the bound for each of ``rows`` inputs."""
        return -self.bound(*batch, rows) / rows


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]``; the gradient of a selection is a plain sum by places, that of indexing sorts them first."""
    return x.index_select(0, index.reshape(-1)).reshape(*index.shape, *x.shape[1:])


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    product = a @ b.mT
    return ((a * a).sum(2)[:, :, None] + (b * b).sum(2)[:, None, :] - 2 * product).clamp(min=0)
