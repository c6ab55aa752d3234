"""Sparse codes on a GPU: Triton's kernels and plain torch against the CPU's, their derivatives, and a whole training.

Without a GPU the kernels run on the CPU under Triton's interpreter, where Triton is installed.
"""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ellzero.autoencoder import SAETrainer, SparseAutoencoder  # noqa: E402
from ellzero.errors import InputError  # noqa: E402
from ellzero.kernels import latents, plain_latents, torch_latents, triton_latents  # noqa: E402
from ellzero.kernels.torch_latents import (  # noqa: E402
    decode_rows,
    encode_batch_top_k,
    encode_top_k,
    nested_rows,
)
from ellzero.rng import rng  # noqa: E402

WHERE = "cuda" if torch.cuda.is_available() else "cpu"
WHY = triton_latents.missing()
with_triton = pytest.param(triton_latents, marks=pytest.mark.skipif(bool(WHY), reason=f"Triton: {WHY}"), id="triton")
LOOPS = [with_triton, pytest.param(plain_latents, id="plain torch")]
DTYPES = [torch.float32, torch.bfloat16]
RULES = latents.RULES


@pytest.fixture(params=LOOPS)
def loops(request, monkeypatch):
    """The public names on tensors go to these loops, whatever the device."""
    monkeypatch.setattr(torch_latents, "_native", lambda x: False)
    monkeypatch.setattr(torch_latents, "_on_gpu", lambda x: request.param is triton_latents)
    return request.param


def draw(seed, *shape, levels=None, dtype=torch.float32):
    """Normal numbers; with ``levels`` small multiples of a power of two, so that sums are exact and ties common."""
    g = rng(seed, "device latents")
    x = g.standard_normal(shape) if levels is None else g.integers(-levels, levels + 1, shape) / 4
    return torch.from_numpy(x).to(WHERE, dtype)


def arrays(*tensors):
    """On the CPU, float32 and up."""
    return [t.cpu().float().numpy() if t.is_floating_point() else t.cpu().numpy() for t in tensors]


def drawn_code(seed, rows, k, m, dtype=torch.float32):
    """Latent 0 is used by every row, the last by none; one entry in three is absent and one latent may come twice."""
    g = rng(seed, "code")
    indices = g.integers(0, max(m - 1, 1), (rows, k))
    values = g.integers(-3, 4, (rows, k)) / 4 * (g.random((rows, k)) < 0.7)
    if k:
        indices[:, 0], values[:, 0] = 0, 1.5
    return torch.from_numpy(values).to(WHERE, dtype), torch.from_numpy(indices).to(WHERE)


# -- encoding


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "d", "m", "k"), [(1, 1, 1, 1), (7, 5, 13, 3), (19, 37, 131, 2), (3, 2, 67, 67)])
def test_encoding_keeps_what_the_cpu_keeps(loops, rows, d, m, k, rule, dtype):
    x, W, bias = (draw(i, *shape, levels=2, dtype=dtype) for i, shape in enumerate([(rows, d), (m, d), (m,)]))
    found = encode_top_k(x, W, bias, k, rule)
    wide = [t.cpu().float() for t in (x, W, bias)]
    wanted = latents.select_rows((wide[0] @ wide[1].T + wide[2]).numpy(), k, rule)
    assert found.values.dtype == dtype
    assert torch.equal(found.values.cpu(), torch.from_numpy(wanted.values).to(dtype))
    np.testing.assert_array_equal(found.indices.cpu().numpy(), wanted.indices)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_no_number_comes_last_and_ties_keep_the_lowest(loops, rule):
    """Every pre-activation is the latent's bias, for three rows: NaN, infinities and zeros of both signs among them."""
    nan, inf = math.nan, math.inf
    bias = torch.tensor([nan, -inf, 1.0, -0.0, 0.0, inf, nan, 1.0, -1.0, -2.0] + [nan] * 64 + [-inf, 2.0, 1.0, inf])
    x, W = torch.ones(3, 2, device=WHERE), torch.zeros(len(bias), 2, device=WHERE)
    for k in (1, 5, 12, len(bias)):
        found = encode_top_k(x, W, bias.to(WHERE), k, rule)
        wanted = latents.select_rows(np.tile(bias.numpy(), (3, 1)), k, rule)
        np.testing.assert_array_equal(*arrays(found.values), wanted.values)
        np.testing.assert_array_equal(*arrays(found.indices), wanted.indices)


def test_negative_rows_counts_and_centres(loops):
    x, W, bias = draw(0, 5, 4, levels=3), draw(1, 30, 4, levels=3), draw(2, 30, levels=3)
    none = encode_top_k(x, W, bias - 1000, 6)
    assert not bool(none.values.any() or none.indices.any())
    counts, center = torch.tensor([0, 3, 1, 2, 3], device=WHERE), draw(3, 4, levels=3)
    found = encode_top_k(x, W, bias, counts, "signed", center=center)
    pre = ((x - center) @ W.T + bias).cpu().numpy()
    wanted = latents.select_rows(pre, 3, "signed", counts=counts.cpu().numpy())
    np.testing.assert_array_equal(*arrays(found.values), wanted.values)
    np.testing.assert_array_equal(*arrays(found.indices), wanted.indices)
    assert encode_top_k(x[:0], W, bias, 2).values.shape == (0, 2)
    assert encode_top_k(x, W, bias, 0).values.shape == (5, 0)


