"""Bandits whose rewards are nearly a sparse linear function of the actions' features, and the hardest of them.

Lives here: finite sets of actions with the truth, misspecified at random or against least squares; hidden codewords.
Does not live here: who chooses the actions (``linear.sparse_bandits``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["SparseBandit", "hidden_codeword_bandit", "misspecified_bandit"]


@dataclass(frozen=True, eq=False)
class SparseBandit:
    """``rewards [N]`` of the actions ``[N, d]``, at most ``epsilon`` from ``actions @ theta``; ``noise`` is added to
    each pull.

    ``theta [d]`` is sparse.
    """

    actions: np.ndarray
    theta: np.ndarray
    rewards: np.ndarray
    epsilon: float
    noise: float
    seed: int

    def pull(self, actions: np.ndarray, times: int = 1) -> np.ndarray:
        """Mean of ``times`` noisy rewards of each of the given actions; the same call gives the same numbers."""
        actions = check_array("actions", np.asarray(actions), ndim=1, dtypes="iu")
        found = self.rewards[actions]
        if self.noise == 0:
            return found
        draws = [rng(self.seed, "pull", int(a), times).standard_normal() for a in actions]
        return found + self.noise / np.sqrt(times) * np.array(draws)

    def gap(self, action: int) -> float:
        """How much less it pays than the best one."""
        return float(self.rewards.max() - self.rewards[action])


@register(kind="generator", source="arXiv:2303.16998", id="S159", wing="linear",
          example=lambda: misspecified_bandit(6, 2, n_actions=20))  # fmt: skip
def misspecified_bandit(
    d: int = 12, s: int = 2, *, n_actions: int = 2000, sparse_actions: int | None = None, epsilon: float = 0.1,
    size: float = 1.0, aligned: bool = False, misspecification: str = "least_squares", noise: float = 0.0, seed: int =
0, ) -> SparseBandit:  # fmt: skip
    """Actions of length 1, s equal parameters of total length ``size``, and errors of up to ``epsilon``.

    Parameters
    ----------
    sparse_actions : entries of an action that are not 0; ``None`` for all.
    aligned : put one action along the parameters; it is better than all others, the more so the larger d is.
    misspecification : ``"random"``, uniform in +-epsilon; or ``"least_squares"``: +-epsilon with the signs that make
        least squares over all actions choose the worst action that it can be made to choose, which moves a
        prediction by up to about ``0.8 epsilon sqrt(d)``.

    Raises
    ------
    InputError : counts below 1, s or sparse_actions above d, negative sizes, an unknown misspecification.
    """
    check_integer("d", d, at_least=1)
    check_integer("s", s, at_least=1, at_most=d)
    check_integer("n_actions", n_actions, at_least=2)
    check("epsilon", epsilon, at_least=0)
    check("size", size, above=0)
    check("noise", noise, at_least=0)
    check_choice("misspecification", misspecification, ("least_squares", "random"))
    stream = rng(seed, "bandit")
    actions = stream.standard_normal((n_actions, d))
    if sparse_actions is not None:
        check_integer("sparse_actions", sparse_actions, at_least=1, at_most=d)
        dropped = stream.random((n_actions, d)).argsort(axis=1)[:, sparse_actions:]
        np.put_along_axis(actions, dropped, 0.0, axis=1)
    actions /= np.linalg.norm(actions, axis=1, keepdims=True)
    theta = np.zeros(d)
    theta[stream.permutation(d)[:s]] = stream.choice([-1.0, 1.0], s) * size / np.sqrt(s)
    if aligned:
        actions[stream.integers(n_actions)] = theta / size
    if misspecification == "random":
        error = epsilon * stream.uniform(-1, 1, n_actions)
    else:
        error = _against_least_squares(actions, theta, epsilon)
    return SparseBandit(actions, theta, actions @ theta + error, float(epsilon), float(noise), seed)


def _against_least_squares(actions: np.ndarray, theta: np.ndarray, epsilon: float) -> np.ndarray:
    """For each action the signs that lift its prediction most; of these the ones under which the choice is worst."""
    influence = np.linalg.pinv(actions)  # [d, N]: what a reward adds to the estimate
    plain, worst, found = actions @ theta, -np.inf, np.zeros(len(actions))
    for target in np.argsort(plain, kind="stable"):
        error = epsilon * np.sign(actions[target] @ influence)
        chosen = int((actions @ (theta + influence @ error)).argmax())
        error[chosen] = -epsilon
        gap = (plain + error).max() - plain[chosen] - error[chosen]
        if gap > worst and int((actions @ (theta + influence @ error)).argmax()) == chosen:
            worst, found = gap, error
    return found


@register(kind="generator", source="arXiv:2303.16998; arXiv:1910.03016", id="S159", wing="linear",
          example=lambda: hidden_codeword_bandit(8, 5, n_actions=8))  # fmt: skip
def hidden_codeword_bandit(
    d: int = 24, s: int = 16, *, n_actions: int = 200, epsilon: float = 0.1, noise: float = 0.0, seed: int = 0
) -> SparseBandit:
    """One of many nearly orthogonal codewords pays, all others pay exactly 0, so that no query tells where it is.

    Codewords are signs over ``sqrt(s)`` on s of the d coordinates. Theta is the hidden one times ``epsilon / c``, c
    being the largest inner product of it with another one, which is what it pays: about ``epsilon sqrt(s / (2 log
    N))``.

    Raises
    ------
    InputError : counts below 1, s above d, more actions than there are distinct codewords up to sign.
    """
    check_integer("d", d, at_least=1)
    check_integer("s", s, at_least=2, at_most=d)
    check_integer("n_actions", n_actions, at_least=2, at_most=2 ** min(s - 1, 40))
    check("epsilon", epsilon, above=0)
    check("noise", noise, at_least=0)
    stream, words = rng(seed, "codewords"), np.empty((0, s))
    while len(words) < n_actions:
        more = stream.choice([-1.0, 1.0], (2 * n_actions, s))
        more[:, 0] = 1.0  # a word and its opposite are as far from orthogonal as a word and itself
        words = np.concatenate([words, more])
        words = words[np.sort(np.unique(words, axis=0, return_index=True)[1])]
    words = words[:n_actions] / np.sqrt(s)
    hidden = int(stream.integers(n_actions))
    products = words @ words[hidden]
    coherence = abs(np.delete(products, hidden)).max()
    if coherence == 0:
        raise InputError(f"n_actions: {n_actions} codewords came out orthogonal, want more of them, or another seed")
    actions, theta, rewards = np.zeros((n_actions, d)), np.zeros(d), np.zeros(n_actions)
    places = np.sort(stream.permutation(d)[:s])
    actions[:, places] = words
    theta[places] = words[hidden] * epsilon / coherence
    rewards[hidden] = epsilon / coherence
    return SparseBandit(actions, theta, rewards, float(epsilon), float(noise), seed)
