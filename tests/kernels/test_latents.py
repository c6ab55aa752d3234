"""Sparse codes against dense torch on the plain formula: values, derivatives, ties, threads, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.kernels import latents, live, native
from ellzero.parts.constraints import BatchTopK
from ellzero.rng import rng

torch = pytest.importorskip("torch")

from ellzero.kernels import torch_latents  # noqa: E402
from ellzero.kernels.torch_latents import (  # noqa: E402
    by_latent,
    decode_rows,
    encode_batch_top_k,
    encode_top_k,
    nested_rows,
)

needs_native = pytest.mark.skipif(not live, reason="no compiled module is live")
RULES = latents.RULES


@pytest.fixture(params=["kernels", "references", "plain torch"])
def path(request, monkeypatch):
    """The compiled loops, the NumPy references, and what other devices and dtypes take."""
    if request.param == "references":
        monkeypatch.setattr(latents, "CHOICE", latents.CHOICE._replace(module=None))
    if request.param == "plain torch":
        monkeypatch.setattr(torch_latents, "_native", lambda x: False)
    return request.param


def draw(seed, *shape, levels=None):
    """Normal numbers; with ``levels`` small multiples of a power of two, so that sums are exact and ties common."""
    g = rng(seed, "latents")
    x = g.standard_normal(shape) if levels is None else g.integers(-levels, levels + 1, shape) / 4
    return torch.from_numpy(x)


def problem(seed, rows, d, m, levels=None):
    parts = draw(seed, rows, d, levels=levels), draw(seed + 1, m, d, levels=levels), draw(seed + 2, m, levels=levels)
    return [part.requires_grad_() for part in parts]


def dense_code(pre, k, rule, counts=None):
    """The dense code of the plain formula, differentiable, by a stable sort."""
    score = pre.abs() if rule == "absolute" else pre
    order = score.detach().sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter(1, order, torch.arange(pre.shape[1]).expand_as(order))
    on = rank < (k if counts is None else counts[:, None])
    return (pre.relu() if rule == "relu" else pre) * on


def spread(values, indices, m):
    return values.new_zeros(len(values), m).scatter_add(1, indices, values)


def assert_same_gradients(one, other, inputs, seed=7):
    """Of a random weighting of two outputs that should be one function of the inputs."""
    weights = draw(seed, *one.shape)
    for a, b in zip(
        torch.autograd.grad((one * weights).sum(), inputs, retain_graph=True, allow_unused=True),
        torch.autograd.grad((other * weights).sum(), inputs, retain_graph=True, allow_unused=True),
    ):
        torch.testing.assert_close(a if a is not None else b * 0, b, rtol=1e-10, atol=1e-10)


# -- encoding


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(0, 9), d=st.integers(1, 9), m=st.integers(1, 70),
    share=st.floats(0, 1), rule=st.sampled_from(RULES), levels=st.sampled_from([None, 1, 3]), centred=st.booleans(),
    per_row=st.booleans(),
)  # fmt: skip
def test_encoding_equals_dense_torch(seed, rows, d, m, share, rule, levels, centred, per_row):
    x, W, bias = problem(seed, rows, d, m, levels)
    k = round(share * m)
    center = draw(seed + 3, d, levels=levels).requires_grad_() if centred else None
    counts = torch.from_numpy(rng(seed, "counts").integers(0, k + 1, rows)) if per_row else None
    found = encode_top_k(x, W, bias, k if counts is None else counts, rule, center=center)
    pre = (x if center is None else x - center) @ W.T + bias
    wanted = dense_code(pre, k, rule, counts)
    code = spread(*found, m)
    torch.testing.assert_close(code, wanted, rtol=1e-10, atol=1e-10)
    if levels is not None:
        assert torch.equal(code, wanted)
    if rule == "relu":
        assert not bool(found.indices[found.values <= 0].any())
    ranked = found.values.abs() if rule == "absolute" else found.values
    if counts is None:
        assert found.values.shape == (rows, k)
        assert bool((ranked[:, 1:] <= ranked[:, :-1]).all())
    assert_same_gradients(code, wanted, [x, W, bias] + ([center] if centred else []))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_path_keeps_the_same_entries(path, rule, dtype):
    x, W, bias = (part.detach().to(dtype) for part in problem(0, 37, 6, 300, levels=2))
    counts = torch.from_numpy(rng(0, "counts").integers(0, 41, 37))
    for k in (0, 1, 40, 300, counts):
        found = encode_top_k(x, W, bias, k, rule)
        assert found.values.dtype == dtype
        pre = x @ W.T + bias
        assert torch.equal(spread(*found, 300), dense_code(pre, k, rule, k[:] if k is counts else None))


@pytest.mark.parametrize("rule", RULES)
def test_gradcheck_of_the_encoder(path, rule):
    x, W, bias = problem(1, 4, 3, 20)
    center = draw(9, 3).requires_grad_()
    code = lambda *parts: encode_top_k(*parts[:3], 5, rule, center=parts[3]).values  # noqa: E731
    assert torch.autograd.gradcheck(code, (x, W, bias, center))


def test_blocks_of_rows_change_nothing(monkeypatch):
    x, W, bias = (part.detach() for part in problem(2, 70, 5, 90, levels=2))
    whole = encode_top_k(x, W, bias, 7)
    monkeypatch.setattr(torch_latents, "_BLOCK_ROWS", (16, 16))
    assert all(torch.equal(a, b) for a, b in zip(whole, encode_top_k(x, W, bias, 7)))
    counts = torch.arange(70) % 8
    parts = encode_top_k(x, W, bias, counts)
    assert torch.equal(parts.values, whole.values.masked_fill(torch.arange(7) >= counts[:, None], 0))


def test_nothing_positive_is_an_empty_code(path):
    x, W, bias = (part.detach() for part in problem(3, 5, 4, 30))
    found = encode_top_k(x, W, bias - 1000, 6)
    assert not bool(found.values.any() or found.indices.any())
    batch = encode_batch_top_k(x, W, bias - 1000, 6)
    assert batch.values.shape == (5, 0)
    assert batch.counts.tolist() == [0] * 5


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(0, 12), d=st.integers(1, 5), m=st.integers(1, 60),
    share=st.floats(0, 1), levels=st.sampled_from([None, 1, 3]), uneven=st.booleans(),
)  # fmt: skip
def test_the_batch_keeps_what_batch_top_k_keeps(seed, rows, d, m, share, levels, uneven):
    x, W, bias = problem(seed, rows, d, m, levels)
    k = round(share * m)
    if uneven and rows:  # one row has nearly all of the largest, so its candidates do not suffice
        with torch.no_grad():
            x[0] *= 64
    center = draw(seed + 3, d, levels=levels).requires_grad_()
    found = encode_batch_top_k(x, W, bias, k, center=center)
    activations = ((x - center) @ W.T + bias).relu()
    wanted = activations * BatchTopK(k).support(activations.detach())
    code = spread(found.values, found.indices, m)
    torch.testing.assert_close(code, wanted, rtol=1e-10, atol=1e-10)
    assert torch.equal(found.counts, (wanted > 0).sum(1))
    assert found.values.shape[1] == (int(found.counts.max()) if rows else 0)
    assert torch.equal(found.values > 0, torch.arange(found.values.shape[1]) < found.counts[:, None])
    assert_same_gradients(code, wanted, [x, W, bias, center])


# -- decoding


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(0, 9), k=st.integers(0, 11), d=st.integers(0, 70),
    m=st.integers(1, 30), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_decoding_equals_dense_torch(seed, rows, k, d, m, dtype):
    values, W = draw(seed, rows, k, levels=3), draw(seed + 1, m, d, levels=3)
    values, W = values.to(dtype).requires_grad_(), W.to(dtype).requires_grad_()
    indices = torch.from_numpy(rng(seed, "indices").integers(0, m, (rows, k)))  # a latent may come twice
    found, wanted = decode_rows(values, indices, W), spread(values, indices, m) @ W
    assert torch.equal(found, wanted)
    weights = draw(seed + 2, rows, d, levels=3).to(dtype)
    for a, b in zip(*(torch.autograd.grad((out * weights).sum(), (values, W)) for out in (found, wanted))):
        assert torch.equal(a, b)


def test_gradcheck_of_the_decoder(path):
    values, W = draw(0, 5, 4).requires_grad_(), draw(1, 9, 7).requires_grad_()
    indices = torch.from_numpy(rng(0, "indices").integers(0, 9, (5, 4)))
    assert torch.autograd.gradcheck(lambda v, w: decode_rows(v, indices, w), (values, W))


def test_absent_entries_are_not_read(path):
    W = torch.ones(3, 4, dtype=torch.float64)
    W[0] = torch.inf
    values, indices = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.tensor([[1, 0]])
    assert decode_rows(values, indices, W).tolist() == [[2.0] * 4]


# -- nested reconstructions


def plain_nested(values, indices, W, target, ends):
    """Every level decoded by itself."""
    held = torch.arange(values.shape[1]) < ends[..., None]  # [rows, levels, k]
    hat = (values[:, None, :, None] * W[indices][:, None] * held[..., None]).sum(2)
    return (target[:, None] - hat).square().sum(2)


def nested_problem(seed, rows, k, d, m, levels, per_row):
    g = rng(seed, "nested")
    values, W, target = draw(seed, rows, k), draw(seed + 1, m, d), draw(seed + 2, rows, d)
    with torch.no_grad():
        values[torch.from_numpy(g.random((rows, k)) < 0.2)] = 0
    indices = torch.from_numpy(g.integers(0, m, (rows, k)))
    ends = torch.from_numpy(np.sort(g.integers(0, k + 1, (rows, levels) if per_row else levels), axis=-1))
    return [t.requires_grad_() for t in (values, W, target)], indices, ends


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(0, 6), k=st.integers(0, 9), d=st.sampled_from([0, 1, 5, 63, 64, 150]),
    m=st.integers(1, 12), levels=st.integers(0, 12), per_row=st.booleans(),
)  # fmt: skip
def test_nested_errors_equal_levels_decoded_one_by_one(seed, rows, k, d, m, levels, per_row):
    (values, W, target), indices, ends = nested_problem(seed, rows, k, d, m, levels, per_row)
    found = nested_rows(values, indices, W, target, ends)
    wanted = plain_nested(values, indices, W, target, ends.expand(rows, -1))
    torch.testing.assert_close(found.errors, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.residual, target - spread(values, indices, m) @ W, rtol=1e-10, atol=1e-10)
    assert not found.residual.requires_grad
    assert_same_gradients(found.errors, wanted, [values, W, target])


def test_gradcheck_of_nested_errors(path):
    (values, W, target), indices, ends = nested_problem(0, 3, 5, 4, 6, 4, True)
    code = lambda *parts: nested_rows(parts[0], indices, *parts[1:], ends).errors  # noqa: E731
    assert torch.autograd.gradcheck(code, (values, W, target))


def test_every_rank_of_float32_codes_is_near_float64():
    x, W, bias = (t.detach() for t in problem(0, 64, 200, 500))
    W = torch.nn.functional.normalize(W, dim=1)
    ends = torch.arange(1, 33)
    results = []
    for dtype in (torch.float32, torch.float64):
        values, indices = encode_top_k(x, W, bias, 32)
        parts = [t.to(dtype).requires_grad_() for t in (values, W, x)]
        errors = nested_rows(parts[0], indices, *parts[1:], ends).errors
        results.append([errors, *torch.autograd.grad(errors.mean(), parts)])
    for single, double in zip(*results):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-6)


def test_prefixes_of_latents_are_levels():
    x, W, bias = problem(6, 9, 5, 40)
    values, indices = encode_top_k(x, W, bias, 6)
    prefixes = torch.tensor([4, 13, 40])
    ordered = by_latent(values, indices, prefixes)
    errors = nested_rows(*ordered[:2], W, x, ordered[2]).errors
    code = spread(values, indices, 40)
    wanted = torch.stack([(x - code[:, :p] @ W[:p]).square().sum(1) for p in prefixes.tolist()], 1)
    torch.testing.assert_close(errors, wanted, rtol=1e-10, atol=1e-10)
    assert_same_gradients(errors, wanted, [x, W, bias])


# -- threads, layouts, bad input


@needs_native
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_change_nothing(dtype):
    g = rng(0, "threads")
    pre, bias, W = (g.standard_normal(s).astype(dtype) for s in ((300, 4000), 4000, (4000, 300)))
    x = g.standard_normal((300, 300)).astype(dtype)

    def everything(n_threads):
        code = latents.select_rows(pre, 33, "absolute", bias=bias, n_threads=n_threads)
        return (
            *code, latents.decode_rows(*code, W, n_threads=n_threads),
            latents.rows_dot(code.indices, W, x, n_threads=n_threads),
            *latents.accumulate_rows(*code, x, 4000, n_threads=n_threads),
            *nested(code, n_threads),
        )  # fmt: skip

    def nested(code, n_threads):
        ends = np.tile(np.arange(0, 34, 3), (300, 1))
        errors, residual = latents.nested_errors(*code, W, x, ends, n_threads=n_threads)
        return errors, *latents.nested_gradient(*code, W, residual, ends, errors, n_threads=n_threads)

    one = everything(1)
    for n_threads in (2, 3, 8):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one, everything(n_threads)))


def test_read_only_and_strided_arrays_are_taken():
    g = rng(0, "layouts")
    W, x = g.standard_normal((12, 10)), g.standard_normal((5, 10))
    values, indices = g.standard_normal((5, 3)), g.integers(0, 12, (5, 3))
    wanted = latents.decode_rows(values, indices, W), latents.accumulate_rows(values, indices, x, 12)[0]
    for array in (W, x, values, indices):
        array.flags.writeable = False
    wide = np.repeat(values, 2, axis=1)[:, ::2]
    found = latents.decode_rows(wide, np.asfortranarray(indices), np.asfortranarray(W))
    np.testing.assert_array_equal(found, wanted[0])
    np.testing.assert_array_equal(latents.accumulate_rows(wide, indices, x, 12)[0], wanted[1])


def test_opcheck():
    x, W, bias = problem(4, 6, 5, 24)
    center, counts = draw(9, 5).requires_grad_(), torch.arange(6)
    ops = torch.ops.ellzero
    for kept in (None, counts):
        torch.library.opcheck(ops.encode_top_k.default, (x, W, bias, center, kept, 5, "relu"))
    torch.library.opcheck(
        ops.encode_batch_top_k.default,
        (x, W, bias, center, 5),
        test_utils=("test_schema", "test_autograd_registration"),
    )
    values, indices = draw(5, 6, 3).requires_grad_(), torch.from_numpy(rng(0, "i").integers(0, 24, (6, 3)))
    torch.library.opcheck(ops.decode_rows.default, (values, indices, W))
    torch.library.opcheck(ops.nested_rows.default, (values, indices, W, x, torch.tensor([[1, 3]] * 6)))


def nested(x, W, b, ends):
    return nested_rows(torch.ones(5, 4, dtype=W.dtype), torch.zeros(5, 4, dtype=torch.int64), W, x, ends)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, W, b: encode_top_k(x, W, b, 31), "k: got 31, want a number at most 30"),
        (lambda x, W, b: encode_top_k(x, W, b, torch.tensor([1, 2])), "k: got torch.int64 (2,)"),
        (lambda x, W, b: encode_top_k(x, W, b, -torch.ones(5, dtype=torch.int64)), "k: got -1"),
        (lambda x, W, b: encode_top_k(x, W, b, 3, "largest"), "rule: got 'largest'"),
        (lambda x, W, b: encode_top_k(x, W.T, b, 3), "W: got torch.float64 (4, 30)"),
        (lambda x, W, b: encode_top_k(x.float(), W, b, 3), "W: got torch.float64"),
        (lambda x, W, b: encode_top_k(x, W, b[1:], 3), "bias: got torch.float64 (29,)"),
        (lambda x, W, b: encode_batch_top_k(x, W, b, 3, center=b), "center: got torch.float64 (30,)"),
        (lambda x, W, b: decode_rows(x, torch.full((5, 4), 30), W), "indices: got 30 to 30"),
        (lambda x, W, b: decode_rows(x, torch.zeros(5, 4), W), "indices: got torch.float32"),
        (lambda x, W, b: nested(x, W, b, torch.tensor([2, 1])), "ends: got 1 to 2, want numbers that rise"),
        (lambda x, W, b: nested(x, W, b, torch.tensor([5])), "ends: got 5 to 5, want numbers that rise within 0 to 4"),
        (lambda x, W, b: nested(x, W, b, torch.tensor([1.0])), "ends: got torch.float32"),
        (lambda x, W, b: nested(x[:3], W, b, torch.tensor([1])), "target: got torch.float64 (3, 4)"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError) as caught:
        call(*(part.detach() for part in problem(5, 5, 4, 30)))
    assert message in str(caught.value)


@needs_native
@pytest.mark.parametrize(
    ("name", "array", "error"),
    [
        ("W", np.zeros((6, 8))[:, ::2], "strides"),
        ("values", np.zeros((2, 3), np.float32), "float32"),
        ("indices", np.full((2, 3), 6), "latents"),
        ("indices", np.zeros((2, 3), np.int32), "int32"),
        ("out", np.broadcast_to(np.zeros(4), (2, 4)), "read-only"),
        ("out", np.zeros((2, 5)), "want shape"),
    ],
)
def test_the_binding_refuses_by_name(name, array, error):
    arguments = {
        "values": np.zeros((2, 3)), "indices": np.zeros((2, 3), np.int64), "W": np.zeros((6, 4)),
        "out": np.zeros((2, 4)),
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=f"^{name}: ") as caught:
        native.decode_rows(*(arguments | {name: array}).values())
    assert error in str(caught.value)
