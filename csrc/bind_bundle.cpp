// bundle_step(metrics, which, own, gradient, gradient0, l1, l2, accuracy, max_sweeps, w, intercept, n_threads)
#include <nanobind/stl/vector.h>

#include <vector>

#include "arrays.hpp"
#include "bundle.hpp"
#include "threads.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace {

bundle::Metric metric_of(nb::tuple fields, std::int64_t width) {
    want(fields.size() == 5, "metrics: want (gram, inverse or None, columns, tilt, mass)");
    auto gram = take<const float, 2>(fields[0], "gram");
    auto columns = take<const std::int64_t, 1>(fields[2], "columns");
    auto tilt = take<const double, 1>(fields[3], "tilt");
    const std::size_t size = columns.shape(0);
    want(gram.shape(0) >= size && gram.shape(1) >= size, "gram: want at least as many rows and columns as columns");
    want(tilt.shape(0) == size, "tilt: want the length of columns");
    bundle::Metric metric{gram.data(), nullptr, columns.data(), tilt.data(), nb::cast<double>(fields[4]),
                          std::int64_t(size), std::int64_t(gram.shape(1))};
    if (!fields[1].is_none()) {
        auto inverse = take<const float, 2>(fields[1], "inverse");
        want(inverse.shape(0) >= size && inverse.shape(1) == gram.shape(1), "inverse: want the width of gram");
        metric.inverse = inverse.data();
    }
    for (std::size_t k = 0; k < size; ++k)
        want(metric.columns[k] >= 0 && metric.columns[k] < width, "columns: want positions in a row of w");
    return metric;
}

void step(nb::list metrics_, nb::handle which_, nb::handle own_, nb::handle gradient_, nb::handle gradient0_,
          nb::handle scale_, nb::handle l1_, nb::handle l2_, double accuracy, std::int64_t max_sweeps, nb::handle w_,
          nb::handle intercept_, nb::handle sweeps_, int n_threads) {
    auto w = take<double, 2>(w_, "w");
    const std::size_t problems = w.shape(0), width = w.shape(1);
    auto which = take<const std::int64_t, 1>(which_, "which");
    auto own = take<const bool, 2>(own_, "own");
    auto gradient = take<const double, 2>(gradient_, "gradient");
    auto gradient0 = take<const double, 1>(gradient0_, "gradient0");
    auto scale = take<const double, 1>(scale_, "scale");
    auto l1 = take<const double, 1>(l1_, "l1");
    auto l2 = take<const double, 1>(l2_, "l2");
    auto intercept = take<double, 1>(intercept_, "intercept");
    auto sweeps = take<std::int64_t, 1>(sweeps_, "sweeps");
    for (std::size_t size : {which.shape(0), own.shape(0), gradient.shape(0), gradient0.shape(0), scale.shape(0), l1.shape(0),
                             l2.shape(0), intercept.shape(0), sweeps.shape(0)})
        want(size == problems, "w: want one row for each problem, as in every other array");
    want(own.shape(1) == width && gradient.shape(1) == width, "own, gradient: want the shape of w");
    std::vector<bundle::Metric> metrics;
    for (nb::handle fields : metrics_) metrics.push_back(metric_of(nb::cast<nb::tuple>(fields), std::int64_t(width)));
    std::int64_t work = 0;
    for (std::size_t b = 0; b < problems; ++b) {
        const std::int64_t m = which.data()[b];
        want(m >= 0 && m < std::int64_t(metrics.size()), "which: want positions in metrics");
        work += 10 * metrics[m].size * metrics[m].size;
    }
    nb::gil_scoped_release unlocked;
    const bundle::Options options{accuracy, max_sweeps};
    in_parts(std::int64_t(problems), int(std::min<std::int64_t>(problems, threads_for(work, n_threads))),
             [&](std::int64_t from, std::int64_t to) {
                 bundle::Step one;
                 for (std::int64_t b = from; b < to; ++b)
                     sweeps.data()[b] = one.run(metrics[which.data()[b]], own.data() + b * width,
                                                gradient.data() + b * width, gradient0.data()[b], scale.data()[b], l1.data()[b],
                                                l2.data()[b], options, w.data() + b * width, intercept.data() + b);
             });
}

}  // namespace

void bind_bundle(nb::module_ &m) {
    m.def("bundle_step", &step, nb::arg("metrics"), nb::arg("which"), nb::arg("own"), nb::arg("gradient"),
          nb::arg("gradient0"), nb::arg("scale"), nb::arg("l1"), nb::arg("l2"), nb::arg("accuracy"), nb::arg("max_sweeps"),
          nb::arg("w"), nb::arg("intercept"), nb::arg("sweeps"), nb::arg("n_threads") = 0,
          "One model step of every problem (a row of w), in place; metrics are (gram, inverse, columns, tilt, mass).\n\n"
          "float32 Gram blocks, float64 state; n_threads <= 0 means all, and the result does not depend on it.");
}
