"""``SparseLinear`` and ``SparseConv2d``: modules of torch that hold a layout in place of a dense weight.

Lives here: both modules, made from dense ones. Does not live here: which layout is fastest (``models.packing``), the
operators (``torch_ops``), layouts. Training moves the stored values of CSR, row groups and the condensed layout, as an
ordinary parameter that any optimiser of torch takes; other layouts are for inference, with gradients by their input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check_choice
from ellzero.layouts import base
from ellzero.layouts.base import Layout
from ellzero.layouts.condensed import Condensed
from ellzero.layouts.device import product_on_device
from ellzero.layouts.grouped import CSR, RowGroup
from ellzero.layouts.torch_ops import SMALL, Stored, layer, product, slide, together
from ellzero.registry import register

__all__ = ["SparseConv2d", "SparseLinear", "as_layout"]


def as_layout(weight: Tensor | np.ndarray, layout: str | Layout, **settings: Any) -> Layout:
    """A two-axis weight in the layout of that name (or the layout itself)."""
    if isinstance(layout, Layout):
        return layout
    kind = base.layouts()[check_choice("layout", layout, base.layouts())]
    if isinstance(weight, Tensor):
        weight = weight.detach().cpu()
        weight = (weight.float() if weight.element_size() < 4 else weight).numpy()
    return kind.from_dense(weight, **settings)


def _trains(layout: Layout) -> bool:
    """Whether the stored values can be a parameter: floating point, with a pattern of their own."""
    return isinstance(layout, CSR | RowGroup | Condensed) and layout.value.dtype in (np.float32, np.float64)


def _dtype_of(layout: Layout) -> torch.dtype:
    return torch.from_numpy(layout.value[:0]).dtype


class _Sparse(nn.Module):
    """A layout as parameters and buffers: ``value`` is a parameter where it can train, all else are buffers."""

    def __init__(self, layout: Layout, bias: Tensor | None):
        super().__init__()
        if bias is not None and tuple(bias.shape) != (layout.shape[0],):
            raise InputError(f"bias: got shape {tuple(bias.shape)}, want {(layout.shape[0],)}, one per row")
        self._hold(layout)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def _hold(self, layout: Layout) -> None:
        self._facts = {"layout": layout.name, **layout.facts()}
        self._train_values = _trains(layout)
        for name in [*self._buffers, *(["value"] if "value" in self._parameters else [])]:
            delattr(self, name)
        for name, array in layout.tensors().items():
            tensor = torch.from_numpy(np.array(array))
            if name == "value" and self._train_values:
                self.value = nn.Parameter(tensor)
            else:
                self.register_buffer(name, tensor)
        pattern = layout.pattern if isinstance(layout, CSR | RowGroup) else getattr(layout, "_pattern", None)
        self._stored = Stored(pattern if self._train_values else layout)

    def rewire(self, layout: Layout) -> None:
        """Take another pattern of as many values, in the same parameter, so that an optimiser goes on holding it.

        Raises
        ------
        InputError : another shape, number of stored values or kind of layout.
        """
        if not (self._train_values and layout.name == self._facts["layout"] and _trains(layout)):
            raise InputError(f"layout: got {layout.name}, want one whose values train, as here {self._facts['layout']}")
        if list(layout.shape) != list(self._facts["shape"]) or layout.value.shape != tuple(self.value.shape):
            raise InputError(
                f"layout: got {tuple(layout.shape)} with values {layout.value.shape}, "
                f"want {tuple(self._facts['shape'])} with {tuple(self.value.shape)}"
            )
        value, names = self.value, list(self._parameters)
        self._hold(layout)
        with torch.no_grad():
            value.copy_(self.value)
        self.value = value
        for name in names:  # in the order that they had, which an optimiser's state goes by
            self._parameters[name] = self._parameters.pop(name)

    @property
    def layout(self) -> Layout:
        """The layout with the values as they are now."""
        if not self._train_values:
            return self._stored.of
        tensors = {name: tensor.detach().cpu().numpy() for name, tensor in self._tensors().items()}
        return base.layouts()[self._facts["layout"]].from_parts(tensors, self._facts)

    def _tensors(self) -> dict[str, Tensor]:
        names = [*self._buffers, *(["value"] if self._train_values else [])]
        return {name: getattr(self, name) for name in names}

    def to_dense(self) -> Tensor:
        """The weight ``[rows, columns]`` with its zeros."""
        return torch.from_numpy(self.layout.to_dense())

    def _apply_weight(self, x: Tensor) -> Tensor:
        """``W x + bias`` for ``x`` ``[columns, batch]``."""
        if x.device.type != "cpu":
            return product_on_device(self._facts, self._tensors(), x, self.bias)
        if self._whole():
            return product(self._stored, self._stored_values(), x, self.bias)
        out = product(self._stored, self._stored_values(), x, None if self.bias is None else self.bias[self.kept])
        rest = x.new_zeros(self._facts["shape"][0], x.shape[1])
        if self.bias is not None:
            rest = rest + self.bias[:, None]
        return rest.index_copy(0, self.kept, out)

    def _stored_values(self) -> Tensor | None:
        """The values as the pattern has them, ``[entries, group]``; a layout has its own."""
        if not self._train_values:
            return None
        return self.value.reshape(-1, 1) if self._facts["layout"] == Condensed.name else self.value

    def _whole(self) -> bool:
        """Whether the pattern has every row: the condensed layout leaves out those without inputs."""
        return self._stored.rows == self._facts["shape"][0]

    def _infers(self, x: Tensor) -> bool:
        """Whether outputs alone are asked for, on the CPU: ways that have no gradient will do."""
        if not x.is_cpu:
            return False
        if not torch.is_grad_enabled():
            return True
        wanted = (x, self._stored_values(), self.bias)
        return not any(t is not None and t.requires_grad for t in wanted)

    def _apply(self, *arguments: Any, **options: Any) -> _Sparse:
        self._stored.forget()  # what is moved or converted should not stay behind
        return super()._apply(*arguments, **options)

    def get_extra_state(self) -> Tensor:
        """What the arrays alone do not say, as JSON bytes."""
        return torch.frombuffer(bytearray(json.dumps(self._facts, sort_keys=True).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Read with the arrays, in ``_load_from_state_dict``."""

    def _take(self, layout: Layout) -> None:
        """Another layout in the same parameter where that fits, so that an optimiser made before goes on holding it."""
        same = self._train_values and _trains(layout) and layout.name == self._facts["layout"]
        if same and layout.value.shape == tuple(self.value.shape) and self.value.dtype == _dtype_of(layout):
            self.rewire(layout)
        else:
            self._hold(layout)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Another pattern, and even another layout, of the same shape may be loaded: it is checked and taken whole."""
        extra = state_dict.get(prefix + "_extra_state")
        if extra is not None:
            facts = json.loads(bytes(extra.numpy()).decode())
            if facts.get("shape") != self._facts["shape"]:
                raise InputError(
                    f"{prefix or 'state_dict'}: has shape {facts.get('shape')}, want {self._facts['shape']}"
                )
            kind = base.layouts()[check_choice(f"{prefix}layout", facts.get("layout"), base.layouts())]
            own = {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
            arrays = {name: own[name].detach().numpy() for name in own if name not in ("bias", "_extra_state")}
            self._take(kind.from_parts(arrays, facts))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SparseLinear(_Sparse):
    """``y = x W' + b`` with W in a layout: a drop-in for ``torch.nn.Linear`` on the CPU.

    Parameters
    ----------
    layout : W, ``[out_features, in_features]``.
    bias : ``[out_features]`` or None.

    Inputs are ``[..., in_features]``. Gradients flow to the input, the bias and the stored values; no dense gradient of
    W exists at any time.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear, layout: str | Layout = "csr", **settings: Any) -> SparseLinear:
        """The same function as ``linear``, whose zeros are dropped."""
        return cls(as_layout(linear.weight, layout, **settings), linear.bias)

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self._facts["shape"][0]

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self._facts["shape"][1]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise InputError(f"x: got shape {tuple(x.shape)}, want {self.in_features} along the last axis")
        rows = x if x.ndim == 2 else x.reshape(-1, self.in_features)
        out = self._rows(rows) if x.is_cpu else self._apply_weight(rows.t().contiguous()).t()
        return out if x.ndim == 2 else out.reshape(*x.shape[:-1], self.out_features)

    def _rows(self, x: Tensor) -> Tensor:
        """The layer for ``[batch, in_features]``, on the CPU."""
        if self._whole():
            return layer(self._stored, self._stored_values(), x, self.bias)
        out = x.new_zeros(len(x), self.out_features) if self.bias is None else self.bias.repeat(len(x), 1)
        some = None if self.bias is None else self.bias[self.kept]
        return out.index_copy(1, self.kept, layer(self._stored, self._stored_values(), x, some))

    def extra_repr(self) -> str:
        stored = self._stored.of
        density = stored.nnz / max(self.in_features * self.out_features, 1)
        return f"{self.in_features}, {self.out_features}, layout={self._facts['layout']}, density={density:.3f}"


