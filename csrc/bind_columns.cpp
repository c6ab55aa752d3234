// Products with columns of a design matrix; the shapes are checked here, the loops are in columns.hpp.
#include "arrays.hpp"
#include "columns.hpp"

namespace nb = nanobind;
using namespace ellzero;
using namespace ellzero::columns;

namespace {

// The places in `index` (or none: all), each from 0 to `limit` - 1.
struct Places {
    Array<const std::int64_t, 1> array;
    const std::int64_t *data = nullptr;
    std::int64_t count;
    Places(nb::handle index, std::int64_t limit) : count(limit) {
        if (index.is_none()) return;
        array = take<const std::int64_t, 1>(index, "index");
        data = array.data();
        count = std::int64_t(array.shape(0));
        for (std::int64_t i = 0; i < count; ++i)
            want(data[i] >= 0 && data[i] < limit, "index: want numbers of columns");
    }
};

template <class T> void dense_products(nb::handle x_, nb::handle index_, nb::handle u_, nb::handle out_, int threads) {
    const auto x = take<const T, 2>(x_, "columns");
    const auto u = take<const T, 1>(u_, "u");
    const auto out = take<T, 1>(out_, "out");
    const Places index(index_, std::int64_t(x.shape(0)));
    want(u.shape(0) == x.shape(1), "u: want one entry per row");
    want(std::int64_t(out.shape(0)) == index.count, "out: want one entry per column");
    nb::gil_scoped_release unlocked;
    column_products(x.data(), std::int64_t(x.shape(1)), index.data, index.count, u.data(), out.data(), threads);
}

template <class T> void row_sums(nb::handle x_, nb::handle u_, nb::handle out_, int threads) {
    const auto x = take<const T, 2>(x_, "rows");
    const auto u = take<const T, 1>(u_, "u");
    const auto out = take<T, 1>(out_, "out");
    want(u.shape(0) == x.shape(0), "u: want one entry per row");
    want(out.shape(0) == x.shape(1), "out: want one entry per column");
    nb::gil_scoped_release unlocked;
    row_combination(x.data(), std::int64_t(x.shape(0)), std::int64_t(x.shape(1)), u.data(), out.data(), threads);
}

template <class T> void moments(nb::handle x_, bool by_rows, nb::handle sums_, nb::handle squares_, int threads) {
    const auto x = take<const T, 2>(x_, "x");
    const auto sums = take<double, 1>(sums_, "sums");
    const auto squares = take<double, 1>(squares_, "squares");
    const std::size_t p = x.shape(by_rows ? 1 : 0), n = x.shape(by_rows ? 0 : 1);
    want(sums.shape(0) == p && squares.shape(0) == p, "sums: want one entry per column");
    nb::gil_scoped_release unlocked;
    (by_rows ? row_moments<T> : column_moments<T>)(x.data(), std::int64_t(n), std::int64_t(p), sums.data(),
                                                   squares.data(), threads);
}

template <class T> void cross(nb::handle left_, nb::handle right_, nb::handle out_, int threads) {
    const auto left = take<const T, 2>(left_, "left");
    const auto right = take<const T, 2>(right_, "right");
    const auto out = take<T, 2>(out_, "out");
    want(left.shape(1) == right.shape(1), "right: want columns as long as those of left");
    want(out.shape(0) == left.shape(0) && out.shape(1) == right.shape(0), "out: want (left columns, right columns)");
    nb::gil_scoped_release unlocked;
    cross_products(left.data(), std::int64_t(left.shape(0)), right.data(), std::int64_t(right.shape(0)),
                   std::int64_t(left.shape(1)), out.data(), threads);
}

template <class T>
void combine(nb::handle x_, nb::handle index_, nb::handle w_, nb::handle base_, nb::handle out_, int threads) {
    const auto x = take<const T, 2>(x_, "columns");
    const Places index(index_, std::int64_t(x.shape(0)));
    const auto w = take<const T, 1>(w_, "w");
    const auto base = take<const T, 1>(base_, "base");
    const auto out = take<T, 1>(out_, "out");
    want(std::int64_t(w.shape(0)) == index.count, "w: want one entry per column");
    want(base.shape(0) == x.shape(1) && out.shape(0) == x.shape(1), "out: want one entry per row");
    nb::gil_scoped_release unlocked;
    column_combination(x.data(), std::int64_t(x.shape(1)), index.data, index.count, w.data(), base.data(), out.data(),
                       threads);
}

}  // namespace

void bind_columns(nb::module_ &m) {
    m.def(
        "column_products",
        [](nb::handle columns, nb::handle index, nb::handle u, nb::handle out, int threads) {
            (holds<float>(columns) ? dense_products<float> : dense_products<double>)(columns, index, u, out, threads);
        },
        nb::arg("columns"), nb::arg("index").none(), nb::arg("u"), nb::arg("out"), nb::arg("threads"),
        "out[i] = columns[index[i]] . u; columns is X' in C order. index None: all.");
    m.def(
        "row_combination",
        [](nb::handle rows, nb::handle u, nb::handle out, int threads) {
            (holds<float>(rows) ? row_sums<float> : row_sums<double>)(rows, u, out, threads);
        },
        nb::arg("rows"), nb::arg("u"), nb::arg("out"), nb::arg("threads"), "out = u @ rows; rows in C order.");
    m.def(
        "moments",
        [](nb::handle x, bool by_rows, nb::handle sums, nb::handle squares, int threads) {
            (holds<float>(x) ? moments<float> : moments<double>)(x, by_rows, sums, squares, threads);
        },
        nb::arg("x"), nb::arg("by_rows"), nb::arg("sums"), nb::arg("squares"), nb::arg("threads"),
        "Sum and sum of squares of each column, in float64; x is X (by_rows) or X', in C order.");
    m.def(
        "cross_products",
        [](nb::handle left, nb::handle right, nb::handle out, int threads) {
            (holds<float>(left) ? cross<float> : cross<double>)(left, right, out, threads);
        },
        nb::arg("left"), nb::arg("right"), nb::arg("out"), nb::arg("threads"),
        "out = left @ right.T for C-contiguous rows of equal length.");
    m.def(
        "column_combination",
        [](nb::handle columns, nb::handle index, nb::handle w, nb::handle base, nb::handle out, int threads) {
            (holds<float>(columns) ? combine<float> : combine<double>)(columns, index, w, base, out, threads);
        },
        nb::arg("columns"), nb::arg("index"), nb::arg("w"), nb::arg("base"), nb::arg("out"), nb::arg("threads"),
        "out = base + w @ columns[index]; columns is X' in C order.");
}
