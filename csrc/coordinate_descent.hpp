// Cyclic coordinate descent on a smooth quadratic plus  sum_j weight_j p(w_j)  for a penalty p of penalties.hpp.
//
// GramDescent works on w' G w / 2 - c' w: the cost of a changed coordinate is one row of G, whatever the number of
// observations was. ColumnDescent works on |y - X w|^2 / (2 n) for sparse X: the cost of a coordinate is what its
// column stores, which is less where columns are very sparse. Sweeps over the nonzero coordinates alternate with full
// sweeps; the end is a full sweep in which no coordinate moves its own gradient by more than `tol`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "penalties.hpp"

namespace ellzero {

template <class T> struct Descent {
    std::int64_t sweeps;
    T change;  // the largest |step| * curvature of the last full sweep
};

// `update(j)` moves coordinate j to its minimum and answers |step| * curvature.
template <class T, class Update>
Descent<T> descend_cyclically(std::int64_t size, const T *w, T tol, std::int64_t max_sweeps, Update update) {
    std::vector<std::int64_t> support;
    std::int64_t sweeps = 0;
    T change = penalties::infinity<T>;
    while (sweeps < max_sweeps) {
        change = T(0);
        for (std::int64_t j = 0; j < size; ++j) change = std::max(change, update(j));
        ++sweeps;
        if (!(change > tol)) break;
        support.clear();
        for (std::int64_t j = 0; j < size; ++j)
            if (w[j] != T(0)) support.push_back(j);
        for (T inner = penalties::infinity<T>; inner > tol && sweeps < max_sweeps; ++sweeps) {
            inner = T(0);
            for (std::int64_t j : support) inner = std::max(inner, update(j));
        }
    }
    return {sweeps, change};
}

// The penalised minimum of a coordinate at `old` with this gradient and curvature. A column of zeros changes nothing
// but the penalty: only zero is sensible.
template <class T, class Penalty>
T coordinate_minimum(const Penalty &penalty, T old, T gradient, T curvature, T weight, bool positive) {
    return curvature > T(0)
               ? penalties::prox(penalty, old - gradient / curvature, T(1) / curvature, weight, positive)
               : penalties::prox(penalty, T(0), T(1), weight, positive);
}

template <class T, class Penalty> class GramDescent {
  public:
    // gram: row i starts at gram + i * stride; `gradient` is G w - c, kept up to date; weights may be null (all one).
    GramDescent(const Penalty &penalty, const T *gram, std::int64_t stride, std::int64_t size, const T *weights,
                bool positive, T *w, T *gradient)
        : penalty_(penalty), gram_(gram), stride_(stride), size_(size), weights_(weights), positive_(positive), w_(w),
          gradient_(gradient) {}

    Descent<T> run(T tol, std::int64_t max_sweeps) {
        return descend_cyclically(size_, w_, tol, max_sweeps, [this](std::int64_t j) { return update(j); });
    }

  private:
    T update(std::int64_t j) {
        const T *row = gram_ + j * stride_;
        const T curvature = row[j], old = w_[j];
        const T now = coordinate_minimum(penalty_, old, gradient_[j], curvature, weights_ ? weights_[j] : T(1), positive_);
        const T step = now - old;
        if (step == T(0)) return T(0);
        w_[j] = now;
        T *__restrict gradient = gradient_;
        const T *__restrict entries = row;
        for (std::int64_t i = 0; i < size_; ++i) gradient[i] += step * entries[i];
        return std::abs(step) * curvature;
    }

    const Penalty &penalty_;
    const T *gram_;
    std::int64_t stride_, size_;
    const T *weights_;
    bool positive_;
    T *w_, *gradient_;
};

// Columns of a CSC matrix, less `means[j]` times the vector `ones` (none where means is null), never formed.
template <class T, class I> struct SparseColumns {
    const T *data;
    const I *rows, *starts;
    const std::int64_t *index;     // the columns that take part
    const T *curvature;            // |column|^2 / n of each of those, centred
    const T *means, *sums, *ones;  // of each of those: mean and product with ones; ones: one entry per row
};

template <class T, class I, class Penalty> class ColumnDescent {
  public:
    // residual: y - X w for the columns without their means, in place; centred again by `finish`.
    ColumnDescent(const Penalty &penalty, const SparseColumns<T, I> &x, std::int64_t n, std::int64_t size,
                  const T *weights, bool positive, T *w, T *residual)
        : penalty_(penalty), x_(x), n_(n), size_(size), weights_(weights), positive_(positive), w_(w),
          residual_(residual) {}

    Descent<T> run(T tol, std::int64_t max_sweeps) {
        const auto done = descend_cyclically(size_, w_, tol, max_sweeps, [this](std::int64_t j) { return update(j); });
        if (x_.means)
            for (std::int64_t i = 0; i < n_; ++i) residual_[i] += offset_ * x_.ones[i];
        return done;
    }

  private:
    // The residual is residual_ + offset_ * ones; it is orthogonal to ones, so the mean of a column meets nothing.
    T update(std::int64_t j) {
        const I from = x_.starts[x_.index[j]], to = x_.starts[x_.index[j] + 1];
        const T curvature = x_.curvature[j], old = w_[j];
        T even = x_.means ? offset_ * x_.sums[j] : T(0), odd = T(0);
        I k = from;
        for (; k + 1 < to; k += 2) {
            even += x_.data[k] * residual_[x_.rows[k]];
            odd += x_.data[k + 1] * residual_[x_.rows[k + 1]];
        }
        if (k < to) even += x_.data[k] * residual_[x_.rows[k]];
        const T gradient = -(even + odd) / T(n_);
        const T now = coordinate_minimum(penalty_, old, gradient, curvature, weights_ ? weights_[j] : T(1), positive_);
        const T step = now - old;
        if (step == T(0)) return T(0);
        w_[j] = now;
        for (k = from; k < to; ++k) residual_[x_.rows[k]] -= step * x_.data[k];
        if (x_.means) offset_ += step * x_.means[j];
        return std::abs(step) * curvature;
    }

    const Penalty &penalty_;
    const SparseColumns<T, I> &x_;
    std::int64_t n_, size_;
    const T *weights_;
    bool positive_;
    T *w_, *residual_;
    T offset_ = T(0);
};

}  // namespace ellzero
