// Sparse codes and the rows of a dictionary: selection, decoding, and gradients through the entries in use.
#include <string>

#include "arrays.hpp"
#include "latents.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace {

template <class T> const T *optional_row(nb::handle given, const char *name, std::int64_t size, Array<const T, 1> &kept) {
    if (given.is_none()) return nullptr;
    kept = take<const T, 1>(given, name);
    if (std::int64_t(kept.shape(0)) != size) throw nb::value_error((std::string(name) + ": got the wrong length").c_str());
    return kept.data();
}

template <class A> void want_shape(const A &array, const char *name, std::int64_t rows, std::int64_t columns) {
    if (std::int64_t(array.shape(0)) != rows || std::int64_t(array.shape(1)) != columns)
        throw nb::value_error((std::string(name) + ": want shape [" + std::to_string(rows) + ", " +
                               std::to_string(columns) + "]").c_str());
}

void want_latents(const Array<const std::int64_t, 2> &indices, std::int64_t m) {
    const std::int64_t *at = indices.data(), count = std::int64_t(indices.shape(0) * indices.shape(1));
    for (std::int64_t p = 0; p < count; ++p) want(at[p] >= 0 && at[p] < m, "indices: want latents, from 0 to m - 1");
    want(std::int64_t(indices.shape(0)) < (std::int64_t(1) << 31), "indices: want fewer than 2^31 rows");
}

template <class T>
void select(nb::handle pre_, nb::handle bias_, nb::handle counts_, nb::handle values_, nb::handle indices_, int rule,
            int n_threads) {
    auto pre = take<const T, 2>(pre_, "pre");
    auto values = take<T, 2>(values_, "values");
    auto indices = take<std::int64_t, 2>(indices_, "indices");
    const std::int64_t rows = pre.shape(0), n = pre.shape(1), k = values.shape(1);
    Array<const T, 1> biases;
    Array<const std::int64_t, 1> kept;
    const T *bias = optional_row<T>(bias_, "bias", n, biases);
    const std::int64_t *counts = optional_row<std::int64_t>(counts_, "counts", rows, kept);
    want_shape(values, "values", rows, k);
    want_shape(indices, "indices", rows, k);
    want(k <= n, "values: want at most as many columns as pre");
    want(rule >= 0 && rule <= 2, "rule: want 0, 1 or 2");
    if (rows == 0 || k == 0) return;
    nb::gil_scoped_release unlocked;
    select_rows(pre.data(), bias, counts, static_cast<Rule>(rule), rows, n, k, values.data(), indices.data(),
                n_threads);
}

template <class T>
void decode(nb::handle values_, nb::handle indices_, nb::handle W_, nb::handle out_, int n_threads) {
    auto values = take<const T, 2>(values_, "values");
    auto indices = take<const std::int64_t, 2>(indices_, "indices");
    auto W = take<const T, 2>(W_, "W");
    auto out = take<T, 2>(out_, "out");
    const std::int64_t rows = values.shape(0), k = values.shape(1), d = W.shape(1);
    want_shape(indices, "indices", rows, k);
    want_shape(out, "out", rows, d);
    want_latents(indices, W.shape(0));
    nb::gil_scoped_release unlocked;
    decode_rows(values.data(), indices.data(), W.data(), rows, k, d, out.data(), n_threads);
}

template <class T> void products(nb::handle indices_, nb::handle W_, nb::handle x_, nb::handle out_, int n_threads) {
    auto indices = take<const std::int64_t, 2>(indices_, "indices");
    auto W = take<const T, 2>(W_, "W");
    auto x = take<const T, 2>(x_, "x");
    auto out = take<T, 2>(out_, "out");
    const std::int64_t rows = indices.shape(0), k = indices.shape(1), d = W.shape(1);
    want_shape(x, "x", rows, d);
    want_shape(out, "out", rows, k);
    want_latents(indices, W.shape(0));
    if (rows == 0 || k == 0) return;
    nb::gil_scoped_release unlocked;
    rows_dot(indices.data(), W.data(), x.data(), rows, k, d, out.data(), n_threads);
}

template <class T>
void accumulate(nb::handle coefficients_, nb::handle indices_, nb::handle x_, nb::handle out_, nb::handle sums_,
                int n_threads) {
    auto coefficients = take<const T, 2>(coefficients_, "coefficients");
    auto indices = take<const std::int64_t, 2>(indices_, "indices");
    auto x = take<const T, 2>(x_, "x");
    auto out = take<T, 2>(out_, "out");
    auto sums = take<T, 1>(sums_, "sums");
    const std::int64_t rows = coefficients.shape(0), k = coefficients.shape(1), d = x.shape(1), m = out.shape(0);
    want_shape(indices, "indices", rows, k);
    want_shape(x, "x", rows, d);
    want_shape(out, "out", m, d);
    want(std::int64_t(sums.shape(0)) == m, "sums: want one per row of out");
    want_latents(indices, m);
    nb::gil_scoped_release unlocked;
    accumulate_rows(coefficients.data(), indices.data(), x.data(), rows, k, d, m, out.data(), sums.data(), n_threads);
}

}  // namespace

void bind_latents(nb::module_ &m) {
    m.def(
        "select_rows",
        [](nb::handle pre, nb::handle bias, nb::handle counts, nb::handle values, nb::handle indices, int rule,
           int n_threads) {
            (holds<double>(pre) ? select<double> : select<float>)(pre, bias, counts, values, indices, rule, n_threads);
        },
        nb::arg("pre").none(), nb::arg("bias").none(), nb::arg("counts").none(), nb::arg("values").none(),
        nb::arg("indices").none(), nb::arg("rule"), nb::arg("n_threads") = 0,
        "The k (width of values) entries of each row of pre + bias by rule 0 (relu), 1 (signed) or 2 (absolute).");
    m.def(
        "decode_rows",
        [](nb::handle values, nb::handle indices, nb::handle W, nb::handle out, int n_threads) {
            (holds<double>(W) ? decode<double> : decode<float>)(values, indices, W, out, n_threads);
        },
        nb::arg("values").none(), nb::arg("indices").none(), nb::arg("W").none(), nb::arg("out").none(),
        nb::arg("n_threads") = 0, "out[b] = sum_j values[b, j] W[indices[b, j]].");
    m.def(
        "rows_dot",
        [](nb::handle indices, nb::handle W, nb::handle x, nb::handle out, int n_threads) {
            (holds<double>(W) ? products<double> : products<float>)(indices, W, x, out, n_threads);
        },
        nb::arg("indices").none(), nb::arg("W").none(), nb::arg("x").none(), nb::arg("out").none(),
        nb::arg("n_threads") = 0, "out[b, j] = <W[indices[b, j]], x[b]>.");
    m.def(
        "accumulate_rows",
        [](nb::handle coefficients, nb::handle indices, nb::handle x, nb::handle out, nb::handle sums, int n_threads) {
            (holds<double>(x) ? accumulate<double> : accumulate<float>)(coefficients, indices, x, out, sums, n_threads);
        },
        nb::arg("coefficients").none(), nb::arg("indices").none(), nb::arg("x").none(), nb::arg("out").none(),
        nb::arg("sums").none(), nb::arg("n_threads") = 0,
        "out[i] = sum of coefficients[b, j] x[b] over the entries of latent i; sums[i] that of the coefficients.");
}
