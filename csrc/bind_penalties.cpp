// prox_each, penalty_each, distance_each: a scalar penalty by name on the entries of a vector.
//
// `params` are what the dataclass calls compiled; `step` and `weights` have one entry or as many as x.
#include <nanobind/stl/string.h>

#include <string>

#include "arrays.hpp"
#include "penalties.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace {

// A vector of n entries, or of one that stands for all.
template <class T> struct Spread {
    const T *data;
    std::size_t stride;
    Spread(const Array<const T, 1> &array, std::size_t n, const char *message)
        : data(array.data()), stride(array.shape(0) == 1 ? 0 : 1) {
        want(array.shape(0) == 1 || array.shape(0) == n, message);
    }
    T operator[](std::size_t i) const { return data[i * stride]; }
};

template <class T, class Loop>
void each(const std::string &name, nb::handle params_, nb::handle x_, nb::handle weights_, nb::handle out_,
          Loop &&loop) {
    const auto params = take<const double, 1>(params_, "params");
    const auto x = take<const T, 1>(x_, "x");
    const auto weights_array = take<const T, 1>(weights_, "weights");
    const auto out = take<T, 1>(out_, "out");
    const std::size_t n = x.shape(0);
    want(out.shape(0) == n, "out: want as many entries as x");
    const Spread<T> weights(weights_array, n, "weights: want one entry or as many as x");
    const T *from = x.data();
    T *to = out.data();
    penalties::dispatch<T>(name, params.data(), params.shape(0), [&](const auto &penalty) {
        nb::gil_scoped_release unlocked;
        for (std::size_t i = 0; i < n; ++i) to[i] = loop(penalty, i, from[i], weights[i]);
    });
}

template <class T>
void prox_each(const std::string &name, nb::handle params, nb::handle x, nb::handle step_, nb::handle weights,
               bool positive, nb::handle out) {
    const auto step_array = take<const T, 1>(step_, "step");
    const Spread<T> step(step_array, take<const T, 1>(x, "x").shape(0), "step: want one entry or as many as x");
    each<T>(name, params, x, weights, out, [&](const auto &penalty, std::size_t i, T value, T weight) {
        return penalties::prox(penalty, value, step[i], weight, positive);
    });
}

template <class T>
void penalty_each(const std::string &name, nb::handle params, nb::handle x, nb::handle weights, bool positive,
                  nb::handle out) {
    each<T>(name, params, x, weights, out, [&](const auto &penalty, std::size_t, T value, T weight) {
        return penalties::value(penalty, value, weight, positive);
    });
}

template <class T>
void distance_each(const std::string &name, nb::handle params, nb::handle w, nb::handle gradient_, nb::handle weights,
                   bool positive, nb::handle out) {
    const auto gradient = take<const T, 1>(gradient_, "gradient");
    const T *slope = gradient.data();
    want(gradient.shape(0) == take<const T, 1>(w, "x").shape(0), "gradient: want as many entries as x");
    each<T>(name, params, w, weights, out, [&](const auto &penalty, std::size_t i, T value, T weight) {
        return penalties::subdifferential_distance(penalty, value, slope[i], weight, positive);
    });
}

}  // namespace

void bind_penalties(nb::module_ &m) {
    m.def(
        "prox_each",
        [](const std::string &name, nb::handle params, nb::handle x, nb::handle step, nb::handle weights,
           bool positive, nb::handle out) {
            holds<double>(x) ? prox_each<double>(name, params, x, step, weights, positive, out)
                             : prox_each<float>(name, params, x, step, weights, positive, out);
        },
        nb::arg("name"), nb::arg("params"), nb::arg("x"), nb::arg("step"), nb::arg("weights"), nb::arg("positive"),
        nb::arg("out"), "Writes the prox of each entry of x: the global minimiser of (w - x)^2 / 2 + step weight p(w).");
    m.def(
        "penalty_each",
        [](const std::string &name, nb::handle params, nb::handle x, nb::handle weights, bool positive,
           nb::handle out) {
            holds<double>(x) ? penalty_each<double>(name, params, x, weights, positive, out)
                             : penalty_each<float>(name, params, x, weights, positive, out);
        },
        nb::arg("name"), nb::arg("params"), nb::arg("x"), nb::arg("weights"), nb::arg("positive"), nb::arg("out"),
        "Writes the penalty of each entry of x.");
    m.def(
        "distance_each",
        [](const std::string &name, nb::handle params, nb::handle x, nb::handle gradient, nb::handle weights,
           bool positive, nb::handle out) {
            holds<double>(x) ? distance_each<double>(name, params, x, gradient, weights, positive, out)
                             : distance_each<float>(name, params, x, gradient, weights, positive, out);
        },
        nb::arg("name"), nb::arg("params"), nb::arg("x"), nb::arg("gradient"), nb::arg("weights"),
        nb::arg("positive"), nb::arg("out"),
        "Writes how far -gradient is from the subdifferential of the penalty at each entry of x.");
}
