// nm_product(place, value, x, out, bias, columns, n, m, bits, tile, n_threads): see nm_product.hpp.
#include <string>

#include "arrays.hpp"
#include "nm_product.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace ellzero {
template <> inline const char *dtype_name<std::uint8_t>() { return "uint8"; }
}  // namespace ellzero

namespace {

template <class T>
void product(nb::handle place_, nb::handle value_, nb::handle x_, nb::handle out_, nb::handle bias_, std::int64_t n,
             std::int64_t m, int bits, std::int64_t tile, int n_threads) {
    auto place = take<const std::uint8_t, 2>(place_, "place");
    auto value = take<const T, 2>(value_, "value");
    auto x = take<const T, 2>(x_, "x");
    auto out = take<T, 2>(out_, "out");
    Array<const T, 1> biases;
    if (!bias_.is_none()) biases = take<const T, 1>(bias_, "bias");
    const std::int64_t rows = value.shape(0), columns = x.shape(0), batch = x.shape(1);
    want((bits == 2 || bits == 4 || bits == 8) && n >= 1 && n <= m && m <= (std::int64_t(1) << bits),
         "bits: want 2, 4 or 8 with m at most 2^bits, and n from 1 to m");
    want(columns % m == 0, "x: want a multiple of m rows");
    want(std::int64_t(value.shape(1)) == columns / m * n, "value: want n columns for every m rows of x");
    want(std::int64_t(place.shape(0)) == rows && std::int64_t(place.shape(1)) == (std::int64_t(value.shape(1)) * bits + 7) / 8,
         "place: want the packed places of every row");
    want(std::int64_t(out.shape(0)) == rows && out.shape(1) == x.shape(1), "out: want a row per row of value");
    want(bias_.is_none() || std::int64_t(biases.shape(0)) == rows, "bias: want one per row");
    if (rows == 0 || batch == 0) return;
    if (tile <= 0) tile = batch;
    NMRows<T> w{rows, columns, n, m, bits, place.data(), value.data(), bias_.is_none() ? nullptr : biases.data()};
    nb::gil_scoped_release unlocked;
    nm_product(w, x.data(), batch, out.data(), tile, n_threads);
}

}  // namespace

void bind_nm_product(nb::module_ &m) {
    m.def(
        "nm_product",
        [](nb::handle place, nb::handle value, nb::handle x, nb::handle out, nb::handle bias, std::int64_t n,
           std::int64_t m_, int bits, std::int64_t tile, int n_threads) {
            (holds<double>(x) ? product<double> : product<float>)(place, value, x, out, bias, n, m_, bits, tile, n_threads);
        },
        nb::arg("place"), nb::arg("value"), nb::arg("x"), nb::arg("out"), nb::arg("bias").none(), nb::arg("n"),
        nb::arg("m"), nb::arg("bits"), nb::arg("tile") = 0, nb::arg("n_threads") = 0,
        "out = W x + bias for an N:M matrix; x and out are feature-major, places within m neighbours take `bits`\n"
        "bits each, m being at most 2^bits.");
}
