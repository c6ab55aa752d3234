// The exact minimum of  w' G w / 2 - c' w + sum_j (a_j |w_j| + b_j w_j^2 / 2)  by feature-sign search (Lee, Battle,
// Raina and Ng 2007): Newton steps on the coordinates in use with their signs fixed, cut where a sign would change;
// then the coordinates that violate optimality join. Every step lowers the objective, so it ends.
//
// The Cholesky factor of the coordinates in use is kept between calls and changed by rows, so that a neighbouring
// problem (the next alpha of a path) costs a few triangular solves. The factor is double whatever T is.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "columns.hpp"

namespace ellzero::active_set {

using columns::add_multiple;
using columns::dot;

// L with L L' = G_SS + diag(b_S) for a growing and shrinking list S of coordinates; row i of L starts at i * stride.
template <class T> class Factor {
  public:
    Factor(const T *gram, std::int64_t gram_stride, const double *ridge, std::int64_t *order, double *rows,
           std::int64_t stride, std::int64_t count)
        : gram_(gram), gram_stride_(gram_stride), ridge_(ridge), order_(order), rows_(rows), stride_(stride),
          count_(count) {}

    std::int64_t count() const { return count_; }
    std::int64_t at(std::int64_t i) const { return order_[i]; }
    bool full() const { return count_ == stride_; }

    // Adds coordinates; those that depend linearly on the others are put into `dependent` instead.
    void append(const std::vector<std::int64_t> &more, std::vector<std::int64_t> &dependent) {
        for (std::size_t start = 0; start < more.size(); start += panel) {
            const std::int64_t size = std::min<std::int64_t>(panel, std::int64_t(more.size() - start));
            const std::int64_t before = count_;
            scratch_.resize(std::size_t(size * stride_));
            for (std::int64_t i = 0; i < size; ++i) gather(more[start + i], scratch_.data() + i * stride_);
            for (std::int64_t k = 0; k < before; ++k)  // one row of L serves the whole panel while it is in cache
                for (std::int64_t i = 0; i < size; ++i) substitute(scratch_.data() + i * stride_, k);
            for (std::int64_t i = 0; i < size; ++i) {
                const std::int64_t j = more[start + i];
                double *row = scratch_.data() + i * stride_;
                for (std::int64_t k = before; k < count_; ++k) {
                    row[k] = entry(j, order_[k]);
                    substitute(row, k);
                }
                const double diagonal = entry(j, j) + ridge_[j], pivot = diagonal - dot(row, row, count_);
                if (full() || !(pivot > slack * diagonal)) {
                    dependent.push_back(j);
                    continue;
                }
                std::copy(row, row + count_, rows_ + count_ * stride_);
                rows_[count_ * stride_ + count_] = std::sqrt(pivot);
                order_[count_++] = j;
            }
        }
    }

    void remove(std::int64_t place) {
        for (std::int64_t r = place + 1; r < count_; ++r)
            std::copy(rows_ + r * stride_, rows_ + r * stride_ + r + 1, rows_ + (r - 1) * stride_);
        std::copy(order_ + place + 1, order_ + count_, order_ + place);
        --count_;
        rotate(place);
    }

    // x <- (L L')^-1 x
    void solve(double *x) const {
        for (std::int64_t i = 0; i < count_; ++i) substitute(x, i);
        for (std::int64_t i = count_; i-- > 0;) {
            const double *row = rows_ + i * stride_;
            x[i] /= row[i];
            add_multiple(-x[i], row, x, i);
        }
    }

    // The combination v of the coordinates in use with G_SS v = -G_Sj.
    void null_direction(std::int64_t j, std::vector<double> &v) const {
        v.resize(std::size_t(count_));
        gather(j, v.data());
        for (double &x : v) x = -x;
        solve(v.data());
    }

  private:
    static constexpr std::int64_t panel = 32;
    static constexpr double slack = sizeof(T) == 8 ? 1e-11 : 1e-5;

    double entry(std::int64_t i, std::int64_t j) const { return double(gram_[i * gram_stride_ + j]); }
    void gather(std::int64_t j, double *row) const {
        for (std::int64_t k = 0; k < count_; ++k) row[k] = entry(j, order_[k]);
    }
    void substitute(double *x, std::int64_t k) const {
        const double *row = rows_ + k * stride_;
        x[k] = (x[k] - dot(row, x, k)) / row[k];
    }

    // Rows from `first` on carry one entry too many: rotate neighbouring columns until L is triangular again.
    void rotate(std::int64_t first) {
        const std::int64_t size = count_ - first;
        cosines_.resize(std::size_t(size));
        sines_.resize(std::size_t(size));
        for (std::int64_t r = first; r < count_; ++r) {
            double *row = rows_ + r * stride_;
            double carried = row[first];
            for (std::int64_t k = first; k < r; ++k) {
                const double c = cosines_[k - first], s = sines_[k - first], next = row[k + 1];
                row[k] = c * carried + s * next;
                carried = c * next - s * carried;
            }
            const double last = row[r + 1], length = std::hypot(carried, last);
            cosines_[r - first] = carried / length;
            sines_[r - first] = last / length;
            row[r] = length;
        }
    }

    const T *gram_;
    std::int64_t gram_stride_;
    const double *ridge_;
    std::int64_t *order_;
    double *rows_;
    std::int64_t stride_, count_;
    std::vector<double> scratch_, cosines_, sines_;
};

template <class T> class ActiveSet {
  public:
    // bounds: a, with 0 for a coordinate that is free; ridge: b. w and gradient (that of the fit, G w - c) in place.
    ActiveSet(Factor<T> &factor, const T *gram, std::int64_t stride, std::int64_t size, const double *bounds,
              const double *ridge, bool positive, T *w, T *gradient)
        : factor_(factor), gram_(gram), stride_(stride), size_(size), bounds_(bounds), ridge_(ridge),
          positive_(positive), w_(w), gradient_(gradient), signs_(std::size_t(size), 0.0), start_(w, w + size),
          used_(std::size_t(size), 0) {}

    // Whether every slope and violation came down to `tol`; it also ends where rounding lets none fall further.
    bool run(double tol, std::int64_t max_rounds) {
        synchronise();
        double before = unbounded;
        for (std::int64_t round = 0; round < max_rounds; ++round) {
            const bool moved = settle();
            const double far = refresh();
            violating_.clear();
            for (std::int64_t j = 0; j < size_; ++j)
                if (!used_[j] && bounds_[j] < unbounded && violation(j) > tol) violating_.push_back(j);
            if (violating_.empty()) {
                if (far <= tol || far > before / 2) return far <= tol;
                before = far;
                continue;
            }
            if ((round > 0 && !moved) || !join()) return false;
        }
        return false;
    }

  private:
    static constexpr double unbounded = 1e300;

    bool tied(std::int64_t j) const { return positive_ || bounds_[j] > 0; }
    double violation(std::int64_t j) const {
        const double pull = -double(gradient_[j]);
        return (positive_ ? pull : std::abs(pull)) - bounds_[j];
    }
    double slope(std::int64_t j) const {
        return double(gradient_[j]) + ridge_[j] * double(w_[j]) + bounds_[j] * signs_[j];
    }

    void synchronise() {
        for (std::int64_t i = factor_.count(); i-- > 0;)
            if (factor_.at(i) >= size_ || (w_[factor_.at(i)] == T(0) && tied(factor_.at(i)))) factor_.remove(i);
        for (std::int64_t i = 0; i < factor_.count(); ++i) used_[factor_.at(i)] = 1;
        std::vector<std::int64_t> more, dependent;
        for (int free = 1; free >= 0; --free)  // free ones first, so that a bound one depends on them and not they on it
            for (std::int64_t j = 0; j < size_; ++j)
                if (!used_[j] && tied(j) != bool(free) && (w_[j] != T(0) || free)) more.push_back(j);
        factor_.append(more, dependent);
        for (std::int64_t i = 0; i < factor_.count(); ++i) {
            const std::int64_t j = factor_.at(i);
            used_[j] = 1;
            signs_[j] = tied(j) ? (w_[j] > T(0) ? 1.0 : -1.0) : 0.0;
        }
        for (std::int64_t j : dependent)
            if (tied(j)) w_[j] = T(0);
        refresh();
    }

    // To the minimum over the coordinates in use with their signs; those that meet zero leave. Whether any moved.
    bool settle() {
        bool moved = false;
        step_.resize(std::size_t(factor_.count()));
        for (std::int64_t i = 0; i < factor_.count(); ++i) step_[i] = slope(factor_.at(i));
        slope_ = step_;
        while (factor_.count()) {
            const std::int64_t count = factor_.count();
            step_ = slope_;
            factor_.solve(step_.data());
            double share = 1;
            std::int64_t stop = -1;
            bool wrong = false;
            for (std::int64_t i = 0; i < count; ++i) {
                step_[i] = -step_[i];
                const std::int64_t j = factor_.at(i);
                if (!tied(j)) continue;
                if (w_[j] == T(0)) {
                    wrong = wrong || step_[i] * signs_[j] <= 0;
                } else if ((double(w_[j]) + step_[i]) * signs_[j] <= 0) {
                    const double reach = -double(w_[j]) / step_[i];
                    if (reach < share || stop < 0) share = std::min(reach, 1.0), stop = i;
                }
            }
            if (wrong) {  // newcomers that would start with the wrong sign wait
                for (std::int64_t i = count; i-- > 0;)
                    if (const std::int64_t j = factor_.at(i); tied(j) && w_[j] == T(0) && step_[i] * signs_[j] <= 0)
                        leave(i);
                continue;
            }
            for (std::int64_t i = 0; i < count; ++i) {
                const std::int64_t j = factor_.at(i);
                const T now = T(double(w_[j]) + share * step_[i]);
                moved = moved || now != w_[j];
                w_[j] = now;
                slope_[i] *= 1 - share;
            }
            if (stop < 0) break;
            w_[factor_.at(stop)] = T(0);
            expel();
        }
        return moved;
    }

    // Those that have met zero leave; rounding may have carried some a little beyond.
    void expel() {
        for (std::int64_t i = factor_.count(); i-- > 0;)
            if (const std::int64_t j = factor_.at(i); tied(j) && !(w_[j] * T(signs_[j]) > T(0))) {
                w_[j] = T(0);
                leave(i);
            }
    }

    void leave(std::int64_t place) {
        used_[factor_.at(place)] = 0;
        signs_[factor_.at(place)] = 0;
        slope_.erase(slope_.begin() + place);
        factor_.remove(place);
    }

    // Brings the gradient up to date with w; the largest slope left on the coordinates in use.
    double refresh() {
        for (std::int64_t j = 0; j < size_; ++j)
            if (w_[j] != start_[j]) {
                add_multiple(T(w_[j] - start_[j]), gram_ + j * stride_, gradient_, size_);
                start_[j] = w_[j];
            }
        double far = 0;
        for (std::int64_t i = 0; i < factor_.count(); ++i) far = std::max(far, std::abs(slope(factor_.at(i))));
        return far;
    }

    // The violating coordinates come into use; if all depend on those in use, the worst is exchanged for one of them.
    bool join() {
        std::vector<std::int64_t> dependent;
        const std::int64_t before = factor_.count();
        factor_.append(violating_, dependent);
        for (std::int64_t i = before; i < factor_.count(); ++i) {
            const std::int64_t j = factor_.at(i);
            used_[j] = 1;
            signs_[j] = tied(j) ? (gradient_[j] > T(0) ? -1.0 : 1.0) : 0.0;
        }
        if (factor_.count() > before || violating_.empty()) return true;
        const std::int64_t worst = *std::max_element(
            dependent.begin(), dependent.end(),
            [&](std::int64_t i, std::int64_t j) { return violation(i) < violation(j); });
        return exchange(worst);
    }

    // j depends on the coordinates in use: move along the direction that leaves G w as it is and lowers the penalty
    // until one of them meets zero and leaves. Then j fits in.
    bool exchange(std::int64_t j) {
        const double sign = gradient_[j] > T(0) ? -1 : 1;
        factor_.null_direction(j, step_);
        double reach = unbounded;
        std::int64_t stop = -1;
        for (std::int64_t i = 0; i < factor_.count(); ++i) {
            const std::int64_t other = factor_.at(i);
            const double speed = step_[i] * sign;
            if (!tied(other) || speed * signs_[other] >= 0) continue;
            if (const double far = std::abs(double(w_[other]) / speed); far < reach) stop = i, reach = far;
        }
        if (stop < 0) return false;
        w_[j] = T(sign * reach);
        for (std::int64_t i = 0; i < factor_.count(); ++i)
            w_[factor_.at(i)] = T(double(w_[factor_.at(i)]) + reach * sign * step_[i]);
        w_[factor_.at(stop)] = T(0);
        slope_.assign(std::size_t(factor_.count()), 0.0);
        expel();
        std::vector<std::int64_t> dependent;
        factor_.append({j}, dependent);
        if (dependent.empty()) {
            used_[j] = 1;
            signs_[j] = sign;
        } else {
            w_[j] = T(0);
        }
        refresh();
        return dependent.empty();
    }

    Factor<T> &factor_;
    const T *gram_;
    std::int64_t stride_, size_;
    const double *bounds_, *ridge_;
    bool positive_;
    T *w_, *gradient_;
    std::vector<double> signs_, step_, slope_;
    std::vector<T> start_;
    std::vector<char> used_;
    std::vector<std::int64_t> violating_;
};

}  // namespace ellzero::active_set
