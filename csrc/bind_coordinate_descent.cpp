// coordinate_descent in Gram space and column_descent on a sparse matrix: in place, serial.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "coordinate_descent.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace {

template <class T>
std::pair<std::int64_t, double> descend(nb::handle gram_, nb::handle w_, nb::handle gradient_, nb::handle weights_,
                                        const std::string &name, const std::vector<double> &params, bool positive,
                                        double tol, std::int64_t max_sweeps) {
    auto gram = take<const T, 2>(gram_, "gram");
    auto w = take<T, 1>(w_, "w");
    auto gradient = take<T, 1>(gradient_, "gradient");
    auto weights = weights_.is_none() ? Array<const T, 1>() : take<const T, 1>(weights_, "weights");
    const std::size_t size = w.shape(0);
    want(gram.shape(0) >= size && gram.shape(1) >= size, "gram: want at least as many rows and columns as w");
    want(gradient.shape(0) == size, "gradient: want the length of w");
    want(weights_.is_none() || weights.shape(0) == size, "weights: want the length of w");
    nb::gil_scoped_release unlocked;
    const Descent<T> done = penalties::dispatch<T>(name, params.data(), params.size(), [&](const auto &penalty) {
        using Penalty = std::decay_t<decltype(penalty)>;
        GramDescent<T, Penalty> descent(penalty, gram.data(), std::int64_t(gram.shape(1)), std::int64_t(size),
                                        weights_.is_none() ? nullptr : weights.data(), positive, w.data(),
                                        gradient.data());
        return descent.run(T(tol), max_sweeps);
    });
    return {done.sweeps, double(done.change)};
}

template <class T, class I>
std::pair<std::int64_t, double> descend_columns(const nb::tuple &matrix, nb::handle index_, nb::handle curvature_,
                                                const nb::object &centring, nb::handle w_, nb::handle residual_,
                                                nb::handle weights_, const std::string &name,
                                                const std::vector<double> &params, bool positive, double tol,
                                                std::int64_t max_sweeps) {
    auto data = take<const T, 1>(matrix[0], "data");
    auto rows = take<const I, 1>(matrix[1], "rows"), starts = take<const I, 1>(matrix[2], "starts");
    auto index = take<const std::int64_t, 1>(index_, "index");
    auto curvature = take<const T, 1>(curvature_, "curvature");
    auto w = take<T, 1>(w_, "w"), residual = take<T, 1>(residual_, "residual");
    auto weights = weights_.is_none() ? Array<const T, 1>() : take<const T, 1>(weights_, "weights");
    Array<const T, 1> means, sums, ones;
    const std::size_t size = w.shape(0), n = residual.shape(0);
    if (!centring.is_none()) {
        const nb::tuple parts = nb::cast<nb::tuple>(centring);
        means = take<const T, 1>(parts[0], "means"), sums = take<const T, 1>(parts[1], "sums");
        ones = take<const T, 1>(parts[2], "ones");
        want(means.shape(0) == size && sums.shape(0) == size && ones.shape(0) == n, "centring: want it to fit w and n");
    }
    want(index.shape(0) == size && curvature.shape(0) == size, "index: want the length of w");
    want(weights_.is_none() || weights.shape(0) == size, "weights: want the length of w");
    want(rows.shape(0) == data.shape(0) && starts.shape(0) > 0, "rows: want the length of data");
    for (std::size_t i = 0; i < size; ++i) {
        const std::int64_t j = index.data()[i];
        want(j >= 0 && std::size_t(j) + 1 < starts.shape(0), "index: want numbers of columns");
        const I from = starts.data()[j], to = starts.data()[j + 1];
        want(from >= 0 && from <= to && std::size_t(to) <= data.shape(0), "starts: want places in data");
        for (I k = from; k < to; ++k)
            want(rows.data()[k] >= 0 && std::size_t(rows.data()[k]) < n, "rows: want numbers of rows");
    }
    const bool centred = !centring.is_none();
    const SparseColumns<T, I> x{data.data(), rows.data(), starts.data(), index.data(), curvature.data(),
                                centred ? means.data() : nullptr, centred ? sums.data() : nullptr,
                                centred ? ones.data() : nullptr};
    nb::gil_scoped_release unlocked;
    const Descent<T> done = penalties::dispatch<T>(name, params.data(), params.size(), [&](const auto &penalty) {
        using Penalty = std::decay_t<decltype(penalty)>;
        ColumnDescent<T, I, Penalty> descent(penalty, x, std::int64_t(n), std::int64_t(size),
                                             weights_.is_none() ? nullptr : weights.data(), positive, w.data(),
                                             residual.data());
        return descent.run(T(tol), max_sweeps);
    });
    return {done.sweeps, double(done.change)};
}

}  // namespace

void bind_coordinate_descent(nb::module_ &m) {
    m.def(
        "coordinate_descent",
        [](nb::handle gram, nb::handle w, nb::handle gradient, nb::handle weights, const std::string &name,
           const std::vector<double> &params, bool positive, double tol, std::int64_t max_sweeps) {
            auto run = holds<float>(gram) ? descend<float> : descend<double>;
            return run(gram, w, gradient, weights, name, params, positive, tol, max_sweeps);
        },
        nb::arg("gram"), nb::arg("w"), nb::arg("gradient"), nb::arg("weights").none(), nb::arg("name"),
        nb::arg("params"), nb::arg("positive"), nb::arg("tol"), nb::arg("max_sweeps"),
        "Coordinate descent on w' G w / 2 - c' w + penalty, in place; gradient is G w - c.\n\n"
        "gram may be larger than w: its upper left block counts. Returns the sweeps and the last full sweep's change.");
    m.def(
        "column_descent",
        [](const nb::tuple &matrix, nb::handle index, nb::handle curvature, const nb::object &centring, nb::handle w,
           nb::handle residual, nb::handle weights, const std::string &name, const std::vector<double> &params,
           bool positive, double tol, std::int64_t max_sweeps) {
            const bool wide = holds<std::int64_t>(matrix[1]), single = holds<float>(matrix[0]);
            auto run = single ? (wide ? descend_columns<float, std::int64_t> : descend_columns<float, std::int32_t>)
                              : (wide ? descend_columns<double, std::int64_t> : descend_columns<double, std::int32_t>);
            return run(matrix, index, curvature, centring, w, residual, weights, name, params, positive, tol,
                       max_sweeps);
        },
        nb::arg("matrix"), nb::arg("index"), nb::arg("curvature"), nb::arg("centring").none(), nb::arg("w"),
        nb::arg("residual"), nb::arg("weights").none(), nb::arg("name"), nb::arg("params"), nb::arg("positive"),
        nb::arg("tol"), nb::arg("max_sweeps"),
        "Coordinate descent on |y - X w|^2 / (2 n) + penalty over some columns of a CSC matrix (data, rows, starts).\n\n"
        "centring: None, or (means, sums, ones) of those columns. w and residual in place; returns as coordinate_descent.");
}
