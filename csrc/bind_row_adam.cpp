// One optimiser step over the rows of a matrix, in place.
#include "arrays.hpp"
#include "row_adam.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace {

template <class T>
void step(nb::handle W_, nb::handle gradient_, nb::handle first_, nb::handle second_, double rate, double root,
          double eps, double beta1, double beta2, double clip, bool unit_norm, bool skip_zero, int n_threads) {
    auto W = take<T, 2>(W_, "W");
    auto gradient = take<const T, 2>(gradient_, "gradient");
    auto first = take<T, 2>(first_, "first");
    auto second = take<T, 2>(second_, "second");
    auto same = [&](const auto &x) { return x.shape(0) == W.shape(0) && x.shape(1) == W.shape(1); };
    want(same(gradient), "gradient: want the shape of W");
    want(same(first), "first: want the shape of W");
    want(same(second), "second: want the shape of W");
    const Adam<T> by{T(rate), T(root), T(eps), T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(clip), unit_norm,
                     skip_zero};
    const std::int64_t rows = W.shape(0), d = W.shape(1);
    nb::gil_scoped_release unlocked;
    row_adam(W.data(), gradient.data(), first.data(), second.data(), rows, d, by, n_threads);
}

template <class T> void squared(nb::handle gradient_, nb::handle W_, nb::handle squares_, int n_threads) {
    auto gradient = take<const T, 2>(gradient_, "gradient");
    auto squares = take<double, 1>(squares_, "squares");
    const std::int64_t rows = gradient.shape(0), d = gradient.shape(1);
    Array<const T, 2> kept;
    if (!W_.is_none()) {
        kept = take<const T, 2>(W_, "W");
        want(std::int64_t(kept.shape(0)) == rows && std::int64_t(kept.shape(1)) == d, "W: want the shape of gradient");
    }
    want(std::int64_t(squares.shape(0)) == rows, "squares: want one per row of gradient");
    const T *W = W_.is_none() ? nullptr : kept.data();
    nb::gil_scoped_release unlocked;
    row_squares(gradient.data(), W, rows, d, squares.data(), n_threads);
}

}  // namespace

void bind_row_adam(nb::module_ &m) {
    m.def(
        "row_adam",
        [](nb::handle W, nb::handle gradient, nb::handle first, nb::handle second, double rate, double root, double eps,
           double beta1, double beta2, double clip, bool unit_norm, bool skip_zero, int n_threads) {
            (holds<double>(W) ? step<double> : step<float>)(W, gradient, first, second, rate, root, eps, beta1, beta2,
                                                            clip, unit_norm, skip_zero, n_threads);
        },
        nb::arg("W").none(), nb::arg("gradient").none(), nb::arg("first").none(), nb::arg("second").none(),
        nb::arg("rate"), nb::arg("root"), nb::arg("eps"), nb::arg("beta1"), nb::arg("beta2"), nb::arg("clip"),
        nb::arg("unit_norm"), nb::arg("skip_zero"), nb::arg("n_threads") = 0,
        "One step of Adam on W and its moments, in place: rate = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t).");
    m.def(
        "row_squares",
        [](nb::handle gradient, nb::handle W, nb::handle squares, int n_threads) {
            (holds<double>(gradient) ? squared<double> : squared<float>)(gradient, W, squares, n_threads);
        },
        nb::arg("gradient").none(), nb::arg("W").none(), nb::arg("squares").none(), nb::arg("n_threads") = 0,
        "The squared norms of rows, with W without the component along its rows of norm 1.");
}
