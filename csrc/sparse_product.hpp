// Products of a sparse matrix W with dense matrices whose rows are contiguous ("feature-major": one row per input
// feature, the batch along it), and the gradient of its stored values.
//
// W is stored by groups of R rows that share one pattern (R = 1: CSR). Group g has the entries ptr[g] .. ptr[g + 1];
// entry k stands in column index[k] and holds R values, value[k * R + r] being that of row g * R + r.
// Every output row belongs to one thread and is summed in the order of its entries, so the result does not depend on
// the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "simd.hpp"
#include "threads.hpp"

namespace ellzero {

// bfloat16 as stored: the upper half of a float.
struct BFloat16 {
    std::uint16_t bits;
};

template <class T> inline T widen(T value) { return value; }
inline float widen(std::int8_t value) { return static_cast<float>(value); }
inline float widen(BFloat16 value) {
    std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Which places are stored. Checked once, when it is made, and never changed after: so that no product checks again.
struct Pattern {
    std::int64_t groups = 0, group = 1, columns = 0;
    std::vector<std::int64_t> ptr;
    // One of the two holds the columns of the entries; behind them stand `ahead` zeros, for reading ahead.
    std::vector<std::uint16_t> narrow;
    std::vector<std::uint32_t> wide;

    static constexpr std::int64_t ahead = 16;
    std::int64_t entries() const { return ptr.back(); }
    std::int64_t rows() const { return groups * group; }
    bool is_narrow() const { return wide.empty(); }
};

template <class T, class Index, class Value> struct SparseRows {
    const std::int64_t *ptr;
    const Index *index;
    const Value *value;
    std::int64_t groups;
    // Elements between X(i) and X(i + 1): the batch, or 1 where index holds offsets already (convolutions).
    std::int64_t stride;
    const T *scale;  // per row, after the sum; null: 1
    const T *bias;   // per row; null: 0
    std::int64_t columns = 0;  // rows of X, where they may be packed into slabs; 0: never
};

// Columns [begin, begin + width) of X with nothing between its rows. Rows that lie a power of two apart fall into few
// sets of a cache and drive one another out; packed, a slab takes as much cache and as few pages as it has numbers.
template <class T> class Slab {
  public:
    Slab(std::int64_t columns, std::int64_t tile) : tile(tile), room(columns * tile + 64 / sizeof(T)) {
        auto at = reinterpret_cast<std::uintptr_t>(room.data());
        first = room.data() + (63 & (64 - at % 64)) / sizeof(T);
    }
    const T *pack(const T *x, std::int64_t columns, std::int64_t stride, std::int64_t width) {
        for (std::int64_t i = 0; i < columns; ++i) std::copy_n(x + i * stride, width, first + i * tile);
        return first;
    }
    const std::int64_t tile;

  private:
    std::vector<T> room;
    T *first;
};

// Parts of about equal work: an entry counts one, and so does a group, however empty.
template <class Run> void by_entries(const std::int64_t *ptr, std::int64_t groups, int threads, Run run) {
    auto first = [=](std::int64_t work) {
        std::int64_t low = 0, high = groups;
        while (low < high) {
            std::int64_t middle = (low + high) / 2;
            if (ptr[middle] - ptr[0] + middle < work)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    };
    std::int64_t total = ptr[groups] - ptr[0] + groups;
    in_parts(total, threads, [&](std::int64_t from, std::int64_t to) {
        run(first(from), to == total ? groups : first(to));
    });
}

// Columns [0, N * lanes) of one group's output, held in registers; `last` lanes of the last vector count.
// Not inlined: within a larger function the compiler keeps the sums in memory.
template <int R, int N, bool Partial, class T, class Index, class Value>
__attribute__((noinline)) void group_tile(const SparseRows<T, Index, Value> &rows, std::int64_t g, const T *x, T *out, std::int64_t out_stride,
                       int last) {
    using V = Vec<T>;
    const SparseRows<T, Index, Value> w = rows;  // a copy, which no store to `out` can change
    constexpr int chains = R * N >= 8 ? 1 : R * N >= 4 ? 2 : 4;  // an fma waits four cycles for the one before it
    V sum[chains][R][N];
    for (int u = 0; u < chains; ++u)
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < N; ++j) sum[u][r][j] = V::zero();
    const std::int64_t end = w.ptr[g + 1];
    std::int64_t k = w.ptr[g];
    auto entry = [&](std::int64_t e, V(&into)[R][N]) __attribute__((always_inline)) {
        const T *row = x + static_cast<std::int64_t>(w.index[e]) * w.stride;
        const T *later = x + static_cast<std::int64_t>(w.index[e + Pattern::ahead]) * w.stride;
        for (int j = 0; j < N; j += 64 / int(sizeof(V))) __builtin_prefetch(later + j * V::n);
        V part[N];
        for (int j = 0; j < N; ++j)
            part[j] = Partial && j == N - 1 ? V::partial(row + j * V::n, last) : V::load(row + j * V::n);
        for (int r = 0; r < R; ++r) {
            V value = V::all(static_cast<T>(widen(w.value[e * R + r])));
            for (int j = 0; j < N; ++j) into[r][j] = fma(value, part[j], into[r][j]);
        }
    };
    for (; k + chains <= end; k += chains)
        for (int u = 0; u < chains; ++u) entry(k + u, sum[u]);
    for (; k < end; ++k) entry(k, sum[0]);
    for (int r = 0; r < R; ++r) {
        const std::int64_t i = g * R + r;
        for (int j = 0; j < N; ++j) {
            V total = sum[0][r][j];
            for (int u = 1; u < chains; ++u) total = total + sum[u][r][j];
            if (w.scale) total = total * V::all(w.scale[i]);
            if (w.bias) total = total + V::all(w.bias[i]);
            T *to = out + r * out_stride + j * V::n;
            if (Partial && j == N - 1)
                total.store_partial(to, last);
            else
                total.store(to);
        }
    }
}

// Columns [0, width) of the rows of the groups [from, to).
template <int R, class T, class Index, class Value>
void tile_part(const SparseRows<T, Index, Value> &w, const T *x, std::int64_t width, T *out, std::int64_t out_stride,
               std::int64_t from, std::int64_t to) {
    constexpr int n = Vec<T>::n;
    constexpr int widest = sizeof(Vec<T>) == 64 ? (R == 1 ? 8 : R == 4 ? 4 : 2) : (R == 1 ? 8 : R == 4 ? 2 : 1);
    for (std::int64_t g = from; g < to; ++g) {
        std::int64_t b = 0;
        T *row = out + g * R * out_stride;
        if constexpr (widest >= 8)
            for (; b + 8 * n <= width; b += 8 * n) group_tile<R, 8, false>(w, g, x + b, row + b, out_stride, n);
        if constexpr (widest >= 4)
            for (; b + 4 * n <= width; b += 4 * n) group_tile<R, 4, false>(w, g, x + b, row + b, out_stride, n);
        if constexpr (widest >= 2)
            for (; b + 2 * n <= width; b += 2 * n) group_tile<R, 2, false>(w, g, x + b, row + b, out_stride, n);
        for (; b + n <= width; b += n) group_tile<R, 1, false>(w, g, x + b, row + b, out_stride, n);
        if (b < width) group_tile<R, 1, true>(w, g, x + b, row + b, out_stride, static_cast<int>(width - b));
    }
}

// out[i, :batch] = sum_k value[k] X[index[k], :batch] for the rows of the groups [from, to), `tile` columns at a time.
template <int R, class T, class Index, class Value>
void product_part(const SparseRows<T, Index, Value> &w, const T *x, std::int64_t batch, T *out,
                  std::int64_t out_stride, std::int64_t tile, std::int64_t from, std::int64_t to) {
    // a column of X that few entries read is not worth a copy
    const bool packed = w.columns > 0 && tile < batch && w.ptr[to] - w.ptr[from] >= 6 * w.columns;
    Slab<T> slab(packed ? w.columns : 0, tile);
    SparseRows<T, Index, Value> within = w;
    if (packed) within.stride = tile;
    for (std::int64_t begin = 0; begin < batch; begin += tile) {
        const std::int64_t width = std::min(tile, batch - begin);
        const T *at = packed ? slab.pack(x + begin, w.columns, w.stride, width) : x + begin;
        tile_part<R>(within, at, width, out + begin, out_stride, from, to);
    }
}

// Adds value[k] x[index[k]] over whole blocks from k on to *sum; returns where it stopped. Numbers are put together
// four at a time: two to three times as fast as single multiplications, and than the gather instruction.
template <class Index>
inline std::int64_t gathered_dot(const float *value, const Index *index, const float *x, std::int64_t k,
                                 std::int64_t end, float *sum) {
#if defined(__AVX2__) || defined(__AVX512F__)
    auto four = [&](std::int64_t e) { return _mm_setr_ps(x[index[e]], x[index[e + 1]], x[index[e + 2]], x[index[e + 3]]); };
    auto eight = [&](std::int64_t e) { return _mm256_set_m128(four(e + 4), four(e)); };
    Vec<float> total = Vec<float>::zero();
    for (; k + Vec<float>::n <= end; k += Vec<float>::n) {
#if defined(__AVX512F__)
        Vec<float> gathered{_mm512_insertf32x8(_mm512_castps256_ps512(eight(k)), eight(k + 8), 1)};
#else
        Vec<float> gathered{eight(k)};
#endif
        total = fma(Vec<float>::load(value + k), gathered, total);
    }
    *sum += total.sum();
#else
    (void)value, (void)index, (void)x, (void)end, (void)sum;
#endif
    return k;
}

// One column: single numbers are gathered.
template <int R, class T, class Index, class Value>
void vector_part(const SparseRows<T, Index, Value> &w, const T *x, T *out, std::int64_t from, std::int64_t to) {
    constexpr int chains = R == 1 ? 8 : R == 4 ? 4 : 2;
    for (std::int64_t g = from; g < to; ++g) {
        T sum[chains][R] = {};
        const std::int64_t end = w.ptr[g + 1];
        std::int64_t k = w.ptr[g];
        if constexpr (R == 1 && std::is_same_v<T, float> && std::is_same_v<Value, float>) {
            k = gathered_dot(w.value, w.index, x, k, end, &sum[0][0]);
        }
        for (; k + chains <= end; k += chains)
            for (int u = 0; u < chains; ++u) {
                const T entry = x[w.index[k + u]];
                for (int r = 0; r < R; ++r)
                    sum[u][r] = fma_one(static_cast<T>(widen(w.value[(k + u) * R + r])), entry, sum[u][r]);
            }
        for (; k < end; ++k) {
            const T entry = x[w.index[k]];
            for (int r = 0; r < R; ++r) sum[0][r] = fma_one(static_cast<T>(widen(w.value[k * R + r])), entry, sum[0][r]);
        }
        for (int r = 0; r < R; ++r) {
            const std::int64_t i = g * R + r;
            T total = sum[0][r];
            for (int u = 1; u < chains; ++u) total += sum[u][r];
            if (w.scale) total *= w.scale[i];
            if (w.bias) total += w.bias[i];
            out[i] = total;
        }
    }
}

template <int R, class T, class Index, class Value>
void sparse_product(const SparseRows<T, Index, Value> &w, const T *x, std::int64_t batch, T *out,
                    std::int64_t out_stride, std::int64_t tile, int asked) {
    const int threads = threads_for((w.ptr[w.groups] - w.ptr[0] + w.groups) * R * batch, asked, 1 << 18);
    by_entries(w.ptr, w.groups, threads, [&](std::int64_t from, std::int64_t to) {
        if (batch == 1)
            vector_part<R>(w, x, out, from, to);
        else
            product_part<R>(w, x, batch, out, out_stride, tile, from, to);
    });
}

// gradient[k * R + r] = <dO[g * R + r, :], X[index[k], :]>: of the stored values only.
template <int R, class T, class Index>
void values_gradient_part(const std::int64_t *ptr, const Index *index, const T *grad, const T *x, std::int64_t batch,
                          T *gradient, std::int64_t from, std::int64_t to) {
    using V = Vec<T>;
    constexpr int n = V::n, N = R == 1 ? 4 : R == 4 ? 2 : 1;
    for (std::int64_t g = from; g < to; ++g) {
        const T *rows = grad + g * R * batch;
        for (std::int64_t b = 0; b == 0 || b < batch; b += N * n) {
            const std::int64_t left = batch - b;
            V given[R][N];
            int count[N];
            for (int j = 0; j < N; ++j) {
                count[j] = static_cast<int>(std::clamp<std::int64_t>(left - j * n, 0, n));
                for (int r = 0; r < R; ++r)
                    given[r][j] = count[j] == n ? V::load(rows + r * batch + b + j * n)
                                  : count[j]    ? V::partial(rows + r * batch + b + j * n, count[j])
                                                : V::zero();
            }
            const bool whole = count[N - 1] == n;
            auto inner = [&](std::int64_t k, int r) {
                const T *row = x + static_cast<std::int64_t>(index[k]) * batch + b;
                const T *later = x + static_cast<std::int64_t>(index[k + Pattern::ahead]) * batch + b;
                for (int j = 0; j < N; j += 64 / int(sizeof(V))) __builtin_prefetch(later + j * n);
                V sum = V::zero();
                for (int j = 0; j < N; ++j)
                    sum = fma(given[r][j], whole ? V::load(row + j * n) : count[j] ? V::partial(row + j * n, count[j]) : V::zero(), sum);
                return sum;
            };
            const std::int64_t entries = (ptr[g + 1] - ptr[g]) * R;
            T *to_ = gradient + ptr[g] * R;
            std::int64_t e = 0;
            for (; e < entries; e += n) {
                V sums[n];
                T totals[n];
                const int block = static_cast<int>(std::min<std::int64_t>(n, entries - e));
                for (int i = 0; i < n; ++i)
                    sums[i] = i < block ? inner(ptr[g] + (e + i) / R, static_cast<int>((e + i) % R)) : V::zero();
                lane_sums(sums, totals);
                for (int i = 0; i < block; ++i) to_[e + i] = b == 0 ? totals[i] : to_[e + i] + totals[i];
            }
        }
    }
}

template <int R, class T, class Index>
void values_gradient(const std::int64_t *ptr, const Index *index, std::int64_t groups, const T *grad, const T *x,
                     std::int64_t batch, T *gradient, int asked) {
    const int threads = threads_for((ptr[groups] - ptr[0] + groups) * R * batch, asked, 1 << 18);
    by_entries(ptr, groups, threads, [&](std::int64_t from, std::int64_t to) {
        values_gradient_part<R>(ptr, index, grad, x, batch, gradient, from, to);
    });
}

}  // namespace ellzero
