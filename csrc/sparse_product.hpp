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
#include <memory>
#include <type_traits>
#include <utility>
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
    // Groups of one row only: entry at which row i enters block b of the columns, at [b * groups + i]; empty where a
    // row's columns do not rise or its blocks hold too few entries to be worth a visit.
    std::vector<std::uint32_t> cut;
    std::int64_t block = 0;  // columns of a block
    // Where the values come from another pattern's (the transpose): entry k has the value at order[k]; else empty.
    std::vector<std::uint32_t> order;

    static constexpr std::int64_t ahead = 16;
    std::int64_t entries() const { return ptr.back(); }
    std::int64_t rows() const { return groups * group; }
    bool is_narrow() const { return wide.empty(); }

    // Blocks of about 40 entries a row: fewer cost more to visit than a nearer cache gains. With 256 bytes of each row
    // of X, a block takes 24 to 128 KiB.
    template <class Index> void cut_rows(const Index *index) {
        if (group != 1 || entries() == 0 || entries() >> 32) return;
        const std::int64_t size = std::clamp<std::int64_t>(40 * groups * columns / entries() / 32 * 32, 96, 512);
        const std::int64_t blocks = (columns + size - 1) / size;
        if (blocks < 2 || entries() < 12 * groups * blocks) return;
        std::vector<std::uint32_t> cuts((blocks + 1) * groups);
        for (std::int64_t i = 0; i < groups; ++i) {
            std::int64_t k = ptr[i];
            for (std::int64_t b = 0; b <= blocks; ++b) {
                for (; k < ptr[i + 1] && static_cast<std::int64_t>(index[k]) < b * size; ++k)
                    if (k > ptr[i] && index[k] < index[k - 1]) return;
                cuts[b * groups + i] = static_cast<std::uint32_t>(k);
            }
        }
        cut = std::move(cuts);
        block = size;
    }
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
    const std::uint32_t *cut = nullptr;  // of the pattern, where X may be taken block by block
    std::int64_t block = 0;
    const std::uint32_t *order = nullptr;  // of the pattern, where the values lie in another order
};

// Room for `count` numbers that a thread keeps from call to call, since fresh pages cost more than filling them; what
// is larger than a cache is given back when the holder goes. What is held at the same time has another `Use`.
template <class T, int Use = 0> class Room {
  public:
    explicit Room(std::int64_t count) {
        const std::int64_t bytes = count * std::int64_t(sizeof(T)) + 64;
        static thread_local std::unique_ptr<char[]> kept;
        static thread_local std::int64_t size = 0;
        if (bytes > most) {
            own.reset(new char[bytes]);
        } else if (bytes > size) {
            kept.reset(new char[bytes]);
            size = bytes;
        }
        char *at = own ? own.get() : kept.get();
        first = reinterpret_cast<T *>(at + (63 & (64 - reinterpret_cast<std::uintptr_t>(at) % 64)));
    }
    T *data() { return first; }

  private:
    static constexpr std::int64_t most = 1 << 20;
    std::unique_ptr<char[]> own;
    T *first;
};

// f(0), ..., f(N - 1) with constants, so that what they index stays in registers.
template <class F, int... J> __attribute__((always_inline)) inline void each(std::integer_sequence<int, J...>, [[maybe_unused]] F f) {
    (f(std::integral_constant<int, J>()), ...);
}
template <int N, class F> __attribute__((always_inline)) inline void each([[maybe_unused]] F f) {
    each(std::make_integer_sequence<int, N>(), f);
}

inline void prefetch_lines(const void *from, std::int64_t lines) {
    for (std::int64_t i = 0; i < lines; ++i) __builtin_prefetch(static_cast<const char *>(from) + 64 * i);
}

// Columns [0, width) of `count` rows of X with nothing between them. Rows that lie a power of two apart fall into few
// sets of a cache and drive one another out; packed, a slab takes as much cache and as few pages as it has numbers.
template <class T>
void pack(const T *x, std::int64_t count, std::int64_t stride, std::int64_t width, T *to, std::int64_t to_stride) {
    for (std::int64_t i = 0; i < count; ++i) std::copy_n(x + i * stride, width, to + i * to_stride);
}

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