def test_blocks_of_rows_change_nothing(loops, monkeypatch):
    x, W, bias = draw(0, 21, 6, levels=2), draw(1, 150, 6, levels=2), draw(2, 150, levels=2)
    whole = encode_top_k(x, W, bias, 4)
    monkeypatch.setattr(plain_latents, "_BLOCK_BYTES", 8 * 1024 * 11)
    assert all(torch.equal(a, b) for a, b in zip(whole, encode_top_k(x, W, bias, 4)))


def test_an_encoder_kept_by_columns(loops):
    x, W, bias = draw(0, 4, 6, levels=2), draw(1, 6, 20, levels=2), draw(2, 20, levels=2)
    assert all(torch.equal(a, b) for a, b in zip(encode_top_k(x, W.T, bias, 3), encode_top_k(x, W.T.clone(), bias, 3)))


def test_the_batch_keeps_what_the_cpu_keeps(loops, monkeypatch):
    x, W, bias = draw(0, 9, 5, levels=2), draw(1, 70, 5, levels=2), draw(2, 70, levels=2)
    x[0] *= 64  # has nearly all of the largest, so its first candidates do not suffice
    found = encode_batch_top_k(x, W, bias, 3)
    monkeypatch.undo()
    for a, b in zip(found, encode_batch_top_k(x.cpu(), W.cpu(), bias.cpu(), 3)):
        assert torch.equal(a.cpu(), b)


# -- rows in use


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "k", "d", "m"), [(1, 1, 1, 1), (7, 3, 5, 13), (13, 6, 131, 31), (5, 0, 7, 3)])
def test_rows_in_use(loops, rows, k, d, m, dtype):
    """Small multiples of a power of two: every order of sums gives the same bits, in bfloat16 after one rounding."""
    values, indices = drawn_code(0, rows, k, m, dtype)
    W, x = draw(1, m, d, levels=3, dtype=dtype), draw(2, rows, d, levels=3, dtype=dtype)
    found = (
        loops.decode(values, indices, W), loops.rows_dot(indices, W, x), *loops.accumulate(values, indices, x, m),
    )  # fmt: skip
    v, i, w, y = arrays(values, indices, W, x)
    wanted = latents.decode_rows(v, i, w), latents.rows_dot(i, w, y), *latents.accumulate_rows(v, i, y, m)
    for a, b in zip(found, wanted):
        assert a.dtype == dtype
        assert torch.equal(a.cpu(), torch.from_numpy(b).to(dtype))


def test_strided_tensors_and_repeats(loops):
    values, indices = drawn_code(0, 11, 6, 17)
    W, x = draw(1, 9, 17).T, draw(2, 9, 11).T
    values, indices = values.T.contiguous().T, indices[:, ::1].T.contiguous().T
    once = loops.decode(values, indices, W), *loops.accumulate(values, indices, x, 17), loops.rows_dot(indices, W, x)
    v, i, w, y = arrays(values, indices, W, x)
    wanted = latents.decode_rows(v, i, w), *latents.accumulate_rows(v, i, y, 17), latents.rows_dot(i, w, y)
    again = loops.decode(values, indices, W), *loops.accumulate(values, indices, x, 17), loops.rows_dot(indices, W, x)
    for a, b, c in zip(once, wanted, again):
        torch.testing.assert_close(a.cpu(), torch.from_numpy(b), rtol=1e-5, atol=1e-5)
        assert torch.equal(a, c)


def test_absent_entries_are_not_read(loops):
    W = torch.ones(3, 4, device=WHERE)
    W[0] = torch.inf
    values, indices = torch.tensor([[2.0, 0.0]], device=WHERE), torch.tensor([[1, 0]], device=WHERE)
    assert decode_rows(values, indices, W).tolist() == [[2.0] * 4]
    out, sums = loops.accumulate(values, indices, torch.full((1, 4), torch.inf, device=WHERE), 3)
    assert out[0].tolist() == [0.0] * 4
    assert sums.tolist() == [0.0, 2.0, 0.0]


# -- derivatives


