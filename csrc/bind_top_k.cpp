// top_k(x, values, indices, n_threads): rows of x -> their k largest, k being the width of the outputs.
#include <exception>

#include "arrays.hpp"
#include "threads.hpp"
#include "top_k.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace {

template <class T>
void rows_top_k(const T *x, T *values, std::int64_t *indices, std::int64_t rows, std::int64_t n, std::int64_t k,
                int asked) {
    auto run = [=](std::int64_t from, std::int64_t to) {
        RowTopK<T> top_k(n, k);
        for (std::int64_t r = from; r < to; ++r) top_k(x + r * n, values + r * k, indices + r * k);
    };
    int threads = static_cast<int>(std::min<std::int64_t>(rows, threads_for(rows * n, asked)));
    in_parts(rows, threads, run);
}

template <class T> void top_k(nb::handle x_, nb::handle values_, nb::handle indices_, int n_threads) {
    auto x = take<const T, 2>(x_, "x");
    auto values = take<T, 2>(values_, "values");
    auto indices = take<std::int64_t, 2>(indices_, "indices");
    std::int64_t rows = x.shape(0), n = x.shape(1), k = values.shape(1);
    want(std::int64_t(values.shape(0)) == rows, "values: want as many rows as x");
    want(indices.shape(0) == values.shape(0) && indices.shape(1) == values.shape(1),
         "indices: want the shape of values");
    want(k <= n, "values: want at most as many columns as x");
    if (rows == 0 || k == 0) return;
    nb::gil_scoped_release unlocked;
    rows_top_k(x.data(), values.data(), indices.data(), rows, n, k, n_threads);
}

}  // namespace

void bind_top_k(nb::module_ &m) {
    m.def(
        "top_k",
        [](nb::handle x, nb::handle values, nb::handle indices, int n_threads) {
            holds<double>(x) ? top_k<double>(x, values, indices, n_threads)
                             : top_k<float>(x, values, indices, n_threads);
        },
        nb::arg("x").none(), nb::arg("values").none(), nb::arg("indices").none(), nb::arg("n_threads") = 0,
        "Writes the k largest of each row of x, descending, ties by lowest index, and where they stand.\n\n"
        "k is the width of values. float32 or float64, C-contiguous, read in place; n_threads <= 0 means all.");
}