@register(
    kind="model", wing="network", id="S090", source="arXiv:1911.09723", extra="torch",
    claim="a sparse 1 x 1 convolution reads the image as it lies and does the stored share of the work",
    example=lambda: SparseConv2d.from_conv(nn.Conv2d(4, 4, 1), "row-group"),
)  # fmt: skip
class SparseConv2d(_Sparse):
    """A convolution whose kernel ``[out, in * height * width]`` is in a layout: a drop-in for ``torch.nn.Conv2d``.

    After Elsen et al. (2020): channels are the features, so that space lies along the registers.

    Parameters
    ----------
    layout : the kernel, its columns ordered as ``in``, ``height``, ``width``.
    kernel_size, stride, padding, dilation : as in torch, numbers or pairs; zeros are padded. Without groups.

    A 1 x 1 kernel with stride 1 reads the image as it lies (channels are the features). Other kernels with stride 1
    slide over the flat padded image without unfolding it, when no gradient is asked for and the layout is CSR or row
    groups; otherwise the image is unfolded. Without gradients small images (under 128 places) are laid side by side and
    multiplied together.
    """

    def __init__(
        self, layout: Layout, bias: Tensor | None, *, kernel_size: Any = 1, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1,
    ):  # fmt: skip
        super().__init__(layout, bias)
        self.kernel_size, self.stride, self.padding, self.dilation = map(
            _pair, (kernel_size, stride, padding, dilation)
        )
        area = self.kernel_size[0] * self.kernel_size[1]
        if layout.shape[1] % area:
            raise InputError(f"layout: got {layout.shape[1]} columns, want a multiple of the kernel's {area} places")
        self.in_channels, self.out_channels = layout.shape[1] // area, layout.shape[0]

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, layout: str | Layout = "csr", **settings: Any) -> SparseConv2d:
        """The same function as ``conv``, whose zeros are dropped."""
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise InputError("conv: got groups, a padding mode or a padding by name, want groups=1 and zeros by number")
        return cls(
            as_layout(conv.weight.detach().flatten(1), layout, **settings), conv.bias, kernel_size=conv.kernel_size,
            stride=conv.stride, padding=conv.padding, dilation=conv.dilation,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise InputError(f"x: got shape {tuple(x.shape)}, want [..., {self.in_channels}, height, width]")
        if x.ndim == 3:
            return self.forward(x[None])[0]
        size = [
            (x.shape[2 + i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel_size[i] - 1) - 1) // self.stride[i]
            + 1
            for i in (0, 1)
        ]
        if min(size) < 1:
            raise InputError(f"x: got an image of {tuple(x.shape[2:])}, which is smaller than the kernel")
        plain = self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)
        if not plain and self._can_slide(x):
            sizes = self.kernel_size, self.dilation, self.padding
            return slide(self._stored, self._stored_values(), x, self.bias, *sizes)
        if len(x) > 1 and size[0] * size[1] < SMALL and self._infers(x):
            return self._together(x, plain, size)
        if plain:
            rows = [self._apply_weight(image.reshape(self.in_channels, -1)) for image in x]
        else:
            columns = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
            rows = [self._apply_weight(image) for image in columns]
        whole = rows[0] if len(rows) == 1 else x.new_empty(0) if not rows else torch.stack(rows)
        return whole.reshape(len(x), self.out_channels, *size)

    def _together(self, x: Tensor, plain: bool, size: list[int]) -> Tensor:
        """Small images in one product, their places side by side."""
        out = x.new_empty(len(x), self.out_channels, *size)
        each = together(self._facts["shape"][1] * size[0] * size[1])
        for at in range(0, len(x), each):
            images = x[at : at + each]
            if not plain:
                images = self._windows(images, size)
            columns = images.transpose(0, 1) if plain else images.permute(1, 4, 5, 0, 2, 3)
            made = self._apply_weight(columns.reshape(self._facts["shape"][1], -1))
            out[at : at + each] = made.view(self.out_channels, -1, *size).transpose(0, 1)
        return out

    def _windows(self, x: Tensor, size: list[int]) -> Tensor:
        """What the kernel sees from every place, ``[n, channels, high, wide, height, width]``: a view of the padded."""
        x = F.pad(x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0])).contiguous()
        n, channel, high, wide = x.stride()
        steps = high * self.stride[0], wide * self.stride[1], high * self.dilation[0], wide * self.dilation[1]
        return x.as_strided((len(x), self.in_channels, *size, *self.kernel_size), (n, channel, *steps))

    def _can_slide(self, x: Tensor) -> bool:
        known = self._train_values and self._facts["layout"] != Condensed.name
        return known and self.stride == (1, 1) and self._infers(x)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, layout={self._facts['layout']}"
        )


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= 0 for v in pair):
        raise InputError(f"kernel_size, stride, padding, dilation: got {value!r}, want a number or a pair")
    return pair