// Columns [0, N * lanes) of R rows of one group, held in registers; `last` lanes of the last vector count. `value` is
// that of the first of these rows, of a group of S.
// Not inlined: within a larger function the compiler keeps the sums in memory.
template <int R, int S, int N, bool Partial, class T, class Index, class Value>
__attribute__((noinline)) void group_tile(const SparseRows<T, Index, Value> &rows, const Value *value, std::int64_t g,
                                          const T *x, T *out, std::int64_t out_stride, std::int64_t i, int last) {
    using V = Vec<T>;
    const SparseRows<T, Index, Value> w = rows;  // a copy, which no store to `out` can change
    constexpr int chains = R * N >= 8 ? 1 : R * N >= 4 ? 2 : 4;  // an fma waits four cycles for the one before it
    constexpr int unrolled = std::max(chains, 2);                // counting takes an eighth of the instructions else
    V sum[chains * R * N];
    each<chains * R * N>([&](auto s) __attribute__((always_inline)) { sum[s] = V::zero(); });
    const std::int64_t end = w.ptr[g + 1];
    std::int64_t k = w.ptr[g];
    auto entry = [&](std::int64_t e, auto u) __attribute__((always_inline)) {
        const T *row = x + static_cast<std::int64_t>(w.index[e]) * w.stride;
        const T *later = x + static_cast<std::int64_t>(w.index[e + Pattern::ahead]) * w.stride;
        for (int j = 0; j < N; j += 64 / int(sizeof(V))) __builtin_prefetch(later + j * V::n);
        V part[N];
        each<N>([&](auto j) __attribute__((always_inline)) {
            part[j] = Partial && j == N - 1 ? V::partial(row + j * V::n, last) : V::load(row + j * V::n);
        });
        each<R>([&](auto r) __attribute__((always_inline)) {
            const V a = V::all(static_cast<T>(widen(value[e * S + r])));
            each<N>([&](auto j) __attribute__((always_inline)) {
                V &to = sum[(u % chains * R + r) * N + j];
                to = fma(a, part[j], to);
            });
        });
    };
    for (; k + unrolled <= end; k += unrolled)
        each<unrolled>([&](auto u) __attribute__((always_inline)) { entry(k + u, u); });
    for (; k < end; ++k) entry(k, std::integral_constant<int, 0>());
    each<R * N>([&](auto s) __attribute__((always_inline)) {
        constexpr int r = s / N, j = s % N;
        V total = sum[s];
        each<chains - 1>([&](auto u) __attribute__((always_inline)) { total = total + sum[(u + 1) * R * N + s]; });
        if (w.scale) total = total * V::all(w.scale[i + r]);
        if (w.bias) total = total + V::all(w.bias[i + r]);
        T *to = out + r * out_stride + j * V::n;
        if (Partial && j == N - 1)
            total.store_partial(to, last);
        else
            total.store(to);
    });
}

// Columns [0, width) of the rows of the groups [from, to). Registers hold the sums of four rows by two vectors, of one
// row by eight; of eight rows by two with 32 registers.
template <int S, class T, class Index, class Value>
void tile_part(const SparseRows<T, Index, Value> &w, const T *x, std::int64_t width, T *out, std::int64_t out_stride,
               std::int64_t from, std::int64_t to) {
    constexpr int n = Vec<T>::n;
    constexpr bool many = sizeof(Vec<T>) == 64;
    constexpr int R = many ? S : std::min(S, 4);
    constexpr int widest = S == 1 ? 8 : !many || S == 8 ? 2 : 4;
    for (std::int64_t i = from * S; i < to * S; i += R) {
        const std::int64_t g = i / S;
        const Value *value = w.value + i % S;
        T *row = out + i * out_stride;
        std::int64_t b = 0;
        if constexpr (widest >= 8)
            for (; b + 8 * n <= width; b += 8 * n) group_tile<R, S, 8, false>(w, value, g, x + b, row + b, out_stride, i, n);
        if constexpr (widest >= 4)
            for (; b + 4 * n <= width; b += 4 * n) group_tile<R, S, 4, false>(w, value, g, x + b, row + b, out_stride, i, n);
        for (; b + 2 * n <= width; b += 2 * n) group_tile<R, S, 2, false>(w, value, g, x + b, row + b, out_stride, i, n);
        for (; b + n <= width; b += n) group_tile<R, S, 1, false>(w, value, g, x + b, row + b, out_stride, i, n);
        if (b < width) group_tile<R, S, 1, true>(w, value, g, x + b, row + b, out_stride, i, static_cast<int>(width - b));
    }
}

