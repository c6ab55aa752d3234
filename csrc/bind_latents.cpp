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

void want_ends(const Array<const std::int64_t, 2> &ends, std::int64_t k) {
    const std::int64_t rows = ends.shape(0), levels = ends.shape(1);
    for (std::int64_t b = 0; b < rows; ++b)
        for (std::int64_t l = 0; l < levels; ++l)
            want(ends(b, l) >= (l ? ends(b, l - 1) : 0) && ends(b, l) <= k, "ends: want rising numbers from 0 to k");
}

template <class T>
void nested(nb::handle values_, nb::handle indices_, nb::handle W_, nb::handle ends_, nb::handle errors_,
            nb::handle residual_, int n_threads) {
    auto values = take<const T, 2>(values_, "values");
    auto indices = take<const std::int64_t, 2>(indices_, "indices");
    auto W = take<const T, 2>(W_, "W");
    auto ends = take<const std::int64_t, 2>(ends_, "ends");
    auto errors = take<T, 2>(errors_, "errors");
    auto residual = take<T, 2>(residual_, "residual");
    const std::int64_t rows = values.shape(0), k = values.shape(1), d = W.shape(1), levels = ends.shape(1);
    want_shape(indices, "indices", rows, k);
    want_shape(ends, "ends", rows, levels);
    want_shape(errors, "errors", rows, levels);
    want_shape(residual, "residual", rows, d);
    want_latents(indices, W.shape(0));
    want_ends(ends, k);
    nb::gil_scoped_release unlocked;
    nested_errors(values.data(), indices.data(), W.data(), ends.data(), rows, k, d, levels, errors.data(),
                  residual.data(), n_threads);
}

template <class T>
void nested_back(nb::handle values_, nb::handle indices_, nb::handle W_, nb::handle residual_, nb::handle ends_,
                 nb::handle weights_, nb::handle by_values_, nb::handle by_W_, nb::handle by_target_, int n_threads) {
    auto values = take<const T, 2>(values_, "values");
    auto indices = take<const std::int64_t, 2>(indices_, "indices");
    auto W = take<const T, 2>(W_, "W");
    auto residual = take<const T, 2>(residual_, "residual");
    auto ends = take<const std::int64_t, 2>(ends_, "ends");
    auto weights = take<const T, 2>(weights_, "weights");
    auto by_values = take<T, 2>(by_values_, "by_values");
    auto by_W = take<T, 2>(by_W_, "by_W");
    auto by_target = take<T, 2>(by_target_, "by_target");
    const std::int64_t rows = values.shape(0), k = values.shape(1), m = W.shape(0), d = W.shape(1);
    const std::int64_t levels = ends.shape(1);
    want_shape(indices, "indices", rows, k);
    want_shape(residual, "residual", rows, d);
    want_shape(ends, "ends", rows, levels);
    want_shape(weights, "weights", rows, levels);
    want_shape(by_values, "by_values", rows, k);
    want_shape(by_W, "by_W", m, d);
    want_shape(by_target, "by_target", rows, d);
    want_latents(indices, m);
    want_ends(ends, k);
    nb::gil_scoped_release unlocked;
    nested_gradient(values.data(), indices.data(), W.data(), residual.data(), ends.data(), weights.data(), rows, k, d,
                    m, levels, by_values.data(), by_W.data(), by_target.data(), n_threads);
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
    m.def(
        "nested_errors",
        [](nb::handle values, nb::handle indices, nb::handle W, nb::handle ends, nb::handle errors,
           nb::handle residual, int n_threads) {
            (holds<double>(W) ? nested<double> : nested<float>)(values, indices, W, ends, errors, residual, n_threads);
        },
        nb::arg("values").none(), nb::arg("indices").none(), nb::arg("W").none(), nb::arg("ends").none(),
        nb::arg("errors").none(), nb::arg("residual").none(), nb::arg("n_threads") = 0,
        "errors[b, l] = the squared norm of the target, given in residual, less the first ends[b, l] entries.\n\n"
        "residual holds the target less all entries afterwards.");
    m.def(
        "nested_gradient",
        [](nb::handle values, nb::handle indices, nb::handle W, nb::handle residual, nb::handle ends,
           nb::handle weights, nb::handle by_values, nb::handle by_W, nb::handle by_target, int n_threads) {
            (holds<double>(W) ? nested_back<double> : nested_back<float>)(values, indices, W, residual, ends, weights,
                                                                          by_values, by_W, by_target, n_threads);
        },
        nb::arg("values").none(), nb::arg("indices").none(), nb::arg("W").none(), nb::arg("residual").none(),
        nb::arg("ends").none(), nb::arg("weights").none(), nb::arg("by_values").none(), nb::arg("by_W").none(),
        nb::arg("by_target").none(), nb::arg("n_threads") = 0,
        "The derivative of the weighted sum of nested errors; residual is what nested_errors left.");
}
