// Adam over the rows of a matrix in one pass over memory: the gradient's component along the row taken out, clipping,
// the step, and the row put back to norm 1. Rows belong to one thread each.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "latents.hpp"

namespace ellzero {

template <class T> struct Adam {
    T rate;      // lr / (1 - beta1^step)
    T root;      // 1 / sqrt(1 - beta2^step)
    T eps, keep1, new1, keep2, new2;  // beta and 1 - beta
    T clip;      // factor on the gradient
    bool unit_norm;  // rows stay of norm 1
    bool skip_zero;  // a row whose gradient is zero stays as it is, and so do its moments
};

// Below the smallest normal number processors are slow, and the moments of a latent that died end up there.
template <class T> inline T flushed(T x) { return std::abs(x) < std::numeric_limits<T>::min() ? T(0) : x; }

template <class T>
void row_adam(T *W, const T *gradient, T *first, T *second, std::int64_t rows, std::int64_t d, Adam<T> by, int asked) {
    in_parts(rows, threads_for(rows * d, asked, 1 << 16), [=](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) {
            T *__restrict w = W + i * d, *__restrict m = first + i * d, *__restrict v = second + i * d;
            const T *__restrict g = gradient + i * d;
            if (by.skip_zero) {
                std::int64_t c = 0;
                while (c < d && g[c] == 0) ++c;
                if (c == d) continue;
            }
            const T along = by.unit_norm ? dot<T>(g, w, d) : T(0);
#pragma omp simd
            for (std::int64_t c = 0; c < d; ++c) {
                const T x = (by.unit_norm ? g[c] - along * w[c] : g[c]) * by.clip;
                m[c] = flushed(m[c] * by.keep1 + x * by.new1);
                v[c] = flushed(v[c] * by.keep2 + x * x * by.new2);
                w[c] -= by.rate * m[c] / (std::sqrt(v[c]) * by.root + by.eps);
            }
            if (!by.unit_norm) continue;
            const T norm = std::sqrt(dot<T>(w, w, d));
            const T scale = 1 / (norm < T(1e-12) ? T(1e-12) : norm);
#pragma omp simd
            for (std::int64_t c = 0; c < d; ++c) w[c] *= scale;
        }
    });
}

// squares[i] = the squared norm of row i of the gradient; with W, of what is left without the component along W's row.
template <class T>
void row_squares(const T *gradient, const T *W, std::int64_t rows, std::int64_t d, double *squares, int asked) {
    using V = Vec<T>;
    in_parts(rows, threads_for(rows * d, asked, 1 << 16), [=](std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) {
            const T *g = gradient + i * d, *w = W ? W + i * d : g;
            const V along = V::all(W ? -dot(g, w, d) : T(0));
            V sum = V::zero();
            by_vectors<T>(
                d,
                [&](std::int64_t c) {
                    const V left = fma(along, V::load(w + c), V::load(g + c));
                    sum = fma(left, left, sum);
                },
                [&](std::int64_t c, int count) {
                    const V left = fma(along, V::partial(w + c, count), V::partial(g + c, count));
                    sum = fma(left, left, sum);
                });
            squares[i] = static_cast<double>(sum.sum());
        }
    });
}

}  // namespace ellzero
