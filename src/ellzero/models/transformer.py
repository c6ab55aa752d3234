"""A small decoder-only transformer in the manner of Llama, with a key-value cache.

Lives here: ``TransformerConfig``, ``Transformer``, ``Cache`` and generation. Does not live here: its training
(``train_reference``), its tokenizer (``tokenizer``), and how it is kept on disk (``storage``).
Modules are named for hooks: ``layers.I`` (residual stream), ``layers.I.attention``, ``layers.I.feed_forward``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.models.initial import empty, fill
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Cache", "Transformer", "TransformerConfig"]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a ``Transformer``; ``build`` makes one."""

    vocabulary: int
    """Number of tokens."""
    width: int = 128
    """Size of the residual stream."""
    depth: int = 4
    """Number of layers."""
    heads: int = 4
    """Query heads; each has ``width / heads`` entries, an even number."""
    key_heads: int = 2
    """Key and value heads, a divisor of ``heads`` (grouped-query attention)."""
    hidden: int = 352
    """Width inside the gated feed-forward layers."""
    context: int = 256
    """Longest sequence."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    epsilon: float = 1e-5
    """Added to the mean square inside RMS norms."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "depth", "heads", "key_heads", "hidden", "context"):
            check_integer(name, getattr(self, name), at_least=1)
        check("rope_base", self.rope_base, above=1)
        check("epsilon", self.epsilon, above=0)
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise InputError(f"heads: got {self.heads} for width {self.width}, want heads of equal, even size")
        if self.heads % self.key_heads:
            raise InputError(f"key_heads: got {self.key_heads}, want a divisor of heads = {self.heads}")

    def build(self, seed: int = 0) -> Transformer:
        """A ``Transformer`` with fresh weights drawn from ``seed``."""
        model = empty(lambda: Transformer(self))
        into_stream = 0.02 / math.sqrt(2 * self.depth)  # keeps the residual stream's variance flat over depth

        def std(name: str, _: Tensor) -> float:
            return into_stream if name.endswith(("output.weight", "down.weight")) else 0.02

        return fill(model, seed, std)


