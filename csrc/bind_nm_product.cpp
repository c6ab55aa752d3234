// nm_product(place, value, x, out, bias, columns, n, m, bits, tile, n_threads): see nm_product.hpp.
#include <string>

#include "arrays.hpp"
#include "nm_product.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace ellzero {
template <> inline const char *dtype_name<std::uint8_t>() { return "uint8"; }
template <> inline const char *dtype_name<std::uint16_t>() { return "uint16"; }
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

// x is W's right side; or, `turned`, that of its transpose.
template <class T>
void grouped(nb::handle row_, nb::handle seat_, nb::handle place_, nb::handle value_, nb::handle x_, nb::handle out_, nb::handle bias_,
             std::int64_t m, std::int64_t chunk, bool turned, int n_threads) {
    auto row = take<const std::uint16_t, 2>(row_, "row");
    auto seat = take<const std::uint16_t, 2>(seat_, "seat");
    auto place = take<const std::uint8_t, 2>(place_, "place");
    auto value = take<const T, 2>(value_, "value");
    auto x = take<const T, 2>(x_, "x");
    auto out = take<T, 2>(out_, "out");
    Array<const T, 1> biases;
    if (!bias_.is_none()) biases = take<const T, 1>(bias_, "bias");
    const std::int64_t rows = turned ? x.shape(0) : out.shape(0), columns = turned ? out.shape(0) : x.shape(0);
    const std::int64_t n = place.shape(1), batch = x.shape(1);
    want(m >= 1 && chunk >= 1 && n >= 1 && rows % chunk == 0 && columns % m == 0, "rows and columns: want whole chunks");
    want(std::int64_t(row.shape(0)) == rows / chunk * (columns / m) && std::int64_t(row.shape(1)) == chunk,
         "row: want the rows of every chunk");
    want(seat.shape(0) == row.shape(0) && seat.shape(1) == row.shape(1), "seat: want the shape of row");
    want(std::int64_t(place.shape(0)) == chunk, "place: want n columns for every seat");
    want(std::int64_t(value.shape(0)) == rows / chunk * (columns / m) * chunk && std::int64_t(value.shape(1)) == n,
         "value: want n for every seat of every chunk");
    want(out.shape(1) == x.shape(1), "out: want the columns of x");
    want(bias_.is_none() || (!turned && std::int64_t(biases.shape(0)) == rows), "bias: want one per row");
    auto last = [](const std::uint16_t *p, std::size_t count) {
        std::uint16_t most = 0;
        for (std::size_t i = 0; i < count; ++i) most = p[i] > most ? p[i] : most;
        return most;
    };
    want(row.size() == 0 || std::max(last(row.data(), row.size()), last(seat.data(), seat.size())) < chunk, "row, seat: want rows and seats of the chunk");
    for (std::size_t i = 0; i < place.size(); ++i) want(place.data()[i] < m, "place: want columns of the m");
    std::int64_t together = 1;  // seats that share the first pattern, and so every pattern
    while (together < chunk && std::equal(place.data(), place.data() + n, place.data() + together * n)) ++together;
    bool even = chunk % together == 0;
    for (std::int64_t s = 0; even && s < chunk; ++s)
        even = std::equal(place.data() + s * n, place.data() + s * n + n, place.data() + s / together * together * n);
    if (!even) together = 1;
    if (batch == 0) return;
    NMGRows<T> w{rows, columns, n, m, chunk, together, row.data(), seat.data(), place.data(), value.data(),
                 bias_.is_none() ? nullptr : biases.data()};
    nb::gil_scoped_release unlocked;
    turned ? nmg_turned(w, x.data(), batch, out.data(), n_threads) : nmg_product(w, x.data(), batch, out.data(), n_threads);
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
    m.def(
        "nmg_product",
        [](nb::handle row, nb::handle seat, nb::handle place, nb::handle value, nb::handle x, nb::handle out, nb::handle bias,
           std::int64_t m_, std::int64_t chunk, bool turned, int n_threads) {
            (holds<double>(x) ? grouped<double> : grouped<float>)(row, seat, place, value, x, out, bias, m_, chunk, turned,
                                                            n_threads);
        },
        nb::arg("row"), nb::arg("seat"), nb::arg("place"), nb::arg("value"), nb::arg("x"), nb::arg("out"), nb::arg("bias").none(),
        nb::arg("m"), nb::arg("chunk"), nb::arg("turned") = false, nb::arg("n_threads") = 0,
        "out = W x + bias, or W' x, for an n:m:g matrix: row [chunks * blocks, chunk] says which row of the chunk has\n"
        "each seat, seat the inverse, place [chunk, n] the columns of each seat among m, value [chunks * blocks * chunk, n] its values.");
}
