// Cyclic coordinate descent on  w' G w / 2 - c' w + sum_j weight_j p(w_j)  for a penalty p of penalties.hpp.
//
// Works in Gram space: the cost of a changed coordinate is one row of G, whatever the number of observations was.
// `gradient` is G w - c and is kept up to date. Sweeps over the nonzero coordinates alternate with full sweeps; the
// end is a full sweep in which no coordinate moves its own gradient by more than `tol`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "penalties.hpp"

namespace ellzero {

template <class T> struct Descent {
    std::int64_t sweeps;
    T change;  // the largest |step| * G_jj of the last full sweep
};

template <class T, class Penalty> class GramDescent {
  public:
    // gram: row i starts at gram + i * stride; weights may be null (all one).
    GramDescent(const Penalty &penalty, const T *gram, std::int64_t stride, std::int64_t size, const T *weights,
                bool positive, T *w, T *gradient)
        : penalty_(penalty), gram_(gram), stride_(stride), size_(size), weights_(weights), positive_(positive), w_(w),
          gradient_(gradient) {}

    Descent<T> run(T tol, std::int64_t max_sweeps) {
        std::int64_t sweeps = 0;
        T change = penalties::infinity<T>;
        while (sweeps < max_sweeps) {
            change = T(0);
            for (std::int64_t j = 0; j < size_; ++j) change = std::max(change, update(j));
            ++sweeps;
            if (!(change > tol)) break;
            support_.clear();
            for (std::int64_t j = 0; j < size_; ++j)
                if (w_[j] != T(0)) support_.push_back(j);
            for (T inner = penalties::infinity<T>; inner > tol && sweeps < max_sweeps; ++sweeps) {
                inner = T(0);
                for (std::int64_t j : support_) inner = std::max(inner, update(j));
            }
        }
        return {sweeps, change};
    }

  private:
    T update(std::int64_t j) {
        const T *row = gram_ + j * stride_;
        const T curvature = row[j], old = w_[j];
        const T weight = weights_ ? weights_[j] : T(1);
        // A column of zeros changes nothing but the penalty: only zero is sensible.
        const T now = curvature > T(0) ? penalties::prox(penalty_, old - gradient_[j] / curvature, T(1) / curvature,
                                                         weight, positive_)
                                       : penalties::prox(penalty_, T(0), T(1), weight, positive_);
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
    std::vector<std::int64_t> support_;
};

}  // namespace ellzero
