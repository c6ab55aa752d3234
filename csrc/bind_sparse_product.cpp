// Pattern, sparse_product, values_gradient: see sparse_product.hpp.
#include <string>

#include "arrays.hpp"
#include "batch_product.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace ellzero {
template <> inline const char *dtype_name<std::int8_t>() { return "int8"; }
template <> inline const char *dtype_name<std::uint16_t>() { return "uint16"; }
}  // namespace ellzero

namespace {

void make(Pattern *self, nb::handle ptr_, nb::handle index_, std::int64_t group, std::int64_t columns,
          nb::handle order_) {
    auto ptr = take<const std::int64_t, 1>(ptr_, "ptr");
    auto index = take<const std::int64_t, 1>(index_, "index");
    const std::int64_t groups = std::int64_t(ptr.shape(0)) - 1, entries = index.shape(0);
    want(group == 1 || group == 4 || group == 8, "group: want 1, 4 or 8 rows");
    want(columns >= 0 && columns < (std::int64_t(1) << 32), "columns: want 0 to 2^32 - 1");
    want(groups >= 0, "ptr: want at least one number");
    want(ptr(0) == 0 && ptr(groups) == entries, "ptr: want it to run from 0 to the number of entries");
    for (std::int64_t g = 0; g < groups; ++g) want(ptr(g) <= ptr(g + 1), "ptr: want it to rise");
    for (std::int64_t k = 0; k < entries; ++k) want(index(k) >= 0 && index(k) < columns, "index: want columns");
    Pattern made;
    made.groups = groups, made.group = group, made.columns = columns;
    made.ptr.assign(ptr.data(), ptr.data() + groups + 1);
    auto copy = [&](auto &to) {
        to.reserve(entries + Pattern::ahead);
        to.assign(index.data(), index.data() + entries);
        to.resize(entries + Pattern::ahead, 0);
    };
    if (columns <= 65536) {
        copy(made.narrow);
        made.cut_rows(made.narrow.data());
    } else {
        copy(made.wide);
        made.cut_rows(made.wide.data());
    }
    if (!order_.is_none()) {
        auto order = take<const std::int64_t, 1>(order_, "order");
        want(group == 1 && std::int64_t(order.shape(0)) == entries && entries >> 32 == 0,
             "order: want a place per entry, of a pattern with groups of one");
        for (std::int64_t k = 0; k < entries; ++k) want(order(k) >= 0 && order(k) < entries, "order: want places");
        made.order.assign(order.data(), order.data() + entries);
    }
    new (self) Pattern(std::move(made));
}

template <class T> const T *optional(nb::handle given, const char *name, std::int64_t rows, Array<const T, 1> &kept) {
    if (given.is_none()) return nullptr;
    kept = take<const T, 1>(given, name);
    want(std::int64_t(kept.shape(0)) == rows, (std::string(name) + ": want one per row of the matrix").c_str());
    return kept.data();
}

template <class Run> void with_group(std::int64_t group, Run run) {
    if (group == 1) run(std::integral_constant<int, 1>());
    if (group == 4) run(std::integral_constant<int, 4>());
    if (group == 8) run(std::integral_constant<int, 8>());
}

// x is [columns, batch]; or, for convolutions, one axis: an entry of column c then reads x[c], x[c + 1], ... and so
// x must have columns + batch - 1 numbers.
template <class T, class Value, class Stored>
void product(const Pattern &pattern, nb::handle value_, nb::handle x_, nb::handle out_, nb::handle scale_,
             nb::handle bias_, std::int64_t tile, int n_threads) {
    auto value = take<const Stored, 2>(value_, "value");
    auto out = take<T, 2>(out_, "out");
    const std::int64_t batch = out.shape(1);
    const bool windows = nb::cast<std::int64_t>(x_.attr("ndim")) == 1;
    Array<const T, 1> line;
    Array<const T, 2> table;
    if (windows) {
        line = take<const T, 1>(x_, "x");
        want(std::int64_t(line.shape(0)) == pattern.columns + batch - 1, "x: want columns + batch - 1 numbers");
    } else {
        table = take<const T, 2>(x_, "x");
        want(std::int64_t(table.shape(0)) == pattern.columns, "x: want a row per column of the matrix");
        want(std::int64_t(table.shape(1)) == batch, "out: want the columns of x");
    }
    want(std::int64_t(value.shape(0)) == pattern.entries() && std::int64_t(value.shape(1)) == pattern.group,
         "value: want a row per entry of the pattern, with one number per row of its group");
    want(std::int64_t(out.shape(0)) == pattern.rows(), "out: want a row per row of the matrix");
    Array<const T, 1> scales, biases;
    const T *scale = optional<T>(scale_, "scale", pattern.rows(), scales);
    const T *bias = optional<T>(bias_, "bias", pattern.rows(), biases);
    if (pattern.groups == 0 || batch == 0) return;
    if (tile <= 0) tile = batch;
    const T *x = windows ? line.data() : table.data();
    nb::gil_scoped_release unlocked;
    auto run = [&](const auto *index) {
        SparseRows<T, std::decay_t<decltype(*index)>, Value> w{
            pattern.ptr.data(), index, reinterpret_cast<const Value *>(value.data()), pattern.groups,
            windows ? 1 : batch, scale, bias, windows ? 0 : pattern.columns,
            windows || pattern.cut.empty() ? nullptr : pattern.cut.data(), pattern.block,
            pattern.order.empty() ? nullptr : pattern.order.data()};
        with_group(pattern.group, [&](auto r) {
            sparse_product<decltype(r)::value>(w, x, batch, out.data(), batch, tile, n_threads);
        });
    };
    pattern.is_narrow() ? run(pattern.narrow.data()) : run(pattern.wide.data());
}

// The product for arrays that are as they should be, x being a vector or [columns, batch], or [batch, columns] where
// `by_rows`; false and nothing done for others. Small products would spend most of their time in words about arguments.
bool quick(const Pattern &pattern, nb::handle value_, nb::handle x_, nb::handle out_, nb::handle scale_,
           nb::handle bias_, std::int64_t tile, int n_threads, bool by_rows) {
    using Any = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
    Any value, x, row[2];
    nb::ndarray<nb::c_contig, nb::device::cpu> out;
    if (!nb::try_cast(x_, x, false) || !nb::try_cast(value_, value, false) || !nb::try_cast(out_, out, false)) return false;
    if (x.ndim() < 1 || x.ndim() > 2 || out.ndim() != x.ndim() || value.ndim() != 2) return false;
    const std::size_t features = by_rows ? x.ndim() - 1 : 0;  // the axis of each
    const std::int64_t batch = x.ndim() == 1 ? 1 : x.shape(1 - features), rows = pattern.rows();
    if (std::int64_t(x.shape(features)) != pattern.columns || std::int64_t(out.shape(features)) != rows ||
        out.dtype() != x.dtype() || (x.ndim() == 2 && std::int64_t(out.shape(1 - features)) != batch) ||
        std::int64_t(value.shape(0)) != pattern.entries() || std::int64_t(value.shape(1)) != pattern.group)
        return false;
    for (int i = 0; i < 2; ++i) {
        nb::handle given = i == 0 ? scale_ : bias_;
        if (given.is_none()) continue;
        if (!nb::try_cast(given, row[i], false) || row[i].dtype() != x.dtype() || row[i].ndim() != 1 ||
            std::int64_t(row[i].shape(0)) != rows)
            return false;
    }
    auto run = [&](auto number, auto stored) {
        using T = decltype(number);
        using Value = decltype(stored);
        if (pattern.groups == 0 || batch == 0) return true;
        auto data = [](const Any &array) { return static_cast<const T *>(array.data()); };
        nb::gil_scoped_release unlocked;
        auto over = [&](const auto *index) {
            SparseRows<T, std::decay_t<decltype(*index)>, Value> w{
                pattern.ptr.data(), index, static_cast<const Value *>(value.data()), pattern.groups, batch,
                scale_.is_none() ? nullptr : data(row[0]), bias_.is_none() ? nullptr : data(row[1]), pattern.columns,
                pattern.cut.empty() ? nullptr : pattern.cut.data(), pattern.block,
                pattern.order.empty() ? nullptr : pattern.order.data()};
            T *to = static_cast<T *>(out.data());
            with_group(pattern.group, [&](auto r) {
                constexpr int R = decltype(r)::value;
                if (by_rows && batch > 1)
                    batch_product<R>(w, data(x), batch, to, n_threads);
                else
                    sparse_product<R>(w, data(x), batch, to, batch, tile > 0 ? tile : batch, n_threads);
            });
        };
        pattern.is_narrow() ? over(pattern.narrow.data()) : over(pattern.wide.data());
        return true;
    };
    if (x.dtype() == nb::dtype<float>()) {
        if (value.dtype() == nb::dtype<float>()) return run(float(), float());
        if (value.dtype() == nb::dtype<std::int8_t>()) return run(float(), std::int8_t());
        if (value.dtype() == nb::dtype<std::uint16_t>()) return run(float(), BFloat16());
    } else if (x.dtype() == nb::dtype<double>() && value.dtype() == nb::dtype<double>()) {
        return run(double(), double());
    }
    return false;
}

template <class T>
void gradient(const Pattern &pattern, nb::handle grad_, nb::handle x_, nb::handle out_, int n_threads, bool by_rows) {
    auto grad = take<const T, 2>(grad_, "grad");
    auto x = take<const T, 2>(x_, "x");
    auto out = take<T, 2>(out_, "out");
    const std::size_t features = by_rows ? 1 : 0;  // the axis of each
    want(std::int64_t(out.shape(0)) == pattern.entries() && std::int64_t(out.shape(1)) == pattern.group,
         "out: want a row per entry of the pattern, with one number per row of its group");
    want(std::int64_t(x.shape(features)) == pattern.columns, "x: want a feature per column of the matrix");
    want(std::int64_t(grad.shape(features)) == pattern.rows() && grad.shape(1 - features) == x.shape(1 - features),
         "grad: want a feature per row of the matrix, and the batch of x");
    if (pattern.entries() == 0) return;
    const std::int64_t batch = x.shape(1 - features);
    std::fill_n(out.data(), batch == 0 ? pattern.entries() * pattern.group : 0, T(0));
    nb::gil_scoped_release unlocked;
    auto run = [&](const auto *index) {
        SparseRows<T, std::decay_t<decltype(*index)>, T> w{
            pattern.ptr.data(), index, nullptr, pattern.groups, batch, nullptr, nullptr, pattern.columns,
            pattern.cut.empty() ? nullptr : pattern.cut.data(), pattern.block, nullptr};
        with_group(pattern.group, [&](auto r) {
            constexpr int R = decltype(r)::value;
            if (by_rows)
                batch_gradient<R>(w, grad.data(), x.data(), batch, out.data(), n_threads);
            else
                values_gradient<R>(w, grad.data(), x.data(), batch, out.data(), n_threads);
        });
    };
    pattern.is_narrow() ? run(pattern.narrow.data()) : run(pattern.wide.data());
}

template <class T> void turned(nb::handle x_, nb::handle out_, int n_threads) {
    auto x = take<const T, 2>(x_, "x");
    auto out = take<T, 2>(out_, "out");
    want(out.shape(0) == x.shape(1) && out.shape(1) == x.shape(0), "out: want the axes of x, exchanged");
    nb::gil_scoped_release unlocked;
    const std::int64_t rows = x.shape(0), columns = x.shape(1);
    turn(x.data(), rows, columns, columns, out.data(), rows, n_threads);
}

}  // namespace

