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

// Chunks of `chunk` rows by m columns, in each of which seat s holds one row (`row`, of the chunk) with the n columns
// place[s * n ...] of the m: every pattern serves the `together` seats that follow one another, and no column is stored.
template <class T> struct NMGRows {
    std::int64_t rows, columns, n, m, chunk, together;
    const std::uint16_t *row;
    const std::uint8_t *place;
    const T *value;
    const T *bias;
};

// Adds one chunk by m columns to N vectors of its rows' sums; rows of x and out are `stride` apart. A pattern's columns
// are read once for all its rows where n is known here (n = F).
template <int F, int N, bool Partial, class T>
inline void add_chunk(const NMGRows<T> &w, const std::uint16_t *seat, const T *value, const T *x, T *out,
                      std::int64_t stride, int last) {
    using V = Vec<T>;
    auto load = [&](const T *p, int j) __attribute__((always_inline)) {
        return Partial && j == N - 1 ? V::partial(p + j * V::n, last) : V::load(p + j * V::n);
    };
    auto keep = [&](const V *sum, T *to) __attribute__((always_inline)) {
        each<N>([&](auto j) __attribute__((always_inline)) {
            Partial && j == N - 1 ? sum[j].store_partial(to + j * V::n, last) : sum[j].store(to + j * V::n);
        });
    };
    for (std::int64_t s = 0; s < w.chunk; s += w.together) {
        const std::uint8_t *place = w.place + s * w.n;
        V part[F > 0 ? F * N : 1];
        each<F * N>([&](auto i) __attribute__((always_inline)) { part[i] = load(x + place[i / N] * stride, i % N); });
        for (std::int64_t e = s; e < s + w.together; ++e) {
            T *to = out + seat[e] * stride;
            const T *a = value + e * w.n;
            V sum[N];
            each<N>([&](auto j) __attribute__((always_inline)) { sum[j] = load(to, j); });
            if constexpr (F > 0) {
                each<F>([&](auto i) __attribute__((always_inline)) {
                    const V factor = V::all(a[i]);
                    each<N>([&](auto j) __attribute__((always_inline)) { sum[j] = fma(factor, part[i * N + j], sum[j]); });
                });
            } else {
                for (std::int64_t i = 0; i < w.n; ++i) {
                    const V factor = V::all(a[i]);
                    const T *from = x + place[i] * stride;
                    each<N>([&](auto j) __attribute__((always_inline)) { sum[j] = fma(factor, load(from, j), sum[j]); });
                }
            }
            keep(sum, to);
        }
    }
}

template <int F, class T>
void nmg_part(const NMGRows<T> &w, const T *x, std::int64_t batch, T *out, std::int64_t from, std::int64_t to) {
    constexpr int n = Vec<T>::n;
    const std::int64_t blocks = w.columns / w.m;
    for (std::int64_t c = from; c < to; ++c) {
        T *first = out + c * w.chunk * batch;
        for (std::int64_t r = 0; r < w.chunk; ++r) std::fill_n(first + r * batch, batch, w.bias ? w.bias[c * w.chunk + r] : T(0));
        auto pass = [&](auto vectors, auto partial, std::int64_t b, int last) __attribute__((always_inline)) {
            for (std::int64_t j = 0; j < blocks; ++j) {
                const std::int64_t at = (c * blocks + j) * w.chunk;
                add_chunk<F, decltype(vectors)::value, decltype(partial)::value>(
                    w, w.row + at, w.value + at * w.n, x + j * w.m * batch + b, first + b, batch, last);
            }
        };
        std::int64_t b = 0;
        for (; b + 4 * n <= batch; b += 4 * n) pass(std::integral_constant<int, 4>(), std::false_type(), b, n);
        for (; b + n <= batch; b += n) pass(std::integral_constant<int, 1>(), std::false_type(), b, n);
        if (b < batch) pass(std::integral_constant<int, 1>(), std::true_type(), b, static_cast<int>(batch - b));
    }
}

// One column: a number at a time.
template <class T> void nmg_vector(const NMGRows<T> &w, const T *x, T *out, std::int64_t from, std::int64_t to) {
    const std::int64_t blocks = w.columns / w.m;
    for (std::int64_t c = from; c < to; ++c) {
        T *first = out + c * w.chunk;
        for (std::int64_t r = 0; r < w.chunk; ++r) first[r] = w.bias ? w.bias[c * w.chunk + r] : T(0);
        for (std::int64_t j = 0; j < blocks; ++j) {
            const std::int64_t at = (c * blocks + j) * w.chunk;
            const std::uint16_t *seat = w.row + at;
            const T *a = w.value + at * w.n, *here = x + j * w.m;
            for (std::int64_t s = 0; s < w.chunk; ++s) {
                T sum = first[seat[s]];
                for (std::int64_t i = 0; i < w.n; ++i) sum = fma_one(a[s * w.n + i], here[w.place[s * w.n + i]], sum);
                first[seat[s]] = sum;
            }
        }
    }
}

template <class T> void nmg_product(const NMGRows<T> &w, const T *x, std::int64_t batch, T *out, int asked) {
    const std::int64_t chunks = w.rows / w.chunk;
    const int threads = threads_for(w.rows * (w.columns / w.m * w.n) * batch, asked, 1 << 18);
    in_parts(chunks, static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(chunks, 1))),
             [&](std::int64_t from, std::int64_t to) {
                 if (batch == 1) return nmg_vector(w, x, out, from, to);
                 if (w.n == 1) return nmg_part<1>(w, x, batch, out, from, to);
                 if (w.n == 2) return nmg_part<2>(w, x, batch, out, from, to);
                 nmg_part<0>(w, x, batch, out, from, to);
             });
}

// out = W' y: block j of m columns belongs to one thread and sums over chunks in their order.
template <class T> void nmg_turned(const NMGRows<T> &w, const T *y, std::int64_t batch, T *out, int asked) {
    const std::int64_t blocks = w.columns / w.m, chunks = w.rows / w.chunk;
    constexpr int n = Vec<T>::n;
    auto part = [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t j = from; j < to; ++j) {
            T *first = out + j * w.m * batch;
            std::fill_n(first, w.m * batch, T(0));
            for (std::int64_t c = 0; c < chunks; ++c) {
                const std::int64_t at = (c * blocks + j) * w.chunk;
                for (std::int64_t s = 0; s < w.chunk; ++s) {
                    const T *row = y + (c * w.chunk + w.row[at + s]) * batch;
                    for (std::int64_t i = 0; i < w.n; ++i) {
                        T *sum = first + w.place[s * w.n + i] * batch;
                        const T a = w.value[(at + s) * w.n + i];
                        std::int64_t b = 0;
                        for (; b + n <= batch; b += n)
                            fma(Vec<T>::all(a), Vec<T>::load(row + b), Vec<T>::load(sum + b)).store(sum + b);
                        for (; b < batch; ++b) sum[b] = fma_one(a, row[b], sum[b]);
                    }
                }
            }
        }
    };
    const int threads = threads_for(w.rows * (blocks * w.n) * batch, asked, 1 << 18);
    in_parts(blocks, static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(blocks, 1))), part);
}

}  // namespace ellzero
