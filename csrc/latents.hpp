// What a sparse code does with a dictionary W [m, d] of which each sample uses a few rows: select, decode, and the
// gradients that flow only through the entries in use.
//
// A code is values [B, k] and indices [B, k]. An entry whose value (or coefficient) is zero is absent: its row is not
// read, so 0 x inf is no NaN there. Every number is summed in one fixed order, whatever the threads: samples and
// latents belong to one thread each, and where a sum runs over slices of d, the slices do not depend on the threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "simd.hpp"
#include "sparse_product.hpp"
#include "threads.hpp"
#include "top_k.hpp"

namespace ellzero {

enum class Rule { relu, sign, absolute };

// Calls whole(i) for each full vector of [0, d) and part(i, count) for what is left.
template <class T, class Whole, class Part> inline void by_vectors(std::int64_t d, Whole whole, Part part) {
    constexpr int n = Vec<T>::n;
    std::int64_t i = 0;
    for (; i + n <= d; i += n) whole(i);
    if (i < d) part(i, static_cast<int>(d - i));
}

// to += sum_r a[r] from[r] for N rows of d numbers; meanwhile the rows `next` are on their way into the cache.
template <int N, class T>
inline void add_rows(T *to, const T *const *from, const T *a, std::int64_t d, const T *const *next) {
    using V = Vec<T>;
    constexpr std::int64_t line = 64 / sizeof(T);
    V scale[N];
    for (int r = 0; r < N; ++r) scale[r] = V::all(a[r]);
    by_vectors<T>(
        d,
        [&](std::int64_t i) __attribute__((always_inline)) {
            if (i % line == 0)
                for (int r = 0; r < N; ++r) __builtin_prefetch(next[r] + i);
            V sum = V::load(to + i);
            for (int r = 0; r < N; ++r) sum = fma(scale[r], V::load(from[r] + i), sum);
            sum.store(to + i);
        },
        [&](std::int64_t i, int count) {
            V sum = V::partial(to + i, count);
            for (int r = 0; r < N; ++r) sum = fma(scale[r], V::partial(from[r] + i, count), sum);
            sum.store_partial(to + i, count);
        });
}

// Rows with their coefficients, added to `to` four at a time in the order given.
template <class T> class RowSum {
  public:
    void clear() { from.clear(), scale.clear(); }
    void add(T a, const T *row) { from.push_back(row), scale.push_back(a); }
    std::size_t count() const { return from.size(); }
    // The same for one row, and the squared norm of what `to` then holds.
    T run_square(T *to, std::int64_t d, const T *later) {
        using V = Vec<T>;
        const V a = V::all(scale[0]);
        const T *row = from[0];
        V even = V::zero(), odd = V::zero();  // an fma waits four cycles for the one before it
        auto whole = [&](std::int64_t i, V &total) __attribute__((always_inline)) {
            const V left = fma(a, V::load(row + i), V::load(to + i));
            left.store(to + i);
            total = fma(left, left, total);
        };
        std::int64_t i = 0;
        for (; i + 2 * V::n <= d; i += 2 * V::n) {
            __builtin_prefetch(later + i);
            whole(i, even), whole(i + V::n, odd);
        }
        if (i + V::n <= d) whole(i, even), i += V::n;
        if (i < d) {
            const int rest = static_cast<int>(d - i);
            const V left = fma(a, V::partial(row + i, rest), V::partial(to + i, rest));
            left.store_partial(to + i, rest);
            odd = fma(left, left, odd);
        }
        return (even + odd).sum();
    }
    void run(T *to, std::int64_t d, const T *later) {
        const std::size_t count = from.size();
        from.insert(from.end(), 8, later);
        std::size_t i = 0;
        for (; i + 4 <= count; i += 4) add_rows<4>(to, &from[i], &scale[i], d, &from[i + 4]);
        for (; i < count; ++i) add_rows<1>(to, &from[i], &scale[i], d, &from[i + 1]);
    }

  private:
    std::vector<const T *> from;
    std::vector<T> scale;
};

// sums[r] = <rows[r], x> for N rows.
template <int N, class T>
inline void dots(const T *const *rows, const T *x, std::int64_t d, T *sums, const T *const *next) {
    using V = Vec<T>;
    constexpr int chains = N >= 4 ? 1 : 4;
    constexpr std::int64_t line = 64 / sizeof(T);
    V sum[chains][N];
    for (auto &chain : sum)
        for (V &s : chain) s = V::zero();
    std::int64_t i = 0;
    auto ahead = [&](std::int64_t at) __attribute__((always_inline)) {
        if (next && at % line == 0)
            for (int r = 0; r < N; ++r) __builtin_prefetch(next[r] + at);
    };
    for (; i + chains * V::n <= d; i += chains * V::n)
        for (int u = 0; u < chains; ++u) {
            ahead(i + u * V::n);
            V given = V::load(x + i + u * V::n);
            for (int r = 0; r < N; ++r) sum[u][r] = fma(V::load(rows[r] + i + u * V::n), given, sum[u][r]);
        }
    by_vectors<T>(
        d - i,
        [&](std::int64_t j) {
            for (int r = 0; r < N; ++r) sum[0][r] = fma(V::load(rows[r] + i + j), V::load(x + i + j), sum[0][r]);
        },
        [&](std::int64_t j, int count) {
            for (int r = 0; r < N; ++r)
                sum[0][r] = fma(V::partial(rows[r] + i + j, count), V::partial(x + i + j, count), sum[0][r]);
        });
    for (int r = 0; r < N; ++r) {
        V total = sum[0][r];
        for (int u = 1; u < chains; ++u) total = total + sum[u][r];
        sums[r] = total.sum();
    }
}

template <class T> inline T dot(const T *a, const T *b, std::int64_t d) {
    T sum;
    dots<1>(&a, b, d, &sum, static_cast<const T *const *>(nullptr));
    return sum;
}

// The k entries of each row of pre + bias that the rule wants, values descending by what it ranks. Of row b the first
// counts[b] are kept (null: k); the others, and by Rule::relu those that are not positive, become 0 of latent 0.
// NaN ranks after every number and stays NaN where numbers run out.
template <class T>
void select_rows(const T *pre, const T *bias, const std::int64_t *counts, Rule rule, std::int64_t rows,
                 std::int64_t n, std::int64_t k, T *values, std::int64_t *indices, int asked) {
    auto run = [=](std::int64_t from, std::int64_t to) {
        RowTopK<T> top_k(n, k);
        const bool absolute = rule == Rule::absolute;
        std::vector<T> ranked(absolute || bias ? n : 0);
        for (std::int64_t b = from; b < to; ++b) {
            const T *row = pre + b * n;
            T *value = values + b * k, *ranks = ranked.data();
            std::int64_t *index = indices + b * k;
            if (bias)
                for (std::int64_t i = 0; i < n; ++i) ranks[i] = row[i] + bias[i];
            if (absolute)
                for (std::int64_t i = 0; i < n; ++i) ranks[i] = std::abs(bias ? ranks[i] : row[i]);
            top_k(ranked.empty() ? row : ranks, value, index);
            const std::int64_t kept = counts ? counts[b] : k;
            for (std::int64_t j = 0; j < k; ++j) {
                if (absolute) value[j] = bias ? row[index[j]] + bias[index[j]] : row[index[j]];
                if (j >= kept || (rule == Rule::relu && value[j] <= 0)) value[j] = 0, index[j] = 0;
            }
        }
    };
    int threads = static_cast<int>(std::min<std::int64_t>(rows, threads_for(rows * n, asked)));
    in_parts(rows, threads, run);
}

// out[b] = sum_j values[b, j] W[indices[b, j]].
template <class T>
void decode_rows(const T *values, const std::int64_t *indices, const T *W, std::int64_t rows, std::int64_t k,
                 std::int64_t d, T *out, int asked) {
    in_parts(rows, threads_for(rows * (k + 1) * d, asked, 1 << 18), [=](std::int64_t from, std::int64_t to) {
        RowSum<T> sum;
        for (std::int64_t b = from; b < to; ++b) {
            sum.clear();
            for (std::int64_t p = b * k; p < (b + 1) * k; ++p)
                if (values[p] != 0) sum.add(values[p], W + indices[p] * d);
            std::fill_n(out + b * d, d, T(0));
            sum.run(out + b * d, d, k && b + 1 < to ? W + indices[(b + 1) * k] * d : out + b * d);
        }
    });
}

// out[b, j] = <W[indices[b, j]], x[b]>.
template <class T>
void rows_dot(const std::int64_t *indices, const T *W, const T *x, std::int64_t rows, std::int64_t k, std::int64_t d,
              T *out, int asked) {
    in_parts(rows, threads_for(rows * k * d, asked, 1 << 18), [=](std::int64_t from, std::int64_t to) {
        std::vector<const T *> at(k + 8);
        for (std::int64_t b = from; b < to; ++b) {
            for (std::int64_t j = 0; j < k; ++j) at[j] = W + indices[b * k + j] * d;
            std::fill_n(at.begin() + k, 8, b + 1 < to ? W + indices[(b + 1) * k] * d : at[0]);
            std::int64_t j = 0;
            for (; j + 4 <= k; j += 4) dots<4>(&at[j], x + b * d, d, out + b * k + j, &at[j + 4]);
            for (; j < k; ++j) dots<1>(&at[j], x + b * d, d, out + b * k + j, &at[j + 1]);
        }
    });
}

// The entries of a code by latent, each latent's in the order of the samples: one counting sort.
template <class T> struct Uses {
    struct Use {
        T coefficient;
        std::int32_t row;
    };
    std::vector<std::int64_t> ptr;
    std::vector<Use> uses;

    Uses(const T *coefficients, const std::int64_t *indices, std::int64_t rows, std::int64_t k, std::int64_t m)
        : ptr(m + 2, 0) {
        for (std::int64_t p = 0; p < rows * k; ++p) ptr[indices[p] + 2] += coefficients[p] != 0;
        for (std::int64_t i = 2; i < m + 2; ++i) ptr[i] += ptr[i - 1];
        uses.resize(ptr[m + 1]);
        for (std::int64_t b = 0, p = 0; b < rows; ++b)
            for (std::int64_t j = 0; j < k; ++j, ++p)
                if (coefficients[p] != 0) uses[ptr[indices[p] + 1]++] = {coefficients[p], static_cast<std::int32_t>(b)};
    }
};

// out[i] = sum over entries (b, j) of latent i of coefficients[b, j] x[b], and sums[i] that of the coefficients.
template <class T>
void accumulate_rows(const T *coefficients, const std::int64_t *indices, const T *x, std::int64_t rows,
                     std::int64_t k, std::int64_t d, std::int64_t m, T *out, T *sums, int asked) {
    const Uses<T> by(coefficients, indices, rows, k, m);
    const int threads = threads_for((std::int64_t(by.uses.size()) + m) * d, asked, 1 << 18);
    by_entries(by.ptr.data(), m, threads, [&](std::int64_t from, std::int64_t to) {
        RowSum<T> sum;
        for (std::int64_t i = from; i < to; ++i) {
            sum.clear();
            T total = 0;
            for (std::int64_t e = by.ptr[i]; e < by.ptr[i + 1]; ++e) {
                sum.add(by.uses[e].coefficient, x + by.uses[e].row * d);
                total += by.uses[e].coefficient;
            }
            sums[i] = total;
            std::fill_n(out + i * d, d, T(0));
            const bool more = by.ptr[i + 1] < std::int64_t(by.uses.size());
            sum.run(out + i * d, d, more ? x + by.uses[by.ptr[i + 1]].row * d : out + i * d);
        }
    });
}

// Nested reconstructions: level l of row b is the target less the first ends[b, l] entries of its code (ends rise).
// errors[b, l] is the squared norm of that residual; `residual` holds the target and then what all entries leave.
template <class T>
void nested_errors(const T *values, const std::int64_t *indices, const T *W, const std::int64_t *ends,
                   std::int64_t rows, std::int64_t k, std::int64_t d, std::int64_t levels, T *errors, T *residual,
                   int asked) {
    in_parts(rows, threads_for(rows * (k + levels + 1) * d, asked, 1 << 18), [=](std::int64_t from, std::int64_t to) {
        RowSum<T> sum;
        for (std::int64_t b = from; b < to; ++b) {
            T *r = residual + b * d;
            const std::int64_t *index = indices + b * k, *end = ends + b * levels;
            std::int64_t level = 0;
            for (std::int64_t i = 0;; ++i) {
                const bool at_end = level < levels && end[level] <= i;
                if (at_end || i == k) {
                    const T *later = i + 1 < k ? W + index[i + 1] * d : r;
                    T square = 0;
                    if (at_end && sum.count() == 1) {
                        square = sum.run_square(r, d, later);
                    } else {
                        sum.run(r, d, later);
                        if (at_end) square = dot(r, r, d);
                    }
                    sum.clear();
                    for (; level < levels && end[level] <= i; ++level) errors[b * levels + level] = square;
                }
                if (i == k) break;
                if (values[b * k + i] != 0) sum.add(-values[b * k + i], W + index[i] * d);
            }
        }
    });
}

// One entry on the way back over `count` columns: returns <w, s>, adds -value s to `gradient` and value w to r.
template <class T>
inline T step_back(const T *w, const T *s, T value, T *gradient, T *r, std::int64_t count) {
    using V = Vec<T>;
    const V up = V::all(value), down = V::all(-value);
    V even = V::zero(), odd = V::zero();  // an fma waits four cycles for the one before it
    auto whole = [&](std::int64_t c, V &total) __attribute__((always_inline)) {
        const V row = V::load(w + c), given = V::load(s + c);
        total = fma(row, given, total);
        fma(down, given, V::load(gradient + c)).store(gradient + c);
        fma(up, row, V::load(r + c)).store(r + c);
    };
    std::int64_t c = 0;
    for (; c + 2 * V::n <= count; c += 2 * V::n) whole(c, even), whole(c + V::n, odd);
    if (c + V::n <= count) whole(c, even), c += V::n;
    if (c < count) {
        const int left = static_cast<int>(count - c);
        const V row = V::partial(w + c, left), given = V::partial(s + c, left);
        odd = fma(row, given, odd);
        fma(down, given, V::partial(gradient + c, left)).store_partial(gradient + c, left);
        fma(up, row, V::partial(r + c, left)).store_partial(r + c, left);
    }
    return (even + odd).sum();
}

// The derivative of sum weights[b, l] errors[b, l]. With s the sum of 2 weights r over the levels that hold entry i,
// that by its row of W is -value s, by its value -<w, s>, and by the target s over all levels. Residuals are taken
// back entry by entry from the last, so that nothing of size rows x k x d is kept. Columns belong to one thread each,
// which walks all rows in their order; products with w are summed by units of columns, however these are dealt out.
template <class T>
void nested_gradient(const T *values, const std::int64_t *indices, const T *W, const T *residual,
                     const std::int64_t *ends, const T *weights, std::int64_t rows, std::int64_t k, std::int64_t d,
                     std::int64_t m, std::int64_t levels, T *by_values, T *by_W, T *by_target, int asked) {
    constexpr std::int64_t unit = 512 / sizeof(T), most = 8;
    const std::int64_t units = (d + unit - 1) / unit;
    std::vector<T> partial(units * rows * k);
    auto slice = [&](std::int64_t first, std::int64_t last) {
        std::vector<T> room(2 * most * unit);
        T *r = room.data(), *s = r + most * unit;
        const std::int64_t begin = first * unit, count = std::min(last * unit, d) - begin;
        const std::int64_t ahead = last - first >= 4 ? 1 : last - first >= 2 ? 2 : 4;
        const T *own = W + begin;
        T *to = by_W + begin;
        for (std::int64_t i = 0; i < m; ++i) std::fill_n(to + i * d, count, T(0));
        for (std::int64_t b = 0; b < rows; ++b) {
            std::copy_n(residual + b * d + begin, count, r);
            std::fill_n(s, count, T(0));
            std::int64_t level = levels;
            for (std::int64_t i = k;; --i) {
                for (; level > 0 && ends[b * levels + level - 1] >= i; --level) {
                    const T weight = 2 * weights[b * levels + level - 1];
                    for (std::int64_t c = 0; c < count; ++c) s[c] += weight * r[c];
                }
                if (i == 0) break;
                const std::int64_t p = b * k + i - 1, next = i > ahead ? p - ahead : p + 2 * k - ahead;
                const std::int64_t later = indices[next >= 0 && next < rows * k ? next : p] * d, at = indices[p] * d;
                for (std::int64_t c = 0, u = first; c < count; c += unit, ++u) {
                    const std::int64_t width = std::min(unit, count - c);
                    for (std::int64_t l = c; l < c + width; l += 64 / sizeof(T)) {
                        __builtin_prefetch(own + later + l);
                        __builtin_prefetch(to + later + l, 1);
                    }
                    const T *w = own + at + c;
                    partial[u * rows * k + p] = values[p] != 0
                                                    ? -step_back(w, s + c, values[p], to + at + c, r + c, width)
                                                    : -dot(w, s + c, width);
                }
            }
            std::copy_n(s, count, by_target + b * d + begin);
        }
    };
    const int threads = threads_for(rows * k * d, asked, 1 << 18);
    in_parts(units, static_cast<int>(std::min<std::int64_t>(threads, units)), [&](std::int64_t from, std::int64_t to) {
        for (; from < to; from += most) slice(from, std::min(from + most, to));
    });
    std::fill_n(by_values, rows * k, T(0));
    for (std::int64_t u = 0; u < units; ++u)
        for (std::int64_t p = 0; p < rows * k; ++p) by_values[p] += partial[u * rows * k + p];
}

}  // namespace ellzero
