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

// Chunks of `chunk` rows by m columns, in each of which seat s holds one row with the n columns place[s * n ...] of the
// m: every pattern serves the `together` seats that follow one another, and no column is stored. row[seat] is the row
// within the chunk, seat[row] the inverse.
template <class T> struct NMGRows {
    std::int64_t rows, columns, n, m, chunk, together;
    const std::uint16_t *row, *seat;
    const std::uint8_t *place;
    const T *value;
    const T *bias;
};

template <bool Partial, int N, class T> inline Vec<T> nth(const T *p, int j, int last) {
    return Partial && j == N - 1 ? Vec<T>::partial(p + j * Vec<T>::n, last) : Vec<T>::load(p + j * Vec<T>::n);
}
template <bool Partial, int N, class T> inline void keep(const Vec<T> &v, T *p, int j, int last) {
    Partial && j == N - 1 ? v.store_partial(p + j * Vec<T>::n, last) : v.store(p + j * Vec<T>::n);
}
// f(i) for i < n, which is known here where it is F.
template <int F, class Run> __attribute__((always_inline)) inline void each_value(std::int64_t n, Run f) {
    if constexpr (F > 0)
        each<F>([&](auto i) __attribute__((always_inline)) { f(static_cast<std::int64_t>(i)); });
    else
        for (std::int64_t i = 0; i < n; ++i) f(i);
}

// Adds `count` blocks of m columns to N vectors of one row's sums. `offset` holds the places times the stride of x.
template <int F, int N, bool Partial, class T>
__attribute__((noinline)) void add_blocks(const NMGRows<T> &w, const std::uint16_t *seat, const T *value,
                                          const std::int64_t *offset, const T *x, std::int64_t stride,
                                          std::int64_t count, T *out, int last) {
    Vec<T> sum[N];
    each<N>([&](auto j) __attribute__((always_inline)) { sum[j] = nth<Partial, N>(out, j, last); });
    const std::int64_t chunk = w.chunk, n = F > 0 ? F : w.n, step = w.m * stride;
    for (std::int64_t b = 0; b < count; ++b, seat += chunk, value += chunk * n, x += step) {
        const std::int64_t at = std::int64_t(*seat) * n;
        each_value<F>(n, [&](std::int64_t i) __attribute__((always_inline)) {
            const Vec<T> factor = Vec<T>::all(value[at + i]);
            const T *from = x + offset[at + i];
            each<N>([&](auto j) __attribute__((always_inline)) { sum[j] = fma(factor, nth<Partial, N>(from, j, last), sum[j]); });
        });
    }
    each<N>([&](auto j) __attribute__((always_inline)) { keep<Partial, N>(sum[j], out, j, last); });
}

// X is taken in blocks that stay in the nearest cache; each row's sums go on from block to block.
template <int F, class T>
void nmg_part(const NMGRows<T> &w, const T *x, std::int64_t batch, T *out, std::int64_t from, std::int64_t to) {
    constexpr int n = Vec<T>::n;
    const std::int64_t blocks = w.columns / w.m;
    for (std::int64_t i = from * w.chunk; i < to * w.chunk; ++i) std::fill_n(out + i * batch, batch, w.bias ? w.bias[i] : T(0));
    std::vector<std::int64_t> offset(w.chunk * w.n);
    auto pass = [&](auto vectors, auto partial, std::int64_t c, int last) {
        constexpr int N = decltype(vectors)::value;
        constexpr std::int64_t most = N * n, near = 24 * 1024;
        const std::int64_t width = (N - 1) * n + last;
        const bool packed = N > 1 || width < batch;  // also for the sake of rows that begin at a cache line
        const std::int64_t stride = packed ? most : batch;
        const std::int64_t step = std::max<std::int64_t>(near / (w.m * stride * std::int64_t(sizeof(T))), 1);
        for (std::size_t i = 0; i < offset.size(); ++i) offset[i] = w.place[i] * stride;
        Room<T> room(packed ? step * w.m * stride : 0);
        for (std::int64_t b = 0; b < blocks; b += step) {
            const std::int64_t count = std::min(step, blocks - b);
            const T *panel = x + b * w.m * batch + c;
            if (packed) {
                pack(panel, count * w.m, batch, width, room.data(), stride);
                panel = room.data();
            }
            for (std::int64_t k = from; k < to; ++k) {
                const std::int64_t at = (k * blocks + b) * w.chunk;
                for (std::int64_t r = 0; r < w.chunk; ++r)
                    add_blocks<F, N, decltype(partial)::value>(w, w.seat + at + r, w.value + at * w.n, offset.data(), panel,
                                                               stride, count, out + (k * w.chunk + r) * batch + c, last);
            }
        }
    };
    std::int64_t c = 0;
    for (; c + 8 * n <= batch; c += 8 * n) pass(std::integral_constant<int, 8>(), std::false_type(), c, n);
    for (; c + 2 * n <= batch; c += 2 * n) pass(std::integral_constant<int, 2>(), std::false_type(), c, n);
    for (; c + n <= batch; c += n) pass(std::integral_constant<int, 1>(), std::false_type(), c, n);
    if (c < batch) pass(std::integral_constant<int, 1>(), std::true_type(), c, static_cast<int>(batch - c));
}

