// The transpose of a matrix, by tiles that lie in registers: a batch to feature-major and back.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.hpp"
#include "threads.hpp"

namespace ellzero {

// to[j, i] = from[i, j] for 8 x 8 numbers.
template <class T> inline void turn_tile(const T *from, std::int64_t stride, T *to, std::int64_t to_stride) {
    for (int j = 0; j < 8; ++j)
        for (int i = 0; i < 8; ++i) to[j * to_stride + i] = from[i * stride + j];
}
#if defined(__AVX2__)
template <> inline void turn_tile(const float *from, std::int64_t stride, float *to, std::int64_t to_stride) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * stride);
    for (int i = 0; i < 8; i += 2) b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int j = 0; j < 4; ++j) {
        _mm256_storeu_ps(to + j * to_stride, _mm256_permute2f128_ps(a[j], a[j + 4], 0x20));
        _mm256_storeu_ps(to + (j + 4) * to_stride, _mm256_permute2f128_ps(a[j], a[j + 4], 0x31));
    }
}
#endif

// The columns [from, to) of x [rows, columns] turned: to them belong the rows [from, to) of out. Rows of x are `stride`
// apart and those of out `out_stride`.
template <class T>
void turn_columns(const T *x, std::int64_t rows, std::int64_t stride, std::int64_t from, std::int64_t to, T *out,
                  std::int64_t out_stride) {
    auto corner = [=](std::int64_t i, std::int64_t i_end, std::int64_t j, std::int64_t j_end) {
        for (; i < i_end; ++i)
            for (std::int64_t c = j; c < j_end; ++c) out[c * out_stride + i] = x[i * stride + c];
    };
    constexpr std::int64_t line = 64 / sizeof(T);  // of x, taken whole
    const std::int64_t whole = rows / 8 * 8;
    for (std::int64_t j = from; j < to; j += line) {
        const std::int64_t end = std::min(j + line, to), full = j + (end - j) / 8 * 8;
        for (std::int64_t i = 0; i < whole; i += 8) {
            for (std::int64_t c = j; c < full; c += 8)
                turn_tile(x + i * stride + c, stride, out + c * out_stride + i, out_stride);
            corner(i, i + 8, full, end);
        }
        corner(whole, rows, j, end);
    }
}

// The same with threads, each taking whole lines of x.
template <class T>
__attribute__((noinline)) void turn(const T *x, std::int64_t rows, std::int64_t columns, std::int64_t stride, T *out,
                                    std::int64_t out_stride, int asked) {
    constexpr std::int64_t line = 64 / sizeof(T);
    const std::int64_t lines = (columns + line - 1) / line;
    const std::int64_t most = std::max<std::int64_t>(lines, 1);
    const std::int64_t threads = std::min<std::int64_t>(threads_for(rows * columns, asked, 1 << 18), most);
    in_parts(lines, static_cast<int>(threads), [&](std::int64_t from, std::int64_t to) {
        turn_columns(x, rows, stride, from * line, std::min(to * line, columns), out, out_stride);
    });
}

}  // namespace ellzero
