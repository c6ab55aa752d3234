// Products with an N:M matrix: of every m neighbouring columns each row stores exactly n, and of each stored value
// only its place within the m, in 2, 4 or 8 bits. So the pattern costs a sixteenth to a quarter of the values.
//
// place: the packed places, row after row, each row beginning at a new byte; value j of a row belongs to its group
// j / n and stands in column (j / n) * m + place.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sparse_product.hpp"

namespace ellzero {

template <class T> struct NMRows {
    std::int64_t rows, columns, n, m;
    int bits;
    const std::uint8_t *place;
    const T *value;
    const T *bias;
    std::int64_t per_row() const { return columns / m * n; }
    std::int64_t bytes_per_row() const { return (per_row() * bits + 7) / 8; }
};

template <class T> void decode_row(const NMRows<T> &w, std::int64_t i, std::uint32_t *index) {
    const std::uint8_t *packed = w.place + i * w.bytes_per_row();
    const int each = 8 / w.bits, mask = (1 << w.bits) - 1;
    std::int64_t j = 0;
    for (std::int64_t start = 0; start < w.columns; start += w.m)
        for (std::int64_t s = 0; s < w.n; ++s, ++j)
            index[j] = static_cast<std::uint32_t>(
                start + std::min<std::int64_t>((packed[j / each] >> (j % each * w.bits)) & mask, w.m - 1));
}

// Two of four against one vector: 16 values pick from 32 neighbours that stand in two registers.
template <class T> inline std::int64_t two_of_four(const T *, const std::uint8_t *, const T *, std::int64_t, T *) {
    return 0;
}
#if defined(__AVX512F__)
template <>
inline std::int64_t two_of_four(const float *value, const std::uint8_t *packed, const float *x, std::int64_t entries,
                                float *sum) {
    const __m512i shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i starts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    const __m512i three = _mm512_set1_epi32(3);
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    std::int64_t j = 0;
    auto block = [&](std::int64_t at, __m512 &into) {
        std::int32_t word;
        std::memcpy(&word, packed + at / 4, sizeof word);
        __m512i place = _mm512_and_si512(_mm512_srlv_epi32(_mm512_set1_epi32(word), shifts), three);
        __m512 low = _mm512_loadu_ps(x + 2 * at), high = _mm512_loadu_ps(x + 2 * at + 16);
        __m512 picked = _mm512_permutex2var_ps(low, _mm512_add_epi32(place, starts), high);
        into = _mm512_fmadd_ps(_mm512_loadu_ps(value + at), picked, into);
    };
    for (; j + 32 <= entries; j += 32) block(j, total[0]), block(j + 16, total[1]);
    for (; j + 16 <= entries; j += 16) block(j, total[0]);
    *sum += _mm512_reduce_add_ps(_mm512_add_ps(total[0], total[1]));
    return j;
}
#elif defined(__AVX2__)
// Eight values pick from 16 neighbours; a pick stays within its four, which are half a register, and reads only the
// two lowest bits of its place.
template <>
inline std::int64_t two_of_four(const float *value, const std::uint8_t *packed, const float *x, std::int64_t entries,
                                float *sum) {
    // the values of the fours 0, 2 | 1, 3 of the two registers of x
    const __m256i shifts = _mm256_setr_epi32(0, 2, 8, 10, 4, 6, 12, 14);
    Vec<float> total[4] = {Vec<float>::zero(), Vec<float>::zero(), Vec<float>::zero(), Vec<float>::zero()};
    auto eight = [&](std::int64_t at, std::uint32_t word, Vec<float> &into) __attribute__((always_inline)) {
        __m256i place = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(word)), shifts);
        __m256 low = _mm256_permutevar_ps(_mm256_loadu_ps(x + 2 * at), place);
        __m256 high = _mm256_permutevar_ps(_mm256_loadu_ps(x + 2 * at + 8), place);
        __m256d own = _mm256_permute4x64_pd(_mm256_castps_pd(_mm256_loadu_ps(value + at)), 0b11011000);
        into = fma(Vec<float>{_mm256_castpd_ps(own)}, Vec<float>{_mm256_blend_ps(low, high, 0b11001100)}, into);
    };
    std::int64_t j = 0;
    for (; j + 32 <= entries; j += 32) {
        std::uint64_t word;
        std::memcpy(&word, packed + j / 4, sizeof word);
        prefetch_lines(value + j + 256, 2);
        for (int u = 0; u < 4; ++u) eight(j + 8 * u, static_cast<std::uint32_t>(word >> (16 * u)), total[u]);
    }
    for (; j + 8 <= entries; j += 8) {
        std::uint16_t word;
        std::memcpy(&word, packed + j / 4, sizeof word);
        eight(j, word, total[0]);
    }
    *sum += ((total[0] + total[1]) + (total[2] + total[3])).sum();
    return j;
}
#endif

template <class T>
void nm_part(const NMRows<T> &w, const T *x, std::int64_t batch, T *out, std::int64_t tile, std::int64_t from,
             std::int64_t to) {
    const std::int64_t entries = w.per_row();
    std::vector<std::uint32_t> index(entries + Pattern::ahead, 0);
    const std::int64_t ptr[2] = {0, entries};
    for (std::int64_t i = from; i < to; ++i) {
        const T *bias = w.bias ? w.bias + i : nullptr;
        SparseRows<T, std::uint32_t, T> row{ptr, index.data(), w.value + i * entries, 1, batch, nullptr, bias, 0};
        if (batch == 1 && w.n == 2 && w.m == 4 && w.bits == 2) {
            T sum = T(0);
            std::int64_t done = two_of_four(row.value, w.place + i * w.bytes_per_row(), x, entries, &sum);
            for (std::int64_t j = done; j < entries; ++j) {
                int place = (w.place[i * w.bytes_per_row() + j / 4] >> (j % 4 * 2)) & 3;
                sum = fma_one(row.value[j], x[j / 2 * 4 + place], sum);
            }
            out[i] = bias ? sum + *bias : sum;
            continue;
        }
        decode_row(w, i, index.data());
        if (batch == 1)
            vector_part<1>(row, x, out + i, 0, 1);
        else
            product_part<1>(row, x, batch, out + i * batch, batch, tile, 0, 1);
    }
}

template <class T>
void nm_product(const NMRows<T> &w, const T *x, std::int64_t batch, T *out, std::int64_t tile, int asked) {
    const int threads = threads_for(w.rows * w.per_row() * batch, asked, 1 << 18);
    in_parts(w.rows, static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(w.rows, 1))),
             [&](std::int64_t from, std::int64_t to) { nm_part(w, x, batch, out, tile, from, to); });
}

}  // namespace ellzero
