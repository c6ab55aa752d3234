"""Products of sparse matrices: the compiled kernels against plain references and dense products."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero import kernels
from ellzero.errors import InputError
from ellzero.kernels.nm import nm_product, nmg_product, pack_places, place_bits, unpack_places
from ellzero.kernels.sparse import GROUPS, Pattern, narrowed, turn, widened

needs_native = pytest.mark.skipif(not kernels.live, reason="no compiled module is live")
BATCHES = (0, 1, 2, 3, 8, 17, 64, 130, 257)


def draw(seed, rows, columns, group, density=0.3):
    """A pattern with an empty and a full group, and its generator."""
    g = np.random.default_rng(seed)
    mask = g.random((rows // group, columns)) < density
    if len(mask) > 1:
        mask[0], mask[1] = False, True
    ptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    return Pattern(ptr, np.nonzero(mask)[1], group=group, columns=columns), g


def dense(pattern, value):
    out = np.zeros((pattern.rows // pattern.group, pattern.group, pattern.columns), widened(value).dtype)
    out[pattern.row_of(), :, pattern.index] = widened(value)
    return out.reshape(pattern.rows, pattern.columns)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int8, np.uint16])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("columns", [37, 700])  # as one, and block by block
def test_a_layer_is_the_product_of_rows(group, kind, batch, columns):
    pattern, g = draw(batch, 5 * group, columns, group)
    value = g.integers(-9, 9, (len(pattern.index), group)).astype(kind if kind is not np.uint16 else np.float32)
    value = narrowed(value) if kind is np.uint16 else value
    wide = np.float64 if kind is np.float64 else np.float32
    x = g.standard_normal((batch, columns)).astype(wide)
    bias, scale = (g.standard_normal(5 * group).astype(wide) for _ in range(2))
    W = dense(pattern, value).astype(wide)
    out = pattern.layer(value, x, bias=bias, scale=scale, n_threads=1)
    assert out.flags.c_contiguous
    np.testing.assert_allclose(out, (x @ W.T) * scale + bias, rtol=1e-3, atol=1e-3)
    for threads in (2, 3):
        np.testing.assert_array_equal(pattern.layer(value, x, bias=bias, scale=scale, n_threads=threads), out)
    with pytest.raises(InputError, match="x"):
        pattern.layer(value, x[:, 1:])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("batch", BATCHES)
def test_products_and_gradients_are_the_dense_ones(group, kind, batch):
    pattern, g = draw(batch, 5 * group, 37, group)
    value = g.standard_normal((len(pattern.index), group)).astype(kind)
    x, grad = (g.standard_normal((n, batch)).astype(kind) for n in (37, 5 * group))
    bias, scale = (g.standard_normal(5 * group).astype(kind) for _ in range(2))
    tol = dict.fromkeys(("rtol", "atol"), 1e-4 if kind is np.float32 else 1e-11)
    W = dense(pattern, value)
    np.testing.assert_allclose(pattern.product(value, x), W @ x, **tol)
    np.testing.assert_allclose(
        pattern.product(value, x, bias=bias, scale=scale), scale[:, None] * (W @ x) + bias[:, None], **tol
    )
    rows = pattern.layer_gradient(grad.T.copy(), x.T.copy())
    np.testing.assert_array_equal(rows, pattern.values_gradient(grad, x))
    np.testing.assert_allclose(pattern.turned().layer(value, grad.T.copy()), grad.T @ W, **tol)
    full = (grad @ x.T).reshape(5, group, 37)
    np.testing.assert_allclose(pattern.values_gradient(grad, x), full[pattern.row_of(), :, pattern.index], **tol)
    turned, order = pattern.transposed()
    of_sorted = turned.product(value.reshape(-1)[order][:, None], grad)
    np.testing.assert_allclose(of_sorted, W.T @ grad, **tol)
    np.testing.assert_array_equal(pattern.turned().product(value, grad), of_sorted)


@pytest.mark.parametrize("group", GROUPS)
def test_narrow_values_are_widened_exactly(group):
    pattern, g = draw(0, 3 * group, 50, group)
    value = g.standard_normal((len(pattern.index), group)).astype(np.float32)
    x = g.standard_normal((50, 19)).astype(np.float32)
    half = narrowed(value)
    np.testing.assert_array_equal(pattern.product(half, x), pattern.product(widened(half), x))
    whole = g.integers(-127, 128, value.shape).astype(np.int8)
    scale = g.random(3 * group).astype(np.float32)
    np.testing.assert_array_equal(
        pattern.product(whole, x, scale=scale), pattern.product(whole.astype(np.float32), x, scale=scale)
    )


def test_bfloat16_is_rounded_as_torch_rounds():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 10.0 ** np.arange(-20, 20).repeat(25)
    x = np.concatenate([x.astype(np.float32), np.float32([0, -0.0, np.inf, -np.inf, 1.00390625, 3.3895314e38])])
    want = torch.from_numpy(x).bfloat16()
    np.testing.assert_array_equal(narrowed(x), want.view(torch.int16).numpy().view(np.uint16))
    np.testing.assert_array_equal(widened(narrowed(x)), want.float().numpy())
    assert np.isnan(widened(narrowed(np.float32([np.nan]))))


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_depends_on_the_threads(group):
    pattern, g = draw(1, 64 * group, 300, group)
    value = g.standard_normal((len(pattern.index), group)).astype(np.float32)
    x, grad = (g.standard_normal((n, 96)).astype(np.float32) for n in (300, 64 * group))
    for call in (
        lambda t: pattern.product(value, x, n_threads=t),
        lambda t: pattern.values_gradient(grad, x, n_threads=t),
    ):
        one = call(1)
        for threads in (2, 3, 8):
            np.testing.assert_array_equal(call(threads), one)


def test_missing_and_infinite_numbers_reach_the_rows_that_read_them():
    pattern = Pattern([0, 1, 2], [0, 1], columns=3)
    x = np.float32([[np.nan] * 20, [1] * 20, [np.inf] * 20])
    out = pattern.product(np.ones((2, 1), np.float32), x)
    assert np.isnan(out[0]).all()
    assert (out[1] == 1).all()
    assert np.isnan(pattern.product(np.float32([[0], [1]]), x)[0]).all()  # a stored zero is read


@given(
    st.integers(0, 9),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.sampled_from(GROUPS),
)
@settings(max_examples=60, deadline=None)
def test_any_mask(seed, rows, columns, density, group):
    g = np.random.default_rng(seed)
    mask = g.random((rows, columns)) < density
    pattern = Pattern(np.concatenate([[0], np.cumsum(mask.sum(1))]), np.nonzero(mask)[1], group=group, columns=columns)
    value = g.standard_normal((len(pattern.index), group))
    x = g.standard_normal((columns, 5))
    np.testing.assert_allclose(pattern.product(value, x), dense(pattern, value) @ x, atol=1e-11)


def misaligned(array):
    """The same numbers at an address that is no multiple of the register, nor of 8 bytes."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64 + array.itemsize
    out = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("groups", "columns"), [(1, 1), (7, 1), (1, 13), (13, 31), (101, 3)])