// One column, in the order of the seats: a pattern's numbers of x are read once for its rows, and no sum waits for
// the one before it.
template <int F, class T> void nmg_vector(const NMGRows<T> &w, const T *x, T *out, std::int64_t from, std::int64_t to) {
    const std::int64_t blocks = w.columns / w.m, n = F > 0 ? F : w.n, chunk = w.chunk, together = w.together;
    const std::uint8_t *place = w.place;
    for (std::int64_t c = from; c < to; ++c) {
        T *first = out + c * chunk;
        for (std::int64_t r = 0; r < chunk; ++r) first[r] = w.bias ? w.bias[c * chunk + r] : T(0);
        const std::uint16_t *row = w.row + c * blocks * chunk;
        const T *value = w.value + c * blocks * chunk * n, *here = x;
        for (std::int64_t b = 0; b < blocks; ++b, row += chunk, here += w.m)
            for (std::int64_t s = 0; s < chunk; s += together) {
                T entry[F > 0 ? F : 1];
                if constexpr (F > 0) each<F>([&](auto i) { entry[i] = here[place[s * n + i]]; });
                for (std::int64_t e = s; e < s + together; ++e, value += n) {
                    T sum = first[row[e]];
                    each_value<F>(n, [&](std::int64_t i) __attribute__((always_inline)) {
                        sum = fma_one(value[i], F > 0 ? entry[i] : here[place[s * n + i]], sum);
                    });
                    first[row[e]] = sum;
                }
            }
    }
}

template <class Run> void with_values(std::int64_t n, Run run) {
    if (n == 1) return run(std::integral_constant<int, 1>());
    if (n == 2) return run(std::integral_constant<int, 2>());
    run(std::integral_constant<int, 0>());
}

template <class T> void nmg_product(const NMGRows<T> &w, const T *x, std::int64_t batch, T *out, int asked) {
    const std::int64_t chunks = w.rows / w.chunk;
    const int threads = threads_for(w.rows * (w.columns / w.m * w.n) * batch, asked, 1 << 18);
    in_parts(chunks, static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(chunks, 1))),
             [&](std::int64_t from, std::int64_t to) {
                 with_values(w.n, [&](auto f) {
                     batch == 1 ? nmg_vector<decltype(f)::value>(w, x, out, from, to)
                                : nmg_part<decltype(f)::value>(w, x, batch, out, from, to);
                 });
             });
}

// out = W' y for N vectors of columns of one block: a pattern's sums stay in registers while its rows pass.
template <int F, int N, bool Partial, class T>
__attribute__((noinline)) void turn_block(const NMGRows<T> &w, std::int64_t block, const T *y, std::int64_t stride, T *out,
                                          int last) {
    const std::int64_t blocks = w.columns / w.m, n = F > 0 ? F : w.n;
    for (std::int64_t c = 0; c < w.rows / w.chunk; ++c) {
        const std::int64_t at = (c * blocks + block) * w.chunk;
        for (std::int64_t s = 0; s < w.chunk; s += w.together)
            for (std::int64_t i = 0; i < n; i += F > 0 ? F : 1) {
                constexpr int K = F > 0 ? F : 1;
                Vec<T> sum[K * N];
                each<K * N>([&](auto u) __attribute__((always_inline)) {
                    sum[u] = nth<Partial, N>(out + w.place[s * n + i + u / N] * stride, u % N, last);
                });
                for (std::int64_t e = s; e < s + w.together; ++e) {
                    const T *row = y + (c * w.chunk + w.row[at + e]) * stride, *a = w.value + (at + e) * n + i;
                    each<N>([&](auto j) __attribute__((always_inline)) {
                        const Vec<T> part = nth<Partial, N>(row, j, last);
                        each<K>([&](auto u) __attribute__((always_inline)) {
                            sum[u * N + j] = fma(Vec<T>::all(a[u]), part, sum[u * N + j]);
                        });
                    });
                }
                each<K * N>([&](auto u) __attribute__((always_inline)) {
                    keep<Partial, N>(sum[u], out + w.place[s * n + i + u / N] * stride, u % N, last);
                });
            }
    }
}

// Each block of m columns belongs to one thread and sums over the chunks in their order.
template <class T> void nmg_turned(const NMGRows<T> &w, const T *y, std::int64_t batch, T *out, int asked) {
    const std::int64_t blocks = w.columns / w.m;
    constexpr int n = Vec<T>::n;
    const int threads = threads_for(w.rows * (blocks * w.n) * batch, asked, 1 << 18);
    in_parts(blocks, static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(blocks, 1))),
             [&](std::int64_t from, std::int64_t to) {
                 with_values(w.n, [&](auto f) {
                     constexpr int F = decltype(f)::value;
                     for (std::int64_t b = from; b < to; ++b) {
                         T *first = out + b * w.m * batch;
                         std::fill_n(first, w.m * batch, T(0));
                         std::int64_t c = 0;
                         for (; c + 4 * n <= batch; c += 4 * n) turn_block<F, 4, false>(w, b, y + c, batch, first + c, n);
                         for (; c + n <= batch; c += n) turn_block<F, 1, false>(w, b, y + c, batch, first + c, n);
                         if (c < batch) turn_block<F, 1, true>(w, b, y + c, batch, first + c, static_cast<int>(batch - c));
                     }
                 });
             });
}

}  // namespace ellzero