// Adds the entries [k, end) of one row to N vectors of its sums; `panel` is X in rows of N vectors.
template <int N, class T, class Index, class Value>
__attribute__((noinline)) void add_segment(const SparseRows<T, Index, Value> &w, std::int64_t k, std::int64_t end,
                                           const T *panel, T *out, bool first) {
    using V = Vec<T>;
    V sum[N];
    each<N>([&](auto j) __attribute__((always_inline)) { sum[j] = first ? V::zero() : V::load(out + j * V::n); });
    const Index *index = w.index;
    const Value *value = w.value;
    for (; k < end; ++k) {
        const T *row = panel + static_cast<std::int64_t>(index[k]) * (N * V::n);
        const V a = V::all(static_cast<T>(widen(value[k])));
        each<N>([&](auto j) __attribute__((always_inline)) { sum[j] = fma(a, V::load(row + j * V::n), sum[j]); });
    }
    each<N>([&](auto j) __attribute__((always_inline)) { sum[j].store(out + j * V::n); });
}

// N vectors of columns, for the rows [from, to): X is taken in blocks of its rows that stay in a near cache, each
// row's sums go on from block to block, and the few entries of the rows to come are asked for ahead of time, since no
// hardware foresees where they begin.
template <int N, class T, class Index, class Value>
void blocked_part(const SparseRows<T, Index, Value> &w, const T *x, T *out, std::int64_t out_stride, std::int64_t from,
                  std::int64_t to) {
    constexpr std::int64_t width = N * Vec<T>::n, ahead = 12, soon = 4;
    const std::int64_t blocks = (w.columns + w.block - 1) / w.block;
    // as many lines for every row, since a loop of another length each time is foreseen by no hardware either
    const std::int64_t usual = (w.ptr[w.groups] - w.ptr[0]) / (w.groups * blocks);
    const std::int64_t value_lines = usual * sizeof(Value) / 64 + 2, index_lines = usual * sizeof(Index) / 64 + 1;
    Room<T> room(w.block * width);
    for (std::int64_t b = 0; b < blocks; ++b) {
        const std::int64_t low = b * w.block;
        pack(x + low * w.stride, std::min(w.block, w.columns - low), w.stride, width, room.data(), width);
        const std::uint32_t *begin = w.cut + b * w.groups, *end = begin + w.groups;
        for (std::int64_t i = from; i < to; ++i) {
            if (const std::int64_t later = i + ahead; later < to) {
                prefetch_lines(w.value + begin[later], value_lines);
                prefetch_lines(w.index + begin[later], index_lines);
            }
            if (i + soon < to) prefetch_lines(out + (i + soon) * out_stride, width * sizeof(T) / 64);
            add_segment<N>(w, begin[i], end[i], room.data() - low * width, out + i * out_stride, b == 0);
        }
    }
    for (std::int64_t i = from; (w.scale || w.bias) && i < to; ++i)
        for (std::int64_t c = 0; c < width; ++c) {
            T &sum = out[i * out_stride + c];
            sum = (w.scale ? sum * w.scale[i] : sum) + (w.bias ? w.bias[i] : T(0));
        }
}

// out[i, :batch] = sum_k value[k] X[index[k], :batch] for the rows of the groups [from, to), `tile` columns at a time.
// Not inlined: it has several callers, and a copy of these loops in each is minutes of compilation.
template <int R, class T, class Index, class Value>
__attribute__((noinline)) void product_part(const SparseRows<T, Index, Value> &w, const T *x, std::int64_t batch,
                                            T *out, std::int64_t out_stride, std::int64_t tile, std::int64_t from,
                                            std::int64_t to) {
    std::int64_t begin = 0;
    if constexpr (R == 1) {
        constexpr std::int64_t n = Vec<T>::n;
        for (; w.cut && begin + 8 * n <= batch; begin += 8 * n) blocked_part<8>(w, x + begin, out + begin, out_stride, from, to);
        for (; w.cut && begin + 4 * n <= batch; begin += 4 * n) blocked_part<4>(w, x + begin, out + begin, out_stride, from, to);
    }
    // a column of X that few entries read is not worth a copy
    const bool packed = w.columns > 0 && tile < batch && w.ptr[to] - w.ptr[from] >= 6 * w.columns;
    SparseRows<T, Index, Value> within = w;
    if (packed) within.stride = tile;
    for (; begin < batch; begin += tile) {
        const std::int64_t width = std::min(tile, batch - begin);
        if (packed) {
            Room<T> room(w.columns * tile);
            pack(x + begin, w.columns, w.stride, width, room.data(), tile);
            tile_part<R>(within, room.data(), width, out + begin, out_stride, from, to);
        } else {
            tile_part<R>(within, x + begin, width, out + begin, out_stride, from, to);
        }
    }
}

