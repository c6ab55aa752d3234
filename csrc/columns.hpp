// Products with the columns of a dense matrix: X'u, X w, sums and squares, and blocks of X'X.
//
// Every number of a result is summed by one thread in an order that depends on the shapes alone, so no result
// depends on the thread count. The matrix comes by columns (X' in C order) or by rows (X in C order).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.hpp"

namespace ellzero::columns {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

// Entries read per thread at least: about half a millisecond, far above what waking a thread costs.
constexpr std::int64_t grain = 1 << 21;

template <class T> struct Wide;
template <> struct Wide<float> { typedef float type __attribute__((vector_size(vector_bytes))); };
template <> struct Wide<double> { typedef double type __attribute__((vector_size(vector_bytes))); };
template <class T> using wide = typename Wide<T>::type;
template <class T> constexpr int wide_size = vector_bytes / int(sizeof(T));

template <class T> inline wide<T> load(const T *p) {
    wide<T> x;
    std::memcpy(&x, p, sizeof(x));
    return x;
}

template <class T> inline T total(wide<T> x) {
    T sum = T(0);
    for (int i = 0; i < wide_size<T>; ++i) sum += x[i];
    return sum;
}

template <class T> inline T dot(const T *a, const T *b, std::int64_t n) {
    constexpr int step = wide_size<T>;
    wide<T> s0{}, s1{}, s2{}, s3{};
    std::int64_t i = 0;
    for (; i + 4 * step <= n; i += 4 * step) {
        s0 += load(a + i) * load(b + i);
        s1 += load(a + i + step) * load(b + i + step);
        s2 += load(a + i + 2 * step) * load(b + i + 2 * step);
        s3 += load(a + i + 3 * step) * load(b + i + 3 * step);
    }
    for (; i + step <= n; i += step) s0 += load(a + i) * load(b + i);
    T sum = total<T>((s0 + s1) + (s2 + s3));
    for (; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

template <class T> inline void add_multiple(T factor, const T *__restrict x, T *__restrict y, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

// out[i] = column[index[i]] . u, or of all columns where index is null; column j starts at x + j * n.
template <class T>
void column_products(const T *x, std::int64_t n, const std::int64_t *index, std::int64_t count, const T *u, T *out,
                     int threads) {
    in_parts(count, threads_for(n * count, threads, grain), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) out[i] = dot(x + (index ? index[i] : i) * n, u, n);
    });
}

// The same for a matrix by rows: out = sum_i u_i row_i, in strips that stay in the nearest cache.
template <class T> void row_combination(const T *x, std::int64_t n, std::int64_t p, const T *u, T *out, int threads) {
    constexpr std::int64_t strip = 2048;
    const std::int64_t strips = (p + strip - 1) / strip;
    in_parts(strips, std::min<int>(threads_for(n * p, threads, grain), int(strips)), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t s = from; s < to; ++s) {
            const std::int64_t start = s * strip, width = std::min(strip, p - start);
            T *__restrict sums = out + start;
            std::fill(sums, sums + width, T(0));
            std::int64_t i = 0;
            for (; i + 4 <= n; i += 4) {
                const T *__restrict r0 = x + i * p + start, *__restrict r1 = r0 + p;
                const T *__restrict r2 = r1 + p, *__restrict r3 = r2 + p;
                const T u0 = u[i], u1 = u[i + 1], u2 = u[i + 2], u3 = u[i + 3];
                for (std::int64_t j = 0; j < width; ++j)
                    sums[j] += (u0 * r0[j] + u1 * r1[j]) + (u2 * r2[j] + u3 * r3[j]);
            }
            for (; i < n; ++i) add_multiple(u[i], x + i * p + start, sums, width);
        }
    });
}

// As many T as there are doubles in a vector, as doubles.
template <class T> inline wide<double> load_doubles(const T *p) {
    typedef T few __attribute__((vector_size(wide_size<double> * sizeof(T))));
    few x;
    std::memcpy(&x, p, sizeof(x));
    return __builtin_convertvector(x, wide<double>);
}

// Sum and sum of squares of each column, in double precision throughout.
template <class T>
void column_moments(const T *x, std::int64_t n, std::int64_t p, double *sums, double *squares, int threads) {
    constexpr int step = wide_size<double>;
    in_parts(p, threads_for(n * p, threads, grain), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t j = from; j < to; ++j) {
            const T *column = x + j * n;
            wide<double> s0{}, s1{}, q0{}, q1{};
            std::int64_t k = 0;
            for (; k + 2 * step <= n; k += 2 * step) {
                const wide<double> a = load_doubles(column + k), b = load_doubles(column + k + step);
                s0 += a;
                s1 += b;
                q0 += a * a;
                q1 += b * b;
            }
            double sum = total<double>(s0 + s1), square = total<double>(q0 + q1);
            for (; k < n; ++k) {
                sum += double(column[k]);
                square += double(column[k]) * double(column[k]);
            }
            sums[j] = sum;
            squares[j] = square;
        }
    });
}

