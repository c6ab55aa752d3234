"""Autoencoders trained so that the model's output is kept, rather than the activation.

Lives here: ``EndToEndTrainer``. Does not live here: training on activations alone (``trainer``), the splice
(``splice``), what a trained one loses (``spliced_loss``).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.autoencoder.codes import size_by_latent
from ellzero.autoencoder.inputs import decoded
from ellzero.autoencoder.model import SparseAutoencoder, UnitNorm
from ellzero.autoencoder.optimizer import RowAdam
from ellzero.autoencoder.splice import attach as splice
from ellzero.autoencoder.spliced_loss import logits, predicts_next
from ellzero.autoencoder.trainer import geometric_median
from ellzero.errors import InputError, check, check_integer
from ellzero.models.activations import ActivationStream, Reached, evaluating
from ellzero.models.attach import attach
from ellzero.models.sites import locate
from ellzero.registry import register
from ellzero.training.loop import Batches, Trained, train
from ellzero.training.losses import distillation

__all__ = ["EndToEndTrainer"]

_SAMPLE = 8192


def course(step: float, total: float) -> float:
    """Linear warm-up over the first 5 % of the steps, times half a cosine down to zero."""
    return min((step + 1) / max(0.05 * total, 1), 1.0) * 0.5 * (1 + math.cos(math.pi * step / total))


@register(
    kind="method", wing="autoencoder", source="arXiv:2405.12241", id="S077", extra="torch",
    claim="the same rise of the model's loss with fewer than half the active latents",
)  # fmt: skip
class EndToEndTrainer:
    """Trains an autoencoder inside a frozen language model, on what the model does with its reconstruction.

    ``kl KL(p || p') + alpha ||z||_1 / d + downstream mean_l ||a_l - a_l'||^2 / d_l + local ||x - x_hat||^2 / d``, means
    over tokens: ``p`` are the model's predictions and ``a_l`` its activations after the module, primes those with the
    reconstruction spliced in, ``z`` the codes, in units of their atoms. The paper's three kinds:

    - ``local``: ``kl=0, local=1``;
    - ``e2e``: the default;
    - ``e2e + downstream``: ``downstream=1`` or more.

    Parameters
    ----------
    sae : the autoencoder, trained in place; a rectified one (``Threshold(0.0)``) in the paper, any other works. The
        terms of its own objective are not used. Activations are taken as they are: with ``inputs=ExpectedNorm()`` the
        learning rate and ``alpha`` mean the same for any model.
    model : gives logits ``[batch, time, vocabulary]`` of the next token. It runs in evaluation mode, and is left as it
        was.
    hook : the module, as ``ellzero.models.sites.locate`` reads it.
    alpha, kl, downstream, local : weights.
    later : the modules of the downstream term, by name; by default all of the kind with a higher number
        (``layers.2``, ``layers.3`` after ``layers.1``).
    lr : peak learning rate of Adam; warm-up over 5 % of the steps, then half a cosine.
    sequences : windows per step.
    steps : of the optimiser.
    clip : largest norm of all gradients together.
    initialize : set ``b_dec`` to the geometric median of a sample first.
    seed : of the order of windows.

    Raises
    ------
    InputError : a model without such logits, a module that is not there, weights that are all zero, no later modules.

    Braun et al. (2024), section 2. An end-to-end loss alone leaves the reconstruction free wherever the model does not
    look, so report the unexplained variance beside the loss.

    Measured at ``layers.1`` of the reference language model (512 latents, 150 steps of 6 windows of 64 tokens): end to
    end 44 active latents raise the loss by 0.21 nats and 14 by 0.39; a local loss needs about 105 and 80. The
    unexplained variance is 0.55 and 0.81 then, and 0.35 with the downstream term at a rise of 0.23 and 0.4 of the
    latents.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        model: nn.Module,
        hook: str,
        *,
        alpha: float = 0.1,
        kl: float = 1.0,
        downstream: float = 0.0,
        local: float = 0.0,
        later: Sequence[str] | None = None,
        lr: float = 5e-4,
        sequences: int = 16,
        steps: int = 2000,
        clip: float = 1.0,
        initialize: bool = True,
        seed: int = 0,
    ):
        if not isinstance(sae, SparseAutoencoder):
            raise InputError(f"sae: got {type(sae).__name__}, want a SparseAutoencoder")
        if not isinstance(model, nn.Module) or not predicts_next(model):
            raise InputError(f"model: got {type(model).__name__}, want a model that predicts the next token")
        self.sae, self.model, self.hook = sae, model, locate(model, hook)
        self.alpha = check("alpha", alpha, at_least=0)
        self.kl, self.local = check("kl", kl, at_least=0), check("local", local, at_least=0)
        self.downstream = check("downstream", downstream, at_least=0)
        if self.kl == self.local == self.downstream == 0:
            raise InputError("kl, downstream, local: got 0 for all, want one above 0")
        self.later = []
        if self.downstream > 0:
            self.later = _later(model, self.hook) if later is None else [locate(model, name) for name in later]
            if not self.later:
                raise InputError(f"later: found no module after {self.hook!r} of its kind, want names of some")
        self.lr = check("lr", lr, above=0, below=math.inf)
        self.sequences = check_integer("sequences", sequences, at_least=1)
        self.steps = check_integer("steps", steps, at_least=1)
        self.clip = check("clip", clip, above=0)
        self.seed = check_integer("seed", seed, at_least=0)
        self.initialize = bool(initialize)
        self._stream: ActivationStream | None = None

    def fit(
        self,
        *,
        texts: Iterable[str] | None = None,
        tokens: Iterable[Sequence[int]] | None = None,
        tokenizer: Any = None,
        context: int | None = None,
        drop_bos: bool = True,
        progress: bool = False,
        checkpoint: Any = None,
        every: int = 1000,
    ) -> Trained:
        """Train, and leave the autoencoder in evaluation mode.

        Parameters
        ----------
        texts, tokens, tokenizer, context, drop_bos : as for ``ActivationStream``. With ``drop_bos`` special tokens are
            not spliced, and no prediction from one counts.
        progress, checkpoint, every : as for ``SAETrainer.fit``; a run that was killed ends with the same bits.

        Raises
        ------
        InputError : no text, or a width that does not fit; a loss that is not finite (a smaller ``lr`` helps).
        """
        self._stream = ActivationStream(
            self.model, hook=self.hook, texts=texts, tokens=tokens, tokenizer=tokenizer, context=context,
            sequences=self.sequences, batch_size=min(1024, _SAMPLE), seed=self.seed, drop_bos=drop_bos,
        )  # fmt: skip
        self._windows = [window for batch in self._stream.plan for window in batch]
        sae, sample = self.sae, self._sample()
        with torch.no_grad():
            if sae.inputs is not None:
                if not sae.inputs.fitted(sae):
                    sae.fit_inputs(sample)
                sample = sae.normalized(sample)
            if self.initialize:
                sae.b_dec.copy_(geometric_median(sample))
            sae.normalize()
        unit = [sae.W_dec] if isinstance(sae.decoder, UnitNorm) else []
        optimizer = RowAdam(sae.parameters(), lr=self.lr, clip=self.clip, unit=unit)
        batches = Batches(torch.arange(len(self._windows)), batch_size=self.sequences, seed=self.seed)
        with evaluating(self.model), _frozen(self.model):
            found = train(
                sae, lambda _, chosen: self.loss(chosen), batches, optimizer=optimizer, steps=self.steps,
                schedule=course, seed=self.seed, progress=progress, checkpoint=checkpoint, every=every,
            )  # fmt: skip
        with torch.no_grad():
            sae.normalize()
            if sae.calibrates:
                sae.set_threshold(sample)
        sae.eval()
        return found

    def loss(self, chosen: Tensor) -> Tensor:
        """The objective on windows, by number."""
        given, keywords, counts, _ = self._stream.forward_pass([self._windows[i] for i in chosen.tolist()])
        here = torch.from_numpy(counts).to(given.device)
        whole = self.kl > 0 or self.downstream > 0
        with torch.no_grad():
            before, plain = self._run(given, keywords, [self.hook, *self.later], to_end=whole)
        x = before[self.hook][here].to(self.sae.W_dec)
        total = x.new_zeros(())
        if whole:
            spliced = splice(self.model, {self.hook: self.sae}, error_term=False, positions=here, gradient=True)
            with spliced:
                after, told = self._run(given, keywords, self.later, to_end=True)
                z = spliced.latents[self.hook][here]
            if self.kl > 0:
                total = total + self.kl * distillation(told[here], plain[here])
            for name in self.later:
                gap = (before[name][here] - after[name][here]).square().mean()
                total = total + self.downstream / len(self.later) * gap
        else:
            z = self.sae.encode(x)
        if self.local > 0:
            total = total + self.local * (x - decoded(self.sae, z, x)).square().mean()
        return total + self.alpha * size_by_latent(z, self.sae.W_dec.norm(dim=1)).mean() / self.sae.d_in

    def _run(
        self, given: Tensor, keywords: dict[str, Any], names: Sequence[str], to_end: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """What modules give in one forward pass, and the logits, if the pass goes on to its end."""
        found: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> None:
            found[name] = x
            if not to_end and len(found) == len(names):
                raise Reached

        out, hooks = None, {name: lambda x, name=name: keep(name, x) for name in names}
        with contextlib.suppress(Reached), attach(self.model, hooks) if hooks else contextlib.nullcontext():
            out = logits(self.model, given, keywords)
        return found, out

    def _sample(self) -> Tensor:
        rows, parts = 0, []
        for part in self._stream:
            parts.append(part)
            rows += len(part)
            if rows >= _SAMPLE:
                break
        sample = torch.cat(parts).to(self.sae.W_dec)
        if sample.shape[1] != self.sae.d_in:
            raise InputError(
                f"sae: takes {self.sae.d_in} features, but {self.hook!r} gives {sample.shape[1]}"
            )  # fmt: skip
        return sample


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No weight asks for a derivative inside; afterwards those that did do again."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _later(model: nn.Module, name: str) -> list[str]:
    """Modules whose names differ from this one's in its last number alone, which is higher."""
    places = list(re.finditer(r"(?:^|(?<=\.))\d+(?=\.|$)", name))
    if not places:
        return []
    low, high = places[-1].span()
    known = {own for own, _ in model.named_modules()}
    numbers = sorted(int(own[low : len(own) - len(name[high:])]) for own in known if _fits(own, name, low, high))
    return [f"{name[:low]}{number}{name[high:]}" for number in numbers if number > int(name[low:high])]


def _fits(own: str, name: str, low: int, high: int) -> bool:
    tail = name[high:]
    middle = own[low : len(own) - len(tail)]
    return own.startswith(name[:low]) and own.endswith(tail) and middle.isdecimal()
