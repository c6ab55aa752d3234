"""Row top-k against a stable sort: ties, infinities, NaN, shapes, dtypes, threads, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ellzero.errors import InputError
from ellzero.kernels import TopK, live, native, reference, top_k
from ellzero.rng import rng

needs_native = pytest.mark.skipif(not live, reason="no compiled module is live")


def oracle(x, k):
    """Python's sort by (is NaN, -value, index): independent of NumPy's sort and of the reference."""
    order = sorted(range(len(x)), key=lambda i: (x[i] != x[i], -x[i] if x[i] == x[i] else 0.0, i))
    return order[:k]


def assert_same(found: TopK, x, k):
    values, indices = reference.top_k(x, k)
    assert found.values.dtype == x.dtype
    assert found.indices.dtype == np.int64
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.values, values)


FEW = [0.0, -0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan]


@settings(deadline=None, max_examples=150)
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]), tied=st.booleans())
def test_equals_pythons_sort(data, dtype, tied):
    width = np.dtype(dtype).itemsize * 8
    elements = st.sampled_from(FEW) if tied else st.floats(width=width)
    x = data.draw(hnp.arrays(dtype, st.integers(0, 70), elements=elements))
    k = data.draw(st.integers(0, len(x)))
    found = top_k(x, k)
    assert found.indices.tolist() == oracle(x.tolist(), k)
    np.testing.assert_array_equal(found.values, x[found.indices])
    assert_same(found, x, k)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    n=st.integers(0, 3000),
    share=st.floats(0, 1),
    levels=st.sampled_from([1, 2, 5, 1000, 10**9]),
    dtype=st.sampled_from([np.float32, np.float64, np.float16]),
    nan=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_equals_the_stable_sort_on_long_rows(seed, shape, n, share, levels, dtype, nan):
    draw = rng(seed, "top_k")
    x = (draw.integers(0, levels, (*shape, n)) / levels - 0.3).astype(dtype)
    x[draw.random(x.shape) < nan] = np.nan
    assert_same(top_k(x, round(share * n)), x, round(share * n))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 7, 32, 500, 4000])
@pytest.mark.parametrize("order", ["ascending", "descending", "within_groups", "one_group", "relu", "constant", "-inf"])
def test_orders_that_hurt_the_short_list(dtype, k, order):
    n = 5000
    ramp = np.arange(n, dtype=dtype)
    x = {
        "ascending": ramp,
        "descending": ramp[::-1].copy(),
        "within_groups": ramp.reshape(-1, 8).T.reshape(-1).copy(),
        "one_group": np.where(ramp < 128, ramp + 10 * n, -ramp),
        "relu": np.maximum(rng(0, "relu").standard_normal(n), 0).astype(dtype),
        "constant": np.full(n, 3, dtype),
        "-inf": np.where(ramp % 1000 == 3, ramp, -np.inf).astype(dtype),
    }[order]
    assert_same(top_k(x, k), x, k)


def test_nan_comes_after_minus_infinity_and_keeps_its_order():
    x = np.array([np.nan, -np.inf, 1.0, np.nan, 2.0])
    assert top_k(x, 5).indices.tolist() == [4, 2, 1, 0, 3]


def test_signed_zeros_are_ties():
    found = top_k(np.array([-0.0, 0.0, -1.0, 0.0]), 3)
    assert found.indices.tolist() == [0, 1, 3]
    assert np.signbit(found.values).tolist() == [True, False, False]


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (2, 0, 4)])
def test_empty(shape):
    x = np.empty(shape)
    found = top_k(x, 0)
    assert found.values.shape == found.indices.shape == (*shape[:-1], 0)
    if shape[-1]:
        assert top_k(x, shape[-1]).values.shape == shape


def test_read_only_strided_and_foreign_byte_order_are_taken():
    x = rng(0, "layouts").standard_normal((6, 400))
    frozen = x.copy()
    frozen.flags.writeable = False
    for view in (frozen, np.asfortranarray(x), x[::2, ::-3], x.astype(">f8"), x[None].transpose(2, 0, 1)):
        found = top_k(view, 3)
        values, indices = reference.top_k(np.ascontiguousarray(view), 3)
        np.testing.assert_array_equal(found.indices, indices)
        np.testing.assert_array_equal(found.values, values)


@needs_native
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_change_nothing(dtype):
    x = rng(0, "threads").standard_normal((37, 20_000)).astype(dtype)
    one = top_k(x, 50, n_threads=1)
    for n_threads in (2, 3, 8):
        many = top_k(x, 50, n_threads=n_threads)
        assert one.values.tobytes() == many.values.tobytes()
        assert one.indices.tobytes() == many.indices.tobytes()


@pytest.mark.parametrize(
    ("x", "k", "options", "message"),
    [
        (np.float64(3.0), 1, {}, "x: got a scalar"),
        (np.arange(4), 1, {}, "x: got dtype int64"),
        (np.arange(4) + 1j, 1, {}, "x: got dtype complex128"),
        (np.zeros(4, bool), 1, {}, "x: got dtype bool"),
        (["a", "b"], 1, {}, "x: got dtype <U1"),
        (np.zeros(4), 5, {}, "k: got 5, want a number at most 4"),
        (np.zeros(4), -1, {}, "k: got -1"),
        (np.zeros(4), 1.5, {}, "k: got 1.5"),
        (np.zeros(4), True, {}, "k: got True"),
        (np.zeros(4), 1, {"n_threads": 0}, "n_threads: got 0"),
    ],
)
def test_bad_input_is_refused_by_name(x, k, options, message):
    with pytest.raises(InputError) as caught:
        top_k(x, k, **options)
    assert message in str(caught.value)


@needs_native
class TestBinding:
    """The raw binding copies nothing: what it cannot read in place it refuses by name."""

    def call(self, **changed):
        arguments = {"x": np.zeros((2, 8)), "values": np.zeros((2, 3)), "indices": np.zeros((2, 3), np.int64)}
        native.top_k(*(arguments | changed).values())

    def test_read_only_input_is_read(self):
        x = np.arange(16.0).reshape(2, 8)
        x.flags.writeable = False
        values, indices = np.zeros((2, 3)), np.zeros((2, 3), np.int64)
        native.top_k(x, values, indices)
        assert indices.tolist() == [[7, 6, 5], [7, 6, 5]]

    @pytest.mark.parametrize(
        ("name", "array", "came"),
        [
            ("x", np.zeros((2, 16))[:, ::2], "strides (128, 16)"),
            ("x", np.zeros((8, 2)).T, "strides (8, 16)"),
            ("x", np.zeros((2, 8), np.int64), "dtype int64"),
            ("x", np.zeros((2, 8), np.float16), "dtype float16"),
            ("x", np.zeros(8), "shape (8,)"),
            ("x", [[0.0] * 8] * 2, "list"),
            ("x", None, "NoneType"),
            ("values", np.zeros((2, 3), np.float32), "dtype float32"),
            ("values", np.zeros((2, 6))[:, ::2], "strides (48, 16)"),
            ("values", np.broadcast_to(np.zeros(3), (2, 3)), "read-only"),
            ("indices", np.zeros((2, 3), np.int32), "dtype int32"),
            ("indices", np.broadcast_to(np.zeros(3, np.int64), (2, 3)), "read-only"),
        ],
    )
    def test_wrong_arrays_are_refused_by_name(self, name, array, came):
        with pytest.raises(TypeError) as caught:
            self.call(**{name: array})
        assert str(caught.value).startswith(f"{name}: got ")
        assert came in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "shape"), [("values", (1, 3)), ("values", (2, 9)), ("indices", (2, 2)), ("indices", (3, 3))]
    )
    def test_wrong_sizes_are_refused_by_name(self, name, shape):
        arrays = {name: np.zeros(shape, np.int64 if name == "indices" else float)}
        if shape == (2, 9):
            arrays["indices"] = np.zeros(shape, np.int64)
        with pytest.raises(ValueError, match=f"^{name}: want"):
            self.call(**arrays)
