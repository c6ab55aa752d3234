// fused_multiply_adds(rounds): the fastest that registers can do, which is the bound of every product.
#include <nanobind/nanobind.h>

#include <cstdint>

#include "simd.hpp"

namespace nb = nanobind;
using namespace ellzero;

void bind_peak(nb::module_ &m) {
    m.def(
        "fused_multiply_adds",
        [](std::int64_t rounds) {
            constexpr int chains = 12;
            using V = Vec<float>;
            V sum[chains], a = V::all(0.999f), b = V::all(0.5f), total = V::zero();
            for (int i = 0; i < chains; ++i) sum[i] = V::all(static_cast<float>(i));
            for (std::int64_t k = 0; k < rounds; ++k)
#pragma GCC unroll 12
                for (int i = 0; i < chains; ++i) sum[i] = fma(sum[i], a, b);
            for (int i = 0; i < chains; ++i) total = total + sum[i];
            volatile float seen = total.sum();  // so that nothing is left out
            (void)seen;
            return rounds * chains * V::n * 2;
        },
        nb::arg("rounds"), "Runs rounds of independent multiply-adds in registers; returns how many operations that was.");
}