// Adds value[k] x[index[k]] over [k, end) to *sum, where the instruction set has vectors for it; returns where it
// stopped. Numbers are put together four at a time: two to three times as fast as single multiplications, and than the
// gather instruction. The last vector reads indices past the end (of the next row, or the zeros behind all) and no
// number of theirs counts.
template <class Index>
inline std::int64_t gathered_dot(const float *value, const Index *index, const float *x, std::int64_t k,
                                 std::int64_t end, float *sum) {
#if defined(__AVX2__) || defined(__AVX512F__)
    constexpr int n = Vec<float>::n;
    auto four = [&](std::int64_t e) { return _mm_setr_ps(x[index[e]], x[index[e + 1]], x[index[e + 2]], x[index[e + 3]]); };
    auto eight = [&](std::int64_t e) { return _mm256_set_m128(four(e + 4), four(e)); };
    auto gathered = [&](std::int64_t e) {
#if defined(__AVX512F__)
        return Vec<float>{_mm512_insertf32x8(_mm512_castps256_ps512(eight(e)), eight(e + 8), 1)};
#else
        return Vec<float>{eight(e)};
#endif
    };
    Vec<float> total = Vec<float>::zero();
    for (; k + n <= end; k += n) {
        __builtin_prefetch(value + k + 256);
        __builtin_prefetch(index + k + 256);
        total = fma(Vec<float>::load(value + k), gathered(k), total);
    }
    if (k < end) {
        const int left = static_cast<int>(end - k);
        total = fma(Vec<float>::partial(value + k, left), gathered(k).first(left), total);
    }
    *sum += total.sum();
    return end;
#else
    (void)value, (void)index, (void)x, (void)end, (void)sum;
    return k;
#endif
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
    auto part = [&](const SparseRows<T, Index, Value> &rows, std::int64_t from, std::int64_t to) {
        if (batch == 1)
            vector_part<R>(rows, x, out, from, to);
        else
            product_part<R>(rows, x, batch, out, out_stride, tile, from, to);
    };
    by_entries(w.ptr, w.groups, threads, [&](std::int64_t from, std::int64_t to) {
        if (!w.order) return part(w, from, to);
        const std::int64_t begin = w.ptr[from], end = w.ptr[to];
        Room<Value, 1> room(end - begin);
        for (std::int64_t k = begin; k < end; ++k) room.data()[k - begin] = w.value[w.order[k]];
        SparseRows<T, Index, Value> sorted = w;
        sorted.value = room.data() - begin;
        part(sorted, from, to);
    });
}

// Entries [k, end) of one group: gradient[e * R + r] (first ? = : +=) <rows[r, :width], X[index[e], :width]>. `rows`
// are `stride` apart and those of X `x_stride`; width is N vectors where Whole, else fewer numbers.
template <int R, int N, bool Whole, class T, class Index>
__attribute__((noinline)) void gradient_segment(const Index *index, std::int64_t k, std::int64_t end, const T *rows,
                                                std::int64_t stride, const T *x, std::int64_t x_stride,
                                                std::int64_t width, T *gradient, bool first) {
    using V = Vec<T>;
    constexpr int n = V::n, U = summed<T>, E = std::max(U / R, 1);  // E entries at a time make whole lane sums
    auto load = [&](const T *p, int j) __attribute__((always_inline)) {
        if constexpr (Whole) return V::load(p + j * n);
        const auto count = static_cast<int>(std::clamp<std::int64_t>(width - j * n, 0, n));
        return count == n ? V::load(p + j * n) : count ? V::partial(p + j * n, count) : V::zero();
    };
    V given[R * N];
    each<R * N>([&](auto i) __attribute__((always_inline)) { given[i] = load(rows + i / N * stride, i % N); });
    for (; k < end; k += E) {
        V sums[E * R];
        T totals[E * R];
        each<E>([&](auto i) __attribute__((always_inline)) {
            const std::int64_t e = std::min<std::int64_t>(k + i, end - 1);  // what is past the end goes nowhere
            const T *row = x + static_cast<std::int64_t>(index[e]) * x_stride;
            each<R>([&](auto r) __attribute__((always_inline)) { sums[i * R + r] = V::zero(); });
            each<N>([&](auto j) __attribute__((always_inline)) {
                const V part = load(row, j);
                each<R>([&](auto r) __attribute__((always_inline)) {
                    sums[i * R + r] = fma(given[r * N + j], part, sums[i * R + r]);
                });
            });
        });
        each<E * R / U>([&](auto q) __attribute__((always_inline)) { lane_sums(sums + q * U, totals + q * U); });
        T *to = gradient + k * R;
        if (k + E <= end)
            each<E * R>([&](auto i) __attribute__((always_inline)) { to[i] = first ? totals[i] : to[i] + totals[i]; });
        else
            for (int i = 0; i < (end - k) * R; ++i) to[i] = first ? totals[i] : to[i] + totals[i];
    }
}

