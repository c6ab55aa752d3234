// coordinate_descent(gram, w, gradient, weights, name, params, positive, tol, max_sweeps): in place, serial.
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
}