@pytest.mark.parametrize("rule", RULES)
def test_derivatives_equal_those_of_the_plain_formula(loops, rule):
    x, W, bias, center, W_dec = draw(0, 9, 7), draw(1, 40, 7), draw(2, 40), draw(3, 7), draw(4, 40, 7)
    inputs = [t.requires_grad_() for t in (x, W, bias, center, W_dec)]
    values, indices = encode_top_k(x, W, bias, 4, rule, center=center)
    loss = (decode_rows(values, indices, W_dec) - x).square().sum()
    found = torch.autograd.grad(loss, inputs)
    pre = (x - center) @ W.T + bias
    order = (pre.abs() if rule == "absolute" else pre).detach().sort(dim=1, descending=True, stable=True).indices
    on = torch.zeros_like(pre).scatter(1, order[:, :4], 1.0)
    plain = ((pre.relu() if rule == "relu" else pre) * on @ W_dec - x).square().sum()
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    for a, b in zip(found, torch.autograd.grad(plain, inputs)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_derivatives_of_nested_errors(loops, monkeypatch):
    monkeypatch.setattr(plain_latents, "_BLOCK_BYTES", 4 * 5 * 9 * 4)  # four rows at a time
    values, indices = drawn_code(0, 10, 5, 12)
    inputs = [t.requires_grad_() for t in (values, draw(1, 12, 9), draw(2, 10, 9))]
    ends = torch.tensor([0, 1, 1, 3, 5], device=WHERE)
    weights = draw(3, 10, 5)
    errors = nested_rows(values, indices, *inputs[1:], ends).errors
    held = torch.arange(5, device=WHERE) < ends[:, None]
    hat = (values[:, None, :, None] * inputs[1][indices][:, None] * held[None, :, :, None]).sum(2)
    plain = (inputs[2][:, None] - hat).square().sum(2)
    torch.testing.assert_close(errors, plain, rtol=1e-4, atol=1e-4)
    for a, b in zip(*(torch.autograd.grad((e * weights).sum(), inputs) for e in (errors, plain))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# -- the engine


@pytest.mark.parametrize("preset", ["topk", "batchtopk", "hierarchical_topk"])
def test_a_training_has_the_cpus_course_of_loss(loops, preset, monkeypatch):
    acts = torch.from_numpy(rng(0, "acts").standard_normal((64, 8)).astype(np.float32))
    steps = 30 if preset == "topk" else 5

    def losses(where):
        sae = SparseAutoencoder.from_preset(preset, d_in=8, d_sae=16, k=2).to(where)
        trainer = SAETrainer(sae, lr=3e-3, batch_size=8, steps=steps, engine="sparse")
        return np.array(list(trainer.fit(acts.to(where)).losses.values()))

    found = losses(WHERE)
    monkeypatch.undo()
    wanted = losses("cpu")
    assert len(found) == steps
    # Adam makes a whole step of a gradient that is rounding alone, which those two have now and then.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 if preset == "topk" else 1e-3)
    if preset == "topk":
        assert wanted[-8:].mean() < 0.9 * wanted[:8].mean()


def test_an_index_beside_the_dictionary_is_refused(loops):
    W = torch.ones(3, 4, device=WHERE)
    for index in (-1, 3):
        with pytest.raises(InputError, match=f"indices: got {index} to {index}, want latents from 0 to 2"):
            decode_rows(torch.ones(1, 1, device=WHERE), torch.full((1, 1), index, device=WHERE), W)


@pytest.mark.parametrize("ends", [[2, 1], [5], [-1]])
def test_levels_beside_the_code_are_refused(loops, ends):
    values, indices = torch.ones(2, 4, device=WHERE), torch.zeros(2, 4, dtype=torch.int64, device=WHERE)
    with pytest.raises(InputError, match=r"ends: got .*, want numbers that rise within 0 to 4"):
        nested_rows(
            values, indices, torch.ones(3, 5).to(WHERE), torch.ones(2, 5).to(WHERE), torch.tensor(ends).to(WHERE)
        )


def test_who_serves_which_tensor(monkeypatch):
    single, double = torch.ones(1), torch.ones(1, dtype=torch.float64)
    assert torch_latents._loops(single) is plain_latents
    monkeypatch.setattr(torch_latents, "_on_gpu", lambda x: True)
    assert torch_latents._loops(single) is triton_latents
    assert torch_latents._loops(single.bfloat16()) is triton_latents
    assert torch_latents._loops(double) is plain_latents


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ellzero.kernels import triton_loops as loops

KINDS = {"order": "*i64", "starts": "*i64", "tiles": "*i64", "group_of": "*i64", "indices": "*i64"}
SIZES = ("rows", "m", "d", "k", "groups", "kept")
GATHER = {"ROWS": 4, "ENTRIES": 4, "COLUMNS": 128}
PRODUCT = {"ABSOLUTE": True, "PRECISION": "tf32", "GROUP": 64, "WIDEN": False, "INPUTS": 32}
for name, constants in {
    "maxima": PRODUCT | {"ROWS": 128, "LATENTS": 128}, "candidates": PRODUCT | {"ROWS": 64}, "decoded": GATHER,
    "dotted": GATHER, "accumulated": GATHER,
}.items():
    loop = getattr(loops, name)
    keys = {"out": "*i64"} if name in ("maxima", "candidates") else {}
    kinds = {
        each: "constexpr" if each in constants else "i32" if each in SIZES else (KINDS | keys).get(each, "*bf16")
        for each in loop.arg_names
    }
    given = {(loop.arg_names.index(each),): value for each, value in constants.items()}
    for capability in (80, 90):
        source = ASTSource(loop, kinds, given)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.skipif("not installed" in WHY, reason=f"Triton: {WHY}")
def test_the_loops_compile_for_a_gpu(run_python):
    """Whether or not one is present: the interpreter takes more than the compiler does."""
    done = run_python(COMPILE, TRITON_INTERPRET="0")
    assert "compiled" in done.stdout, done.stderr