// The part that columns [0, width) of dO and X give, for the groups [from, to). X is taken in blocks of its rows where
// the pattern is cut, as in products.
template <int R, int N, bool Whole, class T, class Index>
void gradient_part(const SparseRows<T, Index, T> &w, const T *grad, const T *x, std::int64_t batch, std::int64_t width,
                   T *gradient, bool first, std::int64_t from, std::int64_t to) {
    constexpr std::int64_t ahead = 12;
    if (!w.cut) {
        for (std::int64_t g = from; g < to; ++g)
            gradient_segment<R, N, Whole>(w.index, w.ptr[g], w.ptr[g + 1], grad + g * R * batch, batch, x, batch, width,
                                          gradient, first);
        return;
    }
    const std::int64_t blocks = (w.columns + w.block - 1) / w.block;
    const std::int64_t usual = (w.ptr[w.groups] - w.ptr[0]) / (w.groups * blocks);
    const std::int64_t value_lines = usual * sizeof(T) / 64 + 2, index_lines = usual * sizeof(Index) / 64 + 1;
    Room<T> room(w.block * width);
    for (std::int64_t b = 0; b < blocks; ++b) {
        const std::int64_t low = b * w.block;
        pack(x + low * batch, std::min(w.block, w.columns - low), batch, width, room.data(), width);
        const std::uint32_t *begin = w.cut + b * w.groups, *end = begin + w.groups;
        for (std::int64_t g = from; g < to; ++g) {
            if (const std::int64_t later = g + ahead; later < to) {
                prefetch_lines(gradient + begin[later], value_lines);
                prefetch_lines(w.index + begin[later], index_lines);
                prefetch_lines(grad + later * batch, width * sizeof(T) / 64);
            }
            gradient_segment<R, N, Whole>(w.index, begin[g], end[g], grad + g * batch, batch, room.data() - low * width,
                                          width, width, gradient, first);
        }
    }
}

// gradient[k * R + r] = <dO[g * R + r, :], X[index[k], :]>: of the stored values only.
template <int R, class T, class Index>
void values_gradient_part(const SparseRows<T, Index, T> &w, const T *grad, const T *x, std::int64_t batch, T *gradient,
                          std::int64_t from, std::int64_t to) {
    constexpr int n = Vec<T>::n, N = R == 1 ? 8 : R == 4 ? 2 : 1, last = R == 1 ? 2 : 1;
    for (std::int64_t c = 0; c < batch;) {
        const std::int64_t left = batch - c;
        auto run = [&](auto vectors, auto whole, std::int64_t width) {
            gradient_part<R, decltype(vectors)::value, decltype(whole)::value>(w, grad + c, x + c, batch, width, gradient,
                                                                               c == 0, from, to);
            c += width;
        };
        if (left >= N * n)
            run(std::integral_constant<int, N>(), std::true_type(), N * n);
        else if (N > 4 && left >= 4 * n)
            run(std::integral_constant<int, std::min(N, 4)>(), std::true_type(), 4 * n);
        else
            run(std::integral_constant<int, last>(), std::false_type(), std::min<std::int64_t>(left, last * n));
    }
}

template <int R, class T, class Index>
__attribute__((noinline)) void values_gradient(const SparseRows<T, Index, T> &w, const T *grad, const T *x,
                                               std::int64_t batch, T *gradient, int asked) {
    const int threads = threads_for((w.ptr[w.groups] - w.ptr[0] + w.groups) * R * batch, asked, 1 << 18);
    by_entries(w.ptr, w.groups, threads, [&](std::int64_t from, std::int64_t to) {
        values_gradient_part<R>(w, grad, x, batch, gradient, from, to);
    });
}

}  // namespace ellzero