@dataclass
class Cache:
    """Keys and values of the tokens seen so far, one pair ``[batch, key_heads, time, head]`` per layer."""

    pairs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    mask: Tensor | None = None
    """Which cached positions are real, ``[batch, time]``; ``None`` when all are."""

    @property
    def length(self) -> int:
        """How many positions are held."""
        return self.pairs[0][0].shape[2] if self.pairs else 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions of one layer and return all of them."""
        if layer in self.pairs:
            before_keys, before_values = self.pairs[layer]
            keys, values = torch.cat([before_keys, keys], dim=2), torch.cat([before_values, values], dim=2)
        self.pairs[layer] = keys, values
        return keys, values


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + epsilon) * weight``. Zhang and Sennrich (2019), eq. 4."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * self.weight


def rotate(x: Float[Tensor, "batch heads time head"], angle: Float[Tensor, "batch time half"]) -> Tensor:
    """Turn the pairs (entry ``i``, entry ``i + half``) by the angles. Su et al. (2021), eq. 34."""
    cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.layer, self.heads, self.key_heads = layer, config.heads, config.key_heads
        self.head = config.width // config.heads
        self.query = nn.Linear(config.width, config.heads * self.head, bias=False)
        self.key = nn.Linear(config.width, config.key_heads * self.head, bias=False)
        self.value = nn.Linear(config.width, config.key_heads * self.head, bias=False)
        self.output = nn.Linear(config.heads * self.head, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        angle: Float[Tensor, "batch time half"],
        mask: Bool[Tensor, "batch 1 time total"] | None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch time width"]:
        batch, time, _ = x.shape

        def split(y: Tensor, heads: int) -> Tensor:
            return y.view(batch, time, heads, self.head).transpose(1, 2)

        queries = rotate(split(self.query(x), self.heads), angle)
        keys = rotate(split(self.key(x), self.key_heads), angle)
        values = split(self.value(x), self.key_heads)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        group = self.heads // self.key_heads
        if group > 1:
            keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None)
        return self.output(mixed.transpose(1, 2).reshape(batch, time, self.heads * self.head))


class FeedForward(nn.Module):
    """``down(silu(gate(x)) * up(x))``. Shazeer (2020), eq. 6."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Attention and feed-forward, each on the normed stream and added to it."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.epsilon)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.width, config.epsilon)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Float[Tensor, "batch time width"], angle: Tensor, mask: Tensor | None, cache: Cache | None = None
    ) -> Float[Tensor, "batch time width"]:
        x = x + self.attention(self.attention_norm(x), angle, mask, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


@register(
    kind="model", source="arXiv:2302.13971", extra="torch",
    example=lambda: TransformerConfig(vocabulary=64, width=16, depth=2, heads=4, key_heads=2, hidden=32).build(),
)  # fmt: skip
class Transformer(nn.Module):
    """A Llama-style language model: RMS norms, rotary positions, gated feed-forward, tied embedding.

    ``TransformerConfig(...).build(seed)`` makes one with weights. Touvron et al. (2023).
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList([Layer(config, i) for i in range(config.depth)])
        self.norm = RMSNorm(config.width, config.epsilon)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        attention_mask: Int[Tensor, "batch time"] | Bool[Tensor, "batch time"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch time vocabulary"]:
        """Logits of the next token at every position.

        ``attention_mask`` is 1 at real tokens and 0 at padding, on either side. With a ``cache`` the tokens follow
        those it holds, and are added to it.
        """
        past = cache.length if cache is not None else 0
        if past + tokens.shape[1] > self.config.context:
            raise InputError(
                f"tokens: got {past + tokens.shape[1]} positions, want at most context = {self.config.context}"
            )
        if attention_mask is not None and attention_mask.shape != tokens.shape:
            raise InputError(f"attention_mask: got shape {tuple(attention_mask.shape)}, want {tuple(tokens.shape)}")
        position, mask = self._places(tokens, attention_mask, cache, past)
        half = self.config.width // self.config.heads // 2
        frequency = self.config.rope_base ** (-torch.arange(half, device=tokens.device, dtype=torch.float32) / half)
        x = self.embedding(tokens)
        angle = (position[..., None] * frequency).to(x.dtype)
        for layer in self.layers:
            x = layer(x, angle, mask, cache)
        return F.linear(self.norm(x), self.embedding.weight)

    def _places(
        self, tokens: Tensor, attention_mask: Tensor | None, cache: Cache | None, past: int
    ) -> tuple[Tensor, Tensor | None]:
        """Positions ``[batch, time]`` and who may look at whom, ``None`` where plain causality says it all."""
        batch, time = tokens.shape
        device, total = tokens.device, past + time
        real = attention_mask.bool() if attention_mask is not None else None
        if cache is not None:
            if cache.mask is not None or (real is not None and past):
                before = cache.mask if cache.mask is not None else tokens.new_ones(batch, past, dtype=torch.bool)
                now = real if real is not None else tokens.new_ones(batch, time, dtype=torch.bool)
                real = torch.cat([before, now], dim=1)
            cache.mask = real
        row, column = torch.arange(past, total, device=device), torch.arange(total, device=device)
        if real is None:
            mask = None if past == 0 else (column[None] <= row[:, None])[None, None]
            return row.expand(batch, time), mask
        position = (real.cumsum(1) - 1).clamp(min=0)[:, past:]
        itself = column[None] == row[:, None]  # a padded row sees itself, for a row without any entry gives NaN
        mask = ((column[None] <= row[:, None]) & real[:, None, :]) | itself
        return position, mask[:, None]

    @torch.no_grad()
    def generate(
        self,
        tokens: Sequence[int],
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[int]:
        """Continue a sequence by ``length`` tokens and return those alone.

        Parameters
        ----------
        tokens : the prompt, at least one token.
        temperature : divides the logits; 0 takes the largest one each time (ties to the lowest token).
        top_k : sample among this many largest logits only.
        """
        prompt = check_array("tokens", np.asarray(tokens), ndim=1, dtypes="iu")
        if prompt.min() < 0 or prompt.max() >= self.config.vocabulary:
            raise InputError(f"tokens: got tokens beyond 0 to {self.config.vocabulary - 1}")
        check_integer("length", length, at_least=0, at_most=self.config.context - len(prompt))
        check("temperature", temperature, at_least=0)
        if top_k is not None:
            check_integer("top_k", top_k, at_least=1, at_most=self.config.vocabulary)
        stream, cache, out = rng(seed, "generate"), Cache(), []
        device = self.embedding.weight.device
        new = torch.as_tensor(prompt.astype(np.int64), device=device)[None]
        for _ in range(length):
            logits = self(new, cache=cache)[0, -1].double().cpu().numpy()
            out.append(_choose(logits, temperature, top_k, stream))
            new = torch.tensor([[out[-1]]], device=device)
        return out


def _choose(logits: np.ndarray, temperature: float, top_k: int | None, stream: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[:top_k]
    chance = np.exp((logits[order] - logits[order[0]]) / temperature)
    place = np.searchsorted(np.cumsum(chance), stream.random() * chance.sum(), side="right")
    return int(order[min(place, len(order) - 1)])