def test_adversarial_shapes_at_odd_addresses(group, groups, columns):
    """One column, one row, primes; empty and full rows; no batch; buffers at odd addresses."""
    for density in (0.0, 0.4, 1.0):
        g = np.random.default_rng(groups)
        mask = g.random((groups, columns)) < density
        ptr = np.concatenate([[0], np.cumsum(mask.sum(1))])
        pattern = Pattern(ptr, np.nonzero(mask)[1], group=group, columns=columns)
        value = misaligned(g.standard_normal((len(pattern.index), group)).astype(np.float32))
        for batch in (0, 1, 5, 71):
            x, grad = (misaligned(g.standard_normal((n, batch)).astype(np.float32)) for n in (columns, pattern.rows))
            W = dense(pattern, value)
            np.testing.assert_allclose(pattern.product(value, x), W @ x, rtol=1e-4, atol=1e-4)
            full = (grad @ x.T).reshape(groups, group, columns)[pattern.row_of(), :, pattern.index]
            np.testing.assert_allclose(pattern.values_gradient(grad, x), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_wide_batches_in_slabs_are_the_whole_to_the_bit(group, kind):
    """A batch taken a slab at a time, copied together or not, gives each column what it gets alone among others."""
    g = np.random.default_rng(5)
    mask = g.random((64, 4000)) < 0.2
    ptr = np.concatenate([[0], np.cumsum(mask.sum(1))])
    pattern = Pattern(ptr, np.nonzero(mask)[1], group=group, columns=4000)
    value = g.standard_normal((len(pattern.index), group)).astype(kind)
    x = g.standard_normal((4000, 150)).astype(kind)
    out = pattern.product(value, x)
    for threads in (1, 3):
        np.testing.assert_array_equal(pattern.product(value, x, n_threads=threads), out)
    np.testing.assert_allclose(out, dense(pattern, value) @ x, rtol=2e-4, atol=2e-3 if kind is np.float32 else 1e-10)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [700, 70000])