void bind_sparse_product(nb::module_ &m) {
    nb::class_<Pattern>(m, "Pattern", "The stored places of a matrix by groups of rows; checked once, then fixed.")
        .def("__init__", &make, nb::arg("ptr"), nb::arg("index"), nb::arg("group"), nb::arg("columns"),
             nb::arg("order").none() = nb::none())
        .def("quick", &quick, nb::arg("value"), nb::arg("x"), nb::arg("out"), nb::arg("scale").none(),
             nb::arg("bias").none(), nb::arg("tile"), nb::arg("n_threads"), nb::arg("by_rows") = false,
             "sparse_product for arrays that fit, x a vector or [columns, batch], or [batch, columns] where by_rows;\n"
             "False, and nothing done, for others.");
    m.def(
        "sparse_product",
        [](const Pattern &pattern, nb::handle value, nb::handle x, nb::handle out, nb::handle scale, nb::handle bias,
           std::int64_t tile, int n_threads) {
            auto run = holds<double>(x)               ? product<double, double, double>
                       : holds<std::int8_t>(value)    ? product<float, std::int8_t, std::int8_t>
                       : holds<std::uint16_t>(value)  ? product<float, BFloat16, std::uint16_t>
                                                      : product<float, float, float>;
            run(pattern, value, x, out, scale, bias, tile, n_threads);
        },
        nb::arg("pattern"), nb::arg("value"), nb::arg("x"), nb::arg("out"), nb::arg("scale").none(),
        nb::arg("bias").none(), nb::arg("tile") = 0, nb::arg("n_threads") = 0,
        "out = diag(scale) W x + bias; x and out are feature-major. value [entries, group] is float32, float64, int8 or\n"
        "bfloat16 (as uint16), of which the last two are widened and summed in float32.");
    m.def(
        "values_gradient",
        [](const Pattern &pattern, nb::handle grad, nb::handle x, nb::handle out, int n_threads, bool by_rows) {
            (holds<double>(x) ? gradient<double> : gradient<float>)(pattern, grad, x, out, n_threads, by_rows);
        },
        nb::arg("pattern"), nb::arg("grad"), nb::arg("x"), nb::arg("out"), nb::arg("n_threads") = 0,
        nb::arg("by_rows") = false,
        "out[k, r] = <grad[row r of the group of k], x[column of k]>, the gradient of the stored values; grad and x are\n"
        "[features, batch], or [batch, features] where by_rows.");
    m.def(
        "turn",
        [](nb::handle x, nb::handle out, int n_threads) {
            (holds<double>(x) ? turned<double> : turned<float>)(x, out, n_threads);
        },
        nb::arg("x"), nb::arg("out"), nb::arg("n_threads") = 0, "out = x', both C-contiguous.");
}