// The same for a matrix by rows.
template <class T>
void row_moments(const T *x, std::int64_t n, std::int64_t p, double *sums, double *squares, int threads) {
    constexpr std::int64_t strip = 1024;
    const std::int64_t strips = (p + strip - 1) / strip;
    in_parts(strips, std::min<int>(threads_for(n * p, threads, grain), int(strips)), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t s = from; s < to; ++s) {
            const std::int64_t start = s * strip, width = std::min(strip, p - start);
            double *__restrict sum = sums + start, *__restrict square = squares + start;
            std::fill(sum, sum + width, 0.0);
            std::fill(square, square + width, 0.0);
            std::int64_t i = 0;
            for (; i + 4 <= n; i += 4) {
                const T *__restrict r0 = x + i * p + start, *__restrict r1 = r0 + p;
                const T *__restrict r2 = r1 + p, *__restrict r3 = r2 + p;
                for (std::int64_t j = 0; j < width; ++j) {
                    const double a = r0[j], b = r1[j], c = r2[j], d = r3[j];
                    sum[j] += (a + b) + (c + d);
                    square[j] += (a * a + b * b) + (c * c + d * d);
                }
            }
            for (; i < n; ++i)
                for (std::int64_t j = 0; j < width; ++j) {
                    const double a = x[i * p + start + j];
                    sum[j] += a;
                    square[j] += a * a;
                }
        }
    });
}

// out = base + sum_i w_i column[index[i]], in strips of rows that stay in the nearest cache.
template <class T>
void column_combination(const T *x, std::int64_t n, const std::int64_t *index, std::int64_t count, const T *w,
                        const T *base, T *out, int threads) {
    constexpr std::int64_t strip = 2048;
    const std::int64_t strips = (n + strip - 1) / strip;
    in_parts(strips, std::min<int>(threads_for(n * count, threads, grain), int(strips)), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t s = from; s < to; ++s) {
            const std::int64_t start = s * strip, length = std::min(strip, n - start);
            T *__restrict sums = out + start;
            std::copy(base + start, base + start + length, sums);
            std::int64_t i = 0;
            for (; i + 4 <= count; i += 4) {
                const T *__restrict c0 = x + index[i] * n + start, *__restrict c1 = x + index[i + 1] * n + start;
                const T *__restrict c2 = x + index[i + 2] * n + start, *__restrict c3 = x + index[i + 3] * n + start;
                const T w0 = w[i], w1 = w[i + 1], w2 = w[i + 2], w3 = w[i + 3];
                for (std::int64_t k = 0; k < length; ++k)
                    sums[k] += (w0 * c0[k] + w1 * c1[k]) + (w2 * c2[k] + w3 * c3[k]);
            }
            for (; i < count; ++i) add_multiple(w[i], x + index[i] * n + start, sums, length);
        }
    });
}

// out[i * stride + j] += left_i . right_j over `length` entries, for a tile of A by B columns.
template <class T, int A, int B>
inline void tile_products(const T *left, const T *right, std::int64_t n, std::int64_t length, T *out,
                          std::int64_t stride) {
    constexpr int step = wide_size<T>;
    wide<T> sums[A][B] = {};
    std::int64_t k = 0;
    for (; k + step <= length; k += step) {
        wide<T> b[B];
#pragma GCC unroll 8
        for (int j = 0; j < B; ++j) b[j] = load(right + j * n + k);
#pragma GCC unroll 8
        for (int i = 0; i < A; ++i) {
            const wide<T> a = load(left + i * n + k);
#pragma GCC unroll 8
            for (int j = 0; j < B; ++j) sums[i][j] += a * b[j];
        }
    }
    for (int i = 0; i < A; ++i)
        for (int j = 0; j < B; ++j) {
            T sum = total<T>(sums[i][j]);
            for (std::int64_t r = k; r < length; ++r) sum += left[i * n + r] * right[j * n + r];
            out[i * stride + j] += sum;
        }
}

// out[i, j] = left_i . right_j for columns of n entries one after the other; out has rows of b entries.
template <class T>
void cross_products(const T *left, std::int64_t a, const T *right, std::int64_t b, std::int64_t n, T *out,
                    int threads) {
    constexpr std::int64_t piece = 4096 / sizeof(T), group = 24;
    const std::int64_t groups = (b + group - 1) / group;
    std::fill(out, out + a * b, T(0));
    in_parts(groups, std::min<int>(threads_for(a * b * n / 8, threads, grain), int(groups)), [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t start = 0; start < n; start += piece) {
            const std::int64_t length = std::min(piece, n - start);
            for (std::int64_t g = from; g < to; ++g)
                for (std::int64_t i = 0; i < a; i += 4) {
                    const std::int64_t end = std::min(b, (g + 1) * group);
                    for (std::int64_t j = g * group; j < end; j += 3) {
                        const T *l = left + i * n + start, *r = right + j * n + start;
                        T *o = out + i * b + j;
                        if (i + 4 <= a && j + 3 <= end) {
                            tile_products<T, 4, 3>(l, r, n, length, o, b);
                        } else {
                            for (std::int64_t x = 0; x < std::min<std::int64_t>(4, a - i); ++x)
                                for (std::int64_t y = 0; y < std::min<std::int64_t>(3, end - j); ++y)
                                    tile_products<T, 1, 1>(l + x * n, r + y * n, n, length, o + x * b + y, b);
                        }
                    }
                }
        }
    });
}

}  // namespace ellzero::columns