def test_blocks_of_columns_are_the_whole(kind, columns):
    """Many entries a row: X is taken block by block; rows may be empty, full or out of order, batches of any width."""
    g = np.random.default_rng(columns)
    mask = g.random((9, columns)) < np.float64([0, 1, *[0.3] * 7])[:, None]
    ptr, index = np.concatenate([[0], np.cumsum(mask.sum(1))]), np.nonzero(mask)[1]
    pattern = Pattern(ptr, index, columns=columns)
    value = g.standard_normal((len(index), 1)).astype(kind)
    bias, scale = (g.standard_normal(9).astype(kind) for _ in range(2))
    turned = np.arange(len(index))
    turned[ptr[2] : ptr[3]] = turned[ptr[2] : ptr[3]][::-1]
    mixed = Pattern(ptr, index[turned], columns=columns)
    W = dense(pattern, value)
    tol = {"rtol": 1e-3, "atol": 0.02 if kind is np.float32 else 1e-9}
    for batch in (16, 31, 32, 64, 107):
        x = misaligned(g.standard_normal((columns, batch)).astype(kind))
        want = scale[:, None] * (W @ x) + bias[:, None]
        out = pattern.product(value, x, bias=bias, scale=scale)
        np.testing.assert_allclose(out, want, **tol)
        np.testing.assert_allclose(mixed.product(value[turned], x, bias=bias, scale=scale), want, **tol)
        for threads in (1, 3):
            np.testing.assert_array_equal(pattern.product(value, x, bias=bias, scale=scale, n_threads=threads), out)
    half = narrowed(value.astype(np.float32))
    x = g.standard_normal((columns, 64)).astype(np.float32)
    np.testing.assert_array_equal(pattern.product(half, x), pattern.product(widened(half), x))
    x[0] = np.nan  # of the others, only rows that store column 0 see it
    np.testing.assert_array_equal(np.isnan(pattern.product(half, x)).all(1), mask[:, 0])


def test_single_columns_read_no_number_of_another_row():
    """Behind the entries of each row stand those of the next, whose missing or infinite inputs must not count."""
    for length in range(1, 20):
        pattern = Pattern([0, length, length + 1], [*range(length), length], columns=length + 1)
        x = np.ones((length + 1, 1), np.float32)
        x[-1] = np.inf
        np.testing.assert_array_equal(pattern.product(np.ones((length + 1, 1), np.float32), x), [[length], [np.inf]])


def test_missing_and_infinite_numbers_in_two_of_four():
    """As the reference over stored entries: a group's other columns are not read, whatever stands there."""
    g = np.random.default_rng(0)
    place = np.sort(np.argsort(g.random((3, 24, 4)), axis=-1)[..., :2], axis=-1)
    value = g.standard_normal((3, 48)).astype(np.float32)
    packed = pack_places(place.reshape(3, -1).astype(np.uint8), 4)
    x = g.standard_normal((96, 1)).astype(np.float32)
    used = (np.arange(0, 96, 4)[None, :, None] + place).reshape(3, -1)
    bad = np.setdiff1d(np.arange(96), used[0])[:5]
    x[bad[:3]], x[bad[3:]] = np.nan, np.inf
    out = nm_product(packed, value, x, n=2, m=4)
    assert np.isfinite(out[0]).all()
    for i in (1, 2):
        assert np.isfinite(out[i]).all() == (not np.isin(bad, used[i]).any())


def test_more_columns_than_sixteen_bits():
    pattern = Pattern([0, 2], [0, 70_000], columns=70_001)
    assert pattern.index.dtype == np.uint32
    x = np.arange(70_001.0)[:, None]
    assert pattern.product(np.ones((2, 1)), x) == 70_000
    assert Pattern([0, 1], [65_535], columns=65_536).index.dtype == np.uint16


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 4), (1, 3), (3, 7), (4, 16), (5, 32)])
@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_nm_products_are_the_dense_ones(n, m, batch, kind):
    g = np.random.default_rng(n + m)
    for groups in (1, 11, 40):
        place = np.sort(np.argsort(g.random((6, groups, m)), axis=-1)[..., :n], axis=-1)
        value = g.standard_normal((6, groups * n)).astype(kind)
        W = np.zeros((6, groups, m), kind)
        np.put_along_axis(W, place, value.reshape(6, groups, n), axis=-1)
        x, bias = g.standard_normal((groups * m, batch)).astype(kind), g.standard_normal(6).astype(kind)
        packed = pack_places(place.reshape(6, -1).astype(np.uint8), m)
        out = nm_product(packed, value, x, n=n, m=m, bias=bias)
        want = W.reshape(6, -1) @ x + bias[:, None]
        np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-4 if kind is np.float32 else 1e-11)
        assert (unpack_places(packed, groups * n, m) == place.reshape(6, -1)).all()


