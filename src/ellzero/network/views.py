"""Views: what the network sees of a weight that stays dense underneath.

Lives here: ``View`` (the frame: a module between a parameter and its layer) and ``Through`` (a mask with a gradient
rule and a share of the dropped that still shows). Does not live here: the rules themselves (``parts.gradients``), masks
(``sparsifier``), views with parameters of their own (beside the recipes that need them).
A recipe's ``through`` is called as ``through(name, weight, mask)`` for each weight and gives its view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ellzero.parts.gradients import Masked, StraightThrough

__all__ = ["Dropped", "Through", "View"]


class View(nn.Module):
    """A module from the dense weight to what the layer uses.

    ``mask`` follows the sparsifier. A view whose support is its own gives it by ``support(weight)``; one that scores
    entries itself is read by the recipe's score through ``state["view"]``. Parameters of a view join the user's
    optimiser in the group of their weight, or in one of their own with the settings in ``group``.
    """

    group: ClassVar[dict[str, Any]] = {}

    def __init__(self, mask: Bool[Tensor, "*shape"]):
        super().__init__()
        self.register_buffer("mask", mask.clone(), persistent=False)

    def move(self, mask: Bool[Tensor, "*shape"], progress: float) -> None:
        """The mask and the fraction of the run from now on."""
        self.mask.copy_(mask)

    def support(self, weight: Tensor) -> Tensor | None:
        """What is kept, where the view decides it; None where the sparsifier does."""
        return None

    def penalty(self, weight: Tensor) -> Tensor | None:
        """What is added to the derivative of the weight; None for nothing."""
        return None

    @property
    def shows_dropped(self) -> bool:
        """Whether dropped entries still reach the layer, which then costs what a dense one does."""
        return False


class Dropped(View):
    """``rule.apply(w, mask) + share w (1 - mask)``, and a decay of what is dropped."""

    def __init__(self, mask, gradient, showing, decay):
        super().__init__(mask)
        self.gradient, self.showing, self.decay = gradient, showing, decay
        self.share = 0.0
        self.move(mask, 0.0)

    def move(self, mask, progress):
        super().move(mask, progress)
        self.share = float(self.showing(progress)) if self.showing is not None else 0.0
        if hasattr(self.gradient, "at"):
            self.gradient = self.gradient.at(min(progress, 1.0))

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What the layer uses."""
        seen = self.gradient.apply(weight, self.mask)
        if self.share == 0:
            return seen
        shown = weight if isinstance(self.gradient, Masked) else weight.detach()  # else the rule alone decides
        return seen + self.share * Masked().apply(shown, ~self.mask)

    @property
    def shows_dropped(self):
        return self.share != 0

    def penalty(self, weight):
        return self.decay * weight.masked_fill(self.mask, 0) if self.decay else None


@dataclass(frozen=True)
class Through:
    """The kept entries forward; what the dropped ones receive is the gradient rule's.

    Parameters
    ----------
    gradient : rule of ``parts.gradients``.
    showing : schedule of the share of a dropped entry that the network still sees; with ``Masked`` its derivative is
        that share too, with another rule what the rule says.
    decay : ``decay * w`` is added to the derivative of dropped entries (SR-STE). Zhou et al. (2021), equation 9.
    """

    gradient: Any = field(default_factory=StraightThrough)
    showing: Callable[[float], float] | None = None
    decay: float = 0.0

    def __call__(self, name: str, weight: Tensor, mask: Tensor) -> View:
        return Dropped(mask, self.gradient, self.showing, self.decay)
