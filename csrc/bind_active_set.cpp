// active_set(...): the exact minimum on a working set, in place, with the Cholesky factor kept by the caller.
#include <nanobind/stl/pair.h>

#include <utility>

#include "active_set.hpp"
#include "arrays.hpp"

namespace nb = nanobind;
using namespace ellzero;
using ellzero::active_set::ActiveSet;
using ellzero::active_set::Factor;

namespace {

template <class T>
std::pair<std::int64_t, bool> exact(nb::handle gram_, nb::handle w_, nb::handle gradient_, nb::handle bounds_,
                                    nb::handle ridge_, bool positive, nb::handle order_, nb::handle factor_,
                                    std::int64_t count, double tol, std::int64_t max_rounds) {
    const auto gram = take<const T, 2>(gram_, "gram");
    const auto w = take<T, 1>(w_, "w");
    const auto gradient = take<T, 1>(gradient_, "gradient");
    const auto bounds = take<const double, 1>(bounds_, "bounds");
    const auto ridge = take<const double, 1>(ridge_, "ridge");
    const auto order = take<std::int64_t, 1>(order_, "order");
    const auto rows = take<double, 2>(factor_, "factor");
    const std::size_t size = w.shape(0);
    want(gram.shape(0) >= size && gram.shape(1) >= size, "gram: want at least as many rows and columns as w");
    want(gradient.shape(0) == size, "gradient: want the length of w");
    want(bounds.shape(0) == size && ridge.shape(0) == size, "bounds: want the length of w");
    want(rows.shape(0) == rows.shape(1) && order.shape(0) == rows.shape(0), "factor: want it square, order as long");
    want(count >= 0 && std::size_t(count) <= order.shape(0), "count: want at most the size of the factor");
    for (std::int64_t i = 0; i < count; ++i)
        want(order.data()[i] >= 0 && std::size_t(order.data()[i]) < gram.shape(0), "order: want places within gram");
    nb::gil_scoped_release unlocked;
    Factor<T> factor(gram.data(), std::int64_t(gram.shape(1)), ridge.data(), order.data(), rows.data(),
                     std::int64_t(rows.shape(1)), count);
    ActiveSet<T> active(factor, gram.data(), std::int64_t(gram.shape(1)), std::int64_t(size), bounds.data(),
                        ridge.data(), positive, w.data(), gradient.data());
    const bool ended = active.run(tol, max_rounds);
    return {factor.count(), ended};
}

}  // namespace

void bind_active_set(nb::module_ &m) {
    m.def(
        "active_set",
        [](nb::handle gram, nb::handle w, nb::handle gradient, nb::handle bounds, nb::handle ridge, bool positive,
           nb::handle order, nb::handle factor, std::int64_t count, double tol, std::int64_t max_rounds) {
            auto run = holds<float>(gram) ? exact<float> : exact<double>;
            return run(gram, w, gradient, bounds, ridge, positive, order, factor, count, tol, max_rounds);
        },
        nb::arg("gram"), nb::arg("w"), nb::arg("gradient"), nb::arg("bounds"), nb::arg("ridge"), nb::arg("positive"),
        nb::arg("order"), nb::arg("factor"), nb::arg("count"), nb::arg("tol"), nb::arg("max_rounds"),
        "Exact minimum of w' G w / 2 - c' w + sum_j (bounds_j |w_j| + ridge_j w_j^2 / 2), in place.\n\n"
        "The first `count` rows of factor are the Cholesky factor of the coordinates in `order`. Returns the new count "
        "and whether it ended within max_rounds.");
}