def test_places_are_packed_tightly():
    assert [place_bits(m) for m in (1, 4, 5, 16, 17, 256)] == [2, 2, 4, 4, 8, 8]
    assert pack_places(np.uint8([[0, 1, 2, 3, 3]]), 4).tolist() == [[0b11100100, 0b11]]


def test_bad_input():
    good = {"columns": 3}
    for ptr, index, words in [
        ([0, 2], [0], "ptr: want numbers that rise from 0 to 1"),
        ([0, 2, 1], [0], "ptr"),
        ([1, 1], [0], "ptr"),
        ([0, 1], [3], "index: got 3 to 3, want columns from 0 to 2"),
        ([0, 1], [-1], "index"),
        ([0.0, 1.0], [0], "ptr: got float64"),
        ([], [], "ptr"),
    ]:
        with pytest.raises(InputError, match=words):
            Pattern(ptr, index, **good)
    with pytest.raises(InputError, match="group: got 3"):
        Pattern([0, 1], [0], group=3, **good)
    pattern, value, x = Pattern([0, 1], [0], **good), np.ones((1, 1), np.float32), np.ones((3, 2), np.float32)
    for call, words in [
        (lambda: pattern.product(value, x[:2]), "x: got shape"),
        (lambda: pattern.product(value, x.astype(np.float64)), "x: got float64, want float32"),
        (lambda: pattern.product(value[:0], x), "value: got shape"),
        (lambda: pattern.product(value.astype(np.int32), x), "value.dtype: got 'int32'"),
        (lambda: pattern.product(value, x, bias=np.ones(1)), "bias: got float64"),
        (lambda: pattern.product(value, x, n_threads=0), "n_threads"),
        (lambda: pattern.values_gradient(x[:1, :1], x), "grad: got a batch of 1, want 2"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(ValueError, match="read-only"):
        pattern.index[0] = 2


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_windows_of_flat_input(group, kind):
    pattern, g = draw(3, 3 * group, 50, group)
    value, bias = g.standard_normal((len(pattern.index), group)).astype(kind), g.standard_normal(3 * group).astype(kind)
    for batch in (1, 7, 70, 300):
        x = g.standard_normal(50 + batch - 1).astype(kind)
        want = dense(pattern, value) @ np.lib.stride_tricks.sliding_window_view(x, batch) + bias[:, None]
        np.testing.assert_allclose(pattern.slide(value, x, batch, bias=bias), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="x: got shape"):
        pattern.slide(value, x[1:], batch)


def test_patterns_are_copied_and_sent():
    import copy
    import pickle

    pattern, g = draw(0, 6, 9, 1)
    value, x = g.standard_normal((len(pattern.index), 1)), g.standard_normal((9, 3))
    assert copy.deepcopy(pattern) is pattern
    again = pickle.loads(pickle.dumps(pattern))
    np.testing.assert_array_equal(again.product(value, x), pattern.product(value, x))


@needs_native
@pytest.mark.parametrize("group", GROUPS)
def test_quick_products_are_the_others_or_none(group):
    """Vectors, batches, bias and scale as the slow way gives them; None for whatever does not fit."""
    pattern, g = draw(3, 5 * group, 37, group)
    for kind in (np.float32, np.float64):
        value, x = g.standard_normal((len(pattern.index), group)).astype(kind), g.standard_normal((37, 9)).astype(kind)
        bias, scale = (g.standard_normal(5 * group).astype(kind) for _ in range(2))
        want = scale[:, None] * (dense(pattern, value) @ x) + bias[:, None]
        out = pattern.quick(value, x, bias=bias, scale=scale)
        np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-4)
        line = pattern.quick(value, x[:, 4].copy(), bias=bias, scale=scale)
        np.testing.assert_allclose(line, want[:, 4], rtol=1e-4, atol=1e-4)
        other = np.float64 if kind is np.float32 else np.float32
        for bad in (x.astype(other), x.astype(int), x[1:], x.T, x[:, ::2], x[..., None], "text", x.tolist()):
            assert pattern.quick(value, bad) is None
        assert pattern.quick(value[1:], x) is None
        assert pattern.quick(value, x, bias=bias[1:]) is None
        assert pattern.quick(value, x, bias=bias.astype(other)) is None
        assert pattern.quick(value, x, scale=np.stack([scale, scale], axis=1)[:, 0]) is None
    with pytest.raises(InputError, match="n_threads: got 0"):
        pattern.quick(value, x, n_threads=0)


def test_values_in_another_patterns_order():
    """The transpose of a pattern large enough for two threads, one column and many, and what is refused."""
    pattern, g = draw(0, 400, 700, 1, 0.3)
    value = g.standard_normal((len(pattern.index), 1)).astype(np.float32)
    turned, (sorted_, order) = pattern.turned(), pattern.transposed()
    for batch in (1, 70):
        y = g.standard_normal((400, batch)).astype(np.float32)
        want = sorted_.product(value[order], y, n_threads=1)
        for n_threads in (1, 2, 3):
            np.testing.assert_array_equal(turned.product(value, y, n_threads=n_threads), want)
    with pytest.raises(InputError, match="values lie in another's order"):
        turned.values_gradient(np.ones((700, 1), np.float32), np.ones((400, 1), np.float32))
    with pytest.raises(InputError, match="order: want each place once"):
        Pattern([0, 2], [0, 1], columns=2, order=np.array([0, 0]))
    with pytest.raises(InputError, match="value: got shape"):
        turned.product(value[1:], y)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_transposes(kind):
    g = np.random.default_rng(0)
    for shape in ((0, 3), (1, 1), (1, 40), (7, 9), (8, 16), (64, 100), (130, 67), (700, 801)):
        x = g.standard_normal(shape).astype(kind)
        for n_threads in (1, 2):
            out = turn(x, n_threads=n_threads)
            assert out.flags.c_contiguous
            np.testing.assert_array_equal(out, x.T)
        np.testing.assert_array_equal(turn(np.asfortranarray(x)), x.T)
    with pytest.raises(InputError, match="x: got"):
        turn(np.ones(3, np.float32))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m", "g"), [(1, 2, 1), (2, 4, 4), (2, 4, 1), (3, 5, 2), (4, 4, 3)])
def test_nmg_products_are_the_dense_ones(kind, n, m, g):
    """Every row sits somewhere in every block; infinity and NaN reach the rows that read them."""
    draws = np.random.default_rng(n + 10 * m + 100 * g)
    patterns = np.array(list(combinations(range(m), n)), np.uint8)
    place, chunk = np.repeat(patterns, g, axis=0), len(patterns) * g
    row = np.stack([draws.permutation(chunk) for _ in range(3 * 5)]).reshape(3, 5, chunk).astype(np.uint16)
    value = draws.standard_normal((3, 5, chunk, n)).astype(kind)
    W = np.zeros((3, chunk, 5, m), kind)
    for c, j, s in np.ndindex(3, 5, chunk):
        W[c, row[c, j, s], j, place[s]] = value[c, j, s]
    W = W.reshape(3 * chunk, 5 * m)
    tol = dict.fromkeys(("rtol", "atol"), 1e-4 if kind is np.float32 else 1e-11)
    for batch in (0, 1, 3, 8, 40, 70):
        x, y = (draws.standard_normal((k, batch)).astype(kind) for k in (5 * m, 3 * chunk))
        bias = draws.standard_normal(3 * chunk).astype(kind)
        seat = np.argsort(row, axis=-1).astype(np.uint16)
        out = nmg_product(row, place, value, x, m=m, bias=bias, seat=seat, n_threads=1)
        np.testing.assert_allclose(out, W @ x + bias[:, None], **tol)
        np.testing.assert_array_equal(nmg_product(row, place, value, x, m=m, bias=bias, n_threads=3), out)
        turned = nmg_product(row, place, value, y, m=m, turned=True, n_threads=1)
        np.testing.assert_allclose(turned, W.T @ y, **tol)
        np.testing.assert_array_equal(nmg_product(row, place, value, y, m=m, turned=True, n_threads=2), turned)
    x = np.zeros((5 * m, 1), kind)
    x[1] = np.nan
    np.testing.assert_array_equal(np.isnan(nmg_product(row, place, value, x, m=m)[:, 0]), W[:, 1] != 0)
    with pytest.raises(InputError, match="x: got shape"):
        nmg_product(row, place, value, x[1:], m=m)


@needs_native
def test_nmg_refuses_what_it_cannot_read():
    row, place = np.zeros((1, 2, 2), np.uint16), np.array([[0], [1]], np.uint8)
    value = np.ones((1, 2, 2, 1), np.float32)
    x = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match="row, seat: want rows and seats"):
        nmg_product(row + 2, place, value, x, m=2)
    with pytest.raises(ValueError, match="place: want columns of the m"):
        nmg_product(row, place + 1, value, x, m=2)
    with pytest.raises(ValueError, match="bias: want one per row"):
        nmg_product(row, place, value, x, m=2, bias=np.ones(3, np.float32))
