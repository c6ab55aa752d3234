"""Gradient rules: exact where they claim to be, and biased in exactly the way they say."""

import math

import numpy as np
import pytest
import torch

from ellzero.errors import InputError
from ellzero.parts.gradients import Annealed, Masked, Rectangle, StraightThrough
from ellzero.parts.schedules import Cosine

RULES = [Masked(), StraightThrough(), Annealed(), Rectangle(0.1)]


def example(seed=0, shape=(4, 5)):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).requires_grad_()
    return x, x.detach() > 0.2


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_forward_is_the_kept_values(rule):
    x, support = example()
    out = rule.apply(x, support, torch.zeros((), dtype=x.dtype))
    np.testing.assert_array_equal(out.detach().numpy(), np.where(support.numpy(), x.detach().numpy(), 0.0))


@pytest.mark.covers("Masked")
def test_masked_is_exact_where_the_support_stands_still():
    x, support = example()
    assert torch.autograd.gradcheck(lambda z: Masked().apply(z, support), x)
    threshold = torch.tensor(0.2, dtype=x.dtype, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: Rectangle(1e-12).apply(z, support, threshold.detach()), x)


@pytest.mark.covers("StraightThrough")
@pytest.mark.covers("Annealed")
@pytest.mark.parametrize(
    ("rule", "share"),
    [
        (StraightThrough(), 1.0), (Masked(), 0.0), (Annealed(), 1.0), (Annealed().at(0.25), 0.75),
        (Annealed().at(1.0), 0.0), (Annealed(Cosine(0.8, 0.2)).at(0.5), 0.5),
    ],
)  # fmt: skip
def test_dropped_entries_see_exactly_their_share(rule, share):
    x, support = example()
    weight = torch.arange(20.0, dtype=x.dtype).reshape(4, 5)
    (grad,) = torch.autograd.grad((rule.apply(x, support) * weight).sum(), x)
    np.testing.assert_allclose(grad.numpy(), np.where(support.numpy(), 1.0, share) * weight.numpy())


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_minus_infinity_is_dropped_with_finite_values_and_gradients(rule):
    x = torch.tensor([-math.inf, 1.0, -math.inf], requires_grad=True)
    threshold = torch.tensor(0.5, requires_grad=True)
    out = rule.apply(x, x.detach() > 0.5, threshold)
    assert out.tolist() == [0.0, 1.0, 0.0]
    out.sum().backward()
    assert x.grad.isfinite().all()
    assert threshold.grad is None or threshold.grad.isfinite()


@pytest.mark.covers("Rectangle")
def test_rectangle_estimates_the_derivatives_of_the_expectations():
    z = torch.from_numpy(np.random.default_rng(0).standard_normal(1_000_000))
    theta = torch.tensor(0.5, dtype=z.dtype, requires_grad=True)
    rule, density = Rectangle(0.05), math.exp(-0.125) / math.sqrt(2 * math.pi)
    (of_step,) = torch.autograd.grad(rule.step(z, theta).mean(), theta)
    assert of_step.item() == pytest.approx(-0.352, abs=0.005)
    assert of_step.item() == pytest.approx(-density, abs=0.005)  # d/dt P(z > t) = -p(t)
    (of_jump,) = torch.autograd.grad(rule.apply(z, z > theta, theta).mean(), theta)
    assert of_jump.item() == pytest.approx(-0.5 * density, abs=0.003)  # d/dt E[z H(z - t)] = -t p(t)


def test_rectangle_by_hand_per_latent():
    x = torch.tensor([[0.52, 2.0], [0.47, 0.9], [0.6, 1.04]], requires_grad=True)
    theta = torch.tensor([0.5, 1.0], requires_grad=True)
    rule, weight = Rectangle(0.1), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    out = (rule.apply(x, x.detach() > theta.detach(), theta) * weight).sum()
    to_x, to_theta = torch.autograd.grad(out, (x, theta))
    assert to_x.tolist() == [[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]]
    assert to_theta.tolist() == pytest.approx([-5 * (1 + 3), -10 * 6])  # -(theta / e) over the near entries
    step = (rule.step(x, theta) * weight).sum()
    to_x, to_theta = torch.autograd.grad(step, (x, theta))
    assert not to_x.any()
    assert to_theta.tolist() == pytest.approx([-40.0, -60.0])


def test_bad_input_is_refused_by_name():
    x, support = example()
    for rule in RULES:
        for arguments, said in (
            ((x.detach().numpy(), support), "x: got ndarray"),
            ((x, support.double()), "support: got torch.float64"),
            ((x, support.numpy()), "support: got bool, want a boolean tensor"),
            ((x, support[:1]), "support: got shape"),
            ((x * math.nan, support), "NaN"),
        ):
            with pytest.raises(InputError, match=said):
                rule.apply(*arguments, torch.zeros((), dtype=x.dtype))
    for threshold, said in (
        (None, "NoneType"),
        (0.5, "float"),
        (torch.zeros(3), "shape"),
        (torch.zeros(2, 4, 5), "shape"),
        (torch.tensor(math.nan), "NaN"),
    ):
        with pytest.raises(InputError, match=f"threshold: .*{said}"):
            Rectangle(0.1).apply(x, support, threshold)
    for make in (
        lambda: Rectangle(0.0),
        lambda: Rectangle(math.inf),
        lambda: Annealed(progress=1.5),
        lambda: Annealed(lambda u: 2.0),
    ):
        with pytest.raises(InputError):
            make()


def test_shapes_are_checked_when_annotations_are():
    from beartype import beartype
    from jaxtyping import TypeCheckError, jaxtyped

    apply = jaxtyped(typechecker=beartype)(Masked.apply)
    with pytest.raises(TypeCheckError):
        apply(Masked(), torch.zeros(3), torch.zeros(3))
